"use strict";
// The page of the service: one volume, one job, its mask over the image.

const byId = (id) => document.getElementById(id);
const POLL_S = 1; // how long a question for progress may wait for an answer
const MOVES = {
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1],
};
let models = [];
let viewer = null; // NiiVue on the canvas, once it is there
let current = null; // the job that is shown or awaited: {model, request, id, cancelled}

// --- talking to the service ---

function headers() {
  const token = sessionStorage.getItem("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (!answer.ok) throw await fault(answer.status, () => answer.json());
  return answer;
}

async function fault(status, read) {
  let issues;
  try {
    issues = (await read()).issues;
  } catch {
    issues = [{ code: `http.${status}`, severity: "error", where: "", message: `the service answered with status ${status}`, fix: "" }];
  }
  return Object.assign(new Error("refused"), { status, issues });
}

function upload(job, file, formats) {
  const query = new URLSearchParams([["model", job.model.name], ...formats.map((format) => ["format", format])]);
  return new Promise((resolve, reject) => {
    const request = (job.request = new XMLHttpRequest());
    request.open("POST", `/jobs?${query}`);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => show("Uploading", event.loaded / event.total);
    request.upload.onload = () => show("Checking the image");
    request.onload = async () => {
      if (request.status < 300) resolve(JSON.parse(request.response));
      else reject(await fault(request.status, () => JSON.parse(request.response)));
    };
    request.onerror = () => reject(new Error("the service cannot be reached"));
    request.onabort = () => reject(new Error("cancelled"));
    request.send(file);
  });
}

// --- one job, from a file to its mask ---

async function segment(file) {
  await forget();
  const job = (current = { model: models.find((each) => each.name === byId("model").value) });
  if (!job.model) return;
  const isNifti = /\.nii(\.gz)?$/i.test(file.name);
  const also = byId("also").value;
  const formats = ["nifti", ...(isNifti ? [] : ["image"]), ...(also ? [also] : [])];
  byId("work").hidden = false;
  try {
    show("Uploading", 0);
    if (isNifti) await showImage(file).catch(() => {}); // the service says what is wrong with it
    let status = await upload(job, file, formats);
    job.id = status.id;
    while (status.state === "waiting" || status.state === "running") {
      show(words(status), status.state === "running" ? status.progress : undefined);
      status = await (await ask(`/jobs/${job.id}?wait=${POLL_S}`)).json();
      if (job !== current) return;
    }
    showIssues(status.issues);
    if (status.state === "done") {
      show("Loading the mask");
      await showAnswer(job, status, isNifti);
    }
  } catch (error) {
    if (job === current && error.message !== "cancelled") {
      showIssues(error.issues || [{ code: "page.failed", severity: "error", where: "", message: error.message, fix: "try again" }]);
    }
  } finally {
    if (job === current) byId("work").hidden = true;
  }
}

function words(status) {
  if (status.state === "waiting") return status.ahead ? `Waiting, ${status.ahead} before` : "Waiting";
  const left = status.seconds_left === null ? "" : `, ${Math.ceil(status.seconds_left)} s left`;
  return `Segmenting, ${Math.round(100 * status.progress)} %${left}`;
}

async function forget() {
  const job = current;
  current = null;
  byId("issues").replaceChildren();
  byId("result").hidden = true;
  byId("work").hidden = true;
  byId("forget").disabled = true;
  while (viewer && viewer.volumes.length) viewer.removeVolume(viewer.volumes[0]);
  if (job && job.request) job.request.abort();
  if (job && job.id) await ask(`/jobs/${job.id}`, { method: "DELETE" }).catch(() => {});
}

// --- what is shown ---

function show(text, share) {
  byId("state").textContent = text;
  if (share === undefined) byId("progress").removeAttribute("value");
  else byId("progress").value = share;
}

function showIssues(issues) {
  byId("issues").replaceChildren(
    ...issues.map((issue) => {
      const place = issue.where ? `${issue.where}: ` : "";
      const box = element("div", `${place}${issue.message}${issue.fix ? `; ${issue.fix}` : ""} `);
      box.className = issue.severity;
      box.append(element("code", issue.code));
      return box;
    }),
  );
}

function element(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

async function showImage(file) {
  if (!viewer) return;
  viewer.addVolume(await niivue.NVImage.loadFromFile({ file, name: file.name }));
}

async function fileOf(job, format) {
  const answer = await ask(`/jobs/${job.id}/${format}`);
  const name = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition"))[1];
  return new File([await answer.blob()], name);
}

async function showAnswer(job, status, hasImage) {
  if (!hasImage) await showImage(await fileOf(job, "image"));
  const mask = await fileOf(job, "nifti");
  if (job !== current) return;
  if (viewer) {
    const drawn = await niivue.NVImage.loadFromFile({ file: mask, name: mask.name });
    drawn.setColormapLabel(colours(job.model, new Set(job.model.classes.map((each) => each.name))));
    viewer.addVolume(drawn);
    viewer.setOpacity(viewer.volumes.length - 1, Number(byId("opacity").value));
  }
  byId("classes").replaceChildren(...status.volumes.map((each, index) => row(job, each, index)));
  byId("downloads").replaceChildren(...Object.keys(status.files).filter((format) => format !== "image").map((format) => download(job, format)));
  byId("result").hidden = false;
  byId("forget").disabled = false;
}

function row(job, volume, index) {
  const made = element("tr");
  const name = element("td");
  const label = element("label", "");
  const box = Object.assign(element("input"), { type: "checkbox", checked: true, value: volume.name });
  const colour = element("span");
  colour.className = "colour";
  colour.style.background = job.model.classes[index].colour;
  box.addEventListener("change", () => {
    const boxes = [...byId("classes").querySelectorAll("input:checked")];
    viewer.volumes.at(-1).setColormapLabel(colours(job.model, new Set(boxes.map((each) => each.value))));
    viewer.updateGLVolume();
  });
  label.append(box, colour, volume.name);
  name.append(label);
  made.append(name, element("td", volume.volume_ml === null ? "" : `${millilitres(volume.volume_ml)} ml`));
  return made;
}

function millilitres(value) {
  return value === 0 ? "0" : value.toPrecision(3).includes("e") ? value.toFixed(0) : value.toPrecision(3);
}

// The colours of label values; a value of several classes has that of the smallest of them.
function colours(model, shown) {
  const last = Math.max(...model.classes.flatMap((each) => each.values));
  const made = { R: [], G: [], B: [], A: [], I: [], labels: [] };
  for (let value = 0; value <= last; value++) {
    const own = model.classes.filter((each) => each.values.includes(value)).sort((a, b) => a.values.length - b.values.length)[0];
    const rgb = own ? [1, 3, 5].map((at) => parseInt(own.colour.slice(at, at + 2), 16)) : [0, 0, 0];
    ["R", "G", "B"].forEach((name, i) => made[name].push(rgb[i]));
    made.A.push(own && shown.has(own.name) ? 255 : 0);
    made.I.push(value);
    made.labels.push(own ? own.name : "");
  }
  return made;
}

function download(job, format) {
  const made = Object.assign(element("button", `Download ${format === "nifti" ? "NIfTI" : format}`), { type: "button" });
  made.addEventListener("click", async () => {
    try {
      const file = await fileOf(job, format);
      const link = Object.assign(element("a"), { href: URL.createObjectURL(file), download: file.name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    } catch (error) {
      showIssues(error.issues || [{ code: "page.failed", severity: "error", where: "", message: error.message, fix: "try again" }]);
    }
  });
  return made;
}

// --- the controls ---

async function loadModels() {
  try {
    models = await (await ask("/models")).json();
  } catch (error) {
    byId("token-form").hidden = error.status !== 401;
    if (error.status !== 401 || sessionStorage.getItem("token")) showIssues(error.issues || []);
    return;
  }
  byId("token-form").hidden = true;
  byId("issues").replaceChildren();
  byId("model").replaceChildren(...models.map((each) => Object.assign(element("option", each.name), { value: each.name })));
  showModel();
}

function showModel() {
  const model = models.find((each) => each.name === byId("model").value);
  const dice = model.dice === null ? "" : `; cross-validated Dice ${model.dice.toFixed(3)}`;
  const classes = model.classes.map((each) => each.name).join(", ");
  const channels = model.channels.length > 1 ? `${model.channels.length} channels, in this order: ` : "";
  byId("model-about").textContent = `${channels}${model.channels.join(", ")} → ${classes}${dice}`;
}

function choose(files) {
  if (files.length === 1) segment(files[0]);
  else if (files.length) showIssues([{ code: "page.one_file", severity: "error", where: "", message: `${files.length} files`, fix: "drop one file; pack several channels or slices into a zip" }]);
}

async function startViewer() {
  try {
    const made = new niivue.Niivue({ dragAndDropEnabled: false, loadingText: "", logLevel: "error", multiplanarShowRender: 1, crosshairWidthUnit: "percent", crosshairWidth: 0.3, crosshairColor: [1, 0.8, 0, 0.9] });
    made.onLocationChange = (place) => { byId("place").textContent = place.string; };
    viewer = await made.attachToCanvas(byId("canvas"));
    viewer.setSliceType(3);
  } catch {
    viewer = null;
    byId("place").textContent = "This browser shows no volumes (it has no WebGL 2); masks can be downloaded.";
  }
}

function start() {
  byId("model").addEventListener("change", showModel);
  byId("file").addEventListener("change", (event) => {
    choose(event.target.files);
    event.target.value = "";
  });
  byId("cancel").addEventListener("click", forget);
  byId("forget").addEventListener("click", forget);
  byId("opacity").addEventListener("input", (event) => {
    if (viewer && viewer.volumes.length > 1) viewer.setOpacity(viewer.volumes.length - 1, Number(event.target.value));
  });
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("token", byId("token").value.trim());
    loadModels();
  });
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => {
      for (const each of document.querySelectorAll("[data-view]")) each.setAttribute("aria-pressed", String(each === button));
      if (viewer) viewer.setSliceType(Number(button.dataset.view));
    });
  }
  byId("canvas").addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move || !viewer || !viewer.volumes.length) return;
    event.preventDefault();
    viewer.moveCrosshairInVox(...move);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    choose(event.dataTransfer.files);
  });
  startViewer();
  loadModels();
}

start();
