"""Runs a container as its platform does, case by case and one broken case, and says whether it would pass."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np

from autoseg.compute.executor import available_cores
from autoseg.data.labels import with_values
from autoseg.delivery.container.boxes import KILLED, POLL_S, Limits, Places, Process
from autoseg.delivery.container.opening import RehearsalCase, Rehearsed, find_cases, opened_container
from autoseg.delivery.container.program import ContainerProgram
from autoseg.delivery.container.rules import lay_out, output_issues, strays
from autoseg.delivery.container.verdict import CaseReport, Outcome, Rehearsal, busy_machine, judge
from autoseg.evaluation.metrics import EvaluatedClass, compare, evaluated_classes
from autoseg.evaluation.scoring import reference_labels
from autoseg.imaging.orientation import align_label_map
from autoseg.imaging.readers import image_ending, read_header, read_image, read_label_map, write_image
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import Reporter
from autoseg.wording import format_duration
from datasets_spec.container import CASE, ContainerTable

HEALTH_S = 10.0
BROKEN = "broken"
"""Name of the case that is injected."""
GIB = 1024**3
RESERVED_GB = 1.0
"""Of a machine's memory, for the platform itself."""


def parse_size(text: str | None, option: str) -> int | None:
    """Bytes of ``15g``, ``128m``, ``512k``, as Docker counts them; none of none. Raises `AutosegError`."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)b?", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        issue = Issue(
            code="settings.size", where=option, message=f"{text!r} is not a size", fix="write for example 15g or 128m"
        )
        raise AutosegError(issue)
    return int(float(found[1]) * 1024 ** " kmg".index(found[2] or " "))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a person may choose for a rehearsal; limits that are not given are those of the challenge."""

    memory_bytes: int | None = None
    shm_bytes: int | None = None
    seconds: float | None = None
    method: str = "invoke"
    model: Path | None = None


def limits_of(wishes: Wishes, table: ContainerTable) -> Limits:
    """The limits of a rehearsal for a challenge."""
    reserved = RESERVED_GB if table.kind == "grand-challenge" else 0.0
    return Limits(
        memory_bytes=wishes.memory_bytes or round((table.memory_gb - reserved) * GIB),
        shm_bytes=wishes.shm_bytes or round(table.shm_gb * GIB),
        seconds=wishes.seconds or 60 * table.minutes,
    )


def rehearse(container: str, cases: Path, wishes: Wishes, *, reporter: Reporter) -> Rehearsal:
    """Run a container on the ``cases``, and on a broken one, within limits.

    ``container`` is a build context, an image file or the name of an image of Docker. Raises `AutosegError` where there is
    nothing to run or no way of running it; whatever the container does wrong is in the result.
    """
    busy = busy_machine(os.getloadavg()[0], available_cores()) if hasattr(os, "getloadavg") else []
    opened = opened_container(container, method=wishes.method, model=wishes.model, reporter=reporter)
    with opened as ready, tempfile.TemporaryDirectory(prefix="autoseg-cases-") as folder:
        Path(folder).chmod(0o755)
        if ready.program.model.startswith("/") and ready.model is None:
            fix = "add --model model.tar.gz"
            message = "has its weights in a file beside it"
            raise AutosegError(Issue(code="container.no_model", where=container, message=message, fix=fix))
        stage = _Stage(ready=ready, limits=limits_of(wishes, ready.program.table), folder=Path(folder))
        found = find_cases(cases, ready.program.dataset)
        broken = RehearsalCase(BROKEN, _break(found[0], Path(folder) / "images_that_break"))
        reports: list[CaseReport] = []
        with reporter.track("Rehearsing", len(found) + 1) as tracker:
            for report in (_served if ready.method == "invoke" else _one_by_one)(stage, [*found, broken]):
                reports.append(report)
                tracker.advance(note=report.case)
    result = Rehearsal(
        container=container,
        way=ready.box.way,
        method=ready.method,
        memory_bytes=stage.limits.memory_bytes,
        shm_bytes=stage.limits.shm_bytes,
        seconds=stage.limits.seconds,
        start_seconds=stage.start_seconds,
        cases=tuple(report for report in reports if report.case != BROKEN),
        broken=next((report for report in reports if report.case == BROKEN), None),
        outside=tuple(dict.fromkeys(stage.outside)),
        issues=(*ready.issues, *stage.issues, *busy),
    )
    passes, verdict = judge(result, ready.program)
    return result.model_copy(update={"passes": passes, "verdict": verdict})


def _break(case: RehearsalCase, folder: Path) -> tuple[Path, ...]:
    """The images of a case with voxels that are no numbers."""
    folder.mkdir()
    broken = []
    for i, path in enumerate(case.images):
        image = read_image(path)
        voxels = image.array.copy()
        voxels[:, 0] = np.nan
        for j, channel in enumerate(voxels):
            broken.append(folder / f"{BROKEN}_{i + j:04}.mha")
            write_image(broken[-1], channel, image.geometry)
    return tuple(broken)


@dataclass(slots=True, kw_only=True)
class _Stage:
    """What all cases of a rehearsal share, and what it finds on the way."""

    ready: Rehearsed
    limits: Limits
    folder: Path
    start_seconds: float | None = None
    outside: list[str] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)

    @property
    def interface(self) -> int:
        """The first interface that the container serves."""
        return next(i for i, channels in enumerate(self.ready.program.channels) if channels)

    def places(self, name: str) -> Places:
        """New folders that a container sees."""
        input_, output = self.folder / name / "input", self.folder / name / "output"
        for path in (input_, output):
            path.mkdir(parents=True)
        output.chmod(0o777)
        return Places(input_, output, self.ready.model)

    def fill(self, places: Places, cases: Sequence[RehearsalCase]) -> None:
        """Lay down the inputs of ``cases`` in place of all that is there, readable for everyone."""
        for folder in (places.input, places.output):
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for case in cases:
            lay_out(self.ready.program, self.interface, case.name, case.images, places.input)
        for path in places.input.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)

    def judged(self, case: RehearsalCase, cases: Sequence[RehearsalCase], places: Places, **how: object) -> CaseReport:
        """The report of a case, with what is wrong with its outputs where it went well."""
        report = CaseReport.model_validate({"case": case.name, **how})
        if report.outcome != "done":
            return report
        program, table = self.ready.program, self.ready.program.table
        grid = table.interfaces[self.interface].grid_of(program.channels[self.interface])
        source = read_header(case.images[grid if grid < len(case.images) else 0]).geometry
        issues = output_issues(table, self.interface, case.name, places.output, source)
        places_of = {str(places.output): table.output}
        shown = [issue.model_copy(update={"where": _shown(issue.where, places_of)}) for issue in issues]
        extra = strays(table, self.interface, [each.name for each in cases], places.output)
        dice = None if issues or case.reference is None else _dice(program, self.interface, case, places.output)
        return report.model_copy(update={"issues": tuple(shown), "stray": tuple(extra), "dice": dice})


def _shown(where: str, places: dict[str, str]) -> str:
    for here, there in places.items():
        where = where.replace(here, there)
    return where


def _dice(program: ContainerProgram, interface: int, case: RehearsalCase, output: Path) -> float | None:
    """Mean Dice of the label map against the reference; None where no class is in either, or no label map is asked for."""
    wanted = [each for each in program.table.interfaces[interface].outputs if each.kind == "labels"]
    if case.reference is None or not wanted:
        return None
    path = output / wanted[0].path.replace(CASE, case.name)
    file = path if image_ending(path) else next(iter(sorted(path.rglob("*.m*"))), path)
    predicted, reference = read_label_map(file), reference_labels(case.reference, case.name)
    truth = with_values(align_label_map(reference, predicted.geometry), wanted[0].remap)
    values = [wanted[0].remap.get(value, value) for value in program.dataset.file_values]
    named = evaluated_classes(program.dataset.labels, values)
    classes = list({each.key: each for each in map(_without_repeats, named)}.values())  # of what is merged, one
    scores = compare(predicted.array, truth, classes=classes, spacing_mm=predicted.geometry.spacing_mm)
    defined = [score.dice for score in scores.values() if score.dice is not None]
    return fmean(defined) if defined else None


def _without_repeats(each: EvaluatedClass) -> EvaluatedClass:
    return each.model_copy(update={"values": tuple(dict.fromkeys(each.values))})


def _one_by_one(stage: _Stage, cases: Sequence[RehearsalCase]) -> Iterator[CaseReport]:
    """A container for each case; where a platform lays down all cases at once, one for all of them, and one for the broken one."""
    together = stage.ready.program.table.kind == "brats25"
    groups = [list(cases[:-1]), [cases[-1]]] if together else [[case] for case in cases]
    for group in groups:
        places = stage.places(group[0].name)
        stage.fill(places, group)
        started = time.monotonic()
        process = stage.ready.box.start(places, stage.limits)
        try:
            code = _wait(process, stage.limits.seconds * len(group))
            seconds = (time.monotonic() - started) / len(group)
            outcome, message = _exec_outcome(process, code, stage.limits)
            peak = _peak(process, outcome, stage.limits)
        finally:  # after Ctrl-C, too
            stage.outside += process.close()
        for case in group:
            yield stage.judged(case, group, places, outcome=outcome, message=message, seconds=seconds, peak_bytes=peak)


def _wait(process: Process, seconds: float) -> int | None:
    """The exit code; None, after stopping it, where it takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (code := process.poll()) is not None:
            return code
        time.sleep(POLL_S)
    process.stop()
    return None


def _exec_outcome(process: Process, code: int | None, limits: Limits) -> tuple[Outcome, str]:
    if code is None:
        return "time", f"Time limit exceeded ({format_duration(limits.seconds)})"
    if code == 0:
        return "done", ""
    if process.ran_out_of_memory() or code == KILLED:
        return "memory", _memory_words(limits)
    return "failed", f"exit code {code}: {_last_line(process)}"


def _peak(process: Process, outcome: Outcome, limits: Limits) -> int | None:
    """Memory of a case; what reached the limit took all of it, which samples may have missed."""
    measured = process.meter.reset()
    return measured if measured is None or outcome != "memory" else limits.memory_bytes


def _memory_words(limits: Limits) -> str:
    return f"exceeded its memory limit of {limits.memory_bytes / GIB:g} GiB (exit code {KILLED})"


def _last_line(process: Process) -> str:
    out, err = process.said()
    lines = [line for line in (err or out).splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"


def _served(stage: _Stage, cases: Sequence[RehearsalCase]) -> Iterator[CaseReport]:
    """One container that answers a call for each case; another one where it ended."""
    process, places = None, stage.places("served")
    try:
        for case in cases:
            if process is not None and process.poll() is not None:
                stage.outside += process.close()
                process = None
            if process is None:
                stage.fill(places, [])
                process = _start_server(stage, places)
                if process is None:
                    return
            stage.fill(places, [case])
            process.meter.reset()
            started = time.monotonic()
            status = process.ask("POST", "/invoke", stage.limits.seconds)
            seconds = time.monotonic() - started
            outcome, message = _invoke_outcome(process, status, seconds, stage.limits)
            if outcome == "time":
                process.stop()
            peak = _peak(process, outcome, stage.limits)
            yield stage.judged(case, [case], places, outcome=outcome, message=message, seconds=seconds, peak_bytes=peak)
        if process is not None:
            stage.issues += _end_server(process)
    finally:  # after Ctrl-C, too
        if process is not None:
            stage.outside += process.close()


def _start_server(stage: _Stage, places: Places) -> Process | None:
    """A container whose health check succeeds; None, with an issue, where that does not happen in time."""
    process = stage.ready.box.start(places, stage.limits)
    started = time.monotonic()
    message, fix = "", "see its output"
    while not message:
        status = process.ask("GET", "/health", HEALTH_S)
        seconds = time.monotonic() - started
        if status == 200:
            stage.start_seconds = max(seconds, stage.start_seconds or 0.0)
            return process
        code = process.poll()
        if code is not None:
            memory = process.ran_out_of_memory() or code == KILLED
            message = _memory_words(stage.limits) if memory else f"ended with exit code {code}: {_last_line(process)}"
        elif status is not None and 300 <= status < 400:
            message, fix = f"answers GET /health with a redirect ({status})", "answer 200"
        elif seconds > stage.limits.start_seconds:
            limit = format_duration(stage.limits.start_seconds)
            message = f"GET /health did not answer 200 within {limit}; last words: {_last_line(process)}"
            fix = "load less, or answer earlier"
        time.sleep(POLL_S)
    stage.issues.append(Issue(code="container.no_start", where="starting", message=message, fix=fix))
    stage.outside += process.close()
    return None


def _invoke_outcome(process: Process, status: int | None, seconds: float, limits: Limits) -> tuple[Outcome, str]:
    if status == 201:
        return "done", ""
    if status is None and seconds >= limits.seconds:
        return "time", f"Invoke time limit exceeded ({format_duration(limits.seconds)})"
    time.sleep(2 * POLL_S)  # the end of the server is seen a little later than that of its connection
    code = process.poll()
    if process.ran_out_of_memory() or code == KILLED:
        return "memory", _memory_words(limits)
    if code is not None:
        return "failed", f"the server ended with exit code {code}: {_last_line(process)}"
    if status is not None and status < 500:
        return "answer", f"POST /invoke answered {status}, not 201"
    return "failed", f"POST /invoke answered {status}: {_last_line(process)}"


def _end_server(process: Process) -> list[Issue]:
    """A server is ended by SIGTERM; one that must be killed loses what it was doing."""
    if process.poll() is None:
        process.stop()
        if process.poll() == KILLED:
            fix = "handle SIGTERM"
            message = "does not end on SIGTERM, and is killed"
            return [Issue(code="container.no_end", severity="warning", where="ending", message=message, fix=fix)]
    return []
