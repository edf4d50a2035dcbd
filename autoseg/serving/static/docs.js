"use strict";
// Shows the OpenAPI description of the service as text.

function element(tag, text, ...inside) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...inside);
  return made;
}

function typeOf(schema) {
  if (!schema) return "";
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter((each) => each !== "null").join(" or ");
  if (schema.$ref) return schema.$ref.split("/").pop();
  return schema.type === "array" ? `list of ${typeOf(schema.items)}` : schema.type || "";
}

function table(head, rows) {
  const lines = rows.map((row) => element("tr", "", ...row.map((text) => element("td", text))));
  return element("table", "", element("thead", "", element("tr", "", ...head.map((text) => element("th", text)))), element("tbody", "", ...lines));
}

async function start() {
  for (const each of document.querySelectorAll(".here")) each.textContent = location.origin;
  const description = await (await fetch("/openapi.json")).json();
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, about] of Object.entries(methods)) {
      const parameters = (about.parameters || []).map((each) => [each.name, each.in, typeOf(each.schema), each.description || each.schema.description || ""]);
      const body = about.requestBody ? [["body", "body", "bytes", about.requestBody.description || ""]] : [];
      const answers = Object.entries(about.responses).map(([status, each]) => [status, each.description]);
      document.getElementById("operations").append(
        element("h2", `${method.toUpperCase()} ${path}`),
        element("p", (about.description || about.summary || "").replaceAll("``", "")),
        ...(parameters.length + body.length ? [table(["name", "in", "type", "meaning"], [...parameters, ...body])] : []),
        table(["status", "meaning"], answers),
      );
    }
  }
}

start();
