"""The report of a rehearsal, and what follows from it: whether a container would pass, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from autoseg.delivery.container.program import ContainerProgram
from autoseg.issues import Issue
from autoseg.wording import count_noun, format_duration, shorten
from planners import Document

CLOSE = 0.8
"""Share of a limit from which on a container is close to it."""
GB = 1e9
BUSY = 2.0
"""Processes for each core from which on times say little: they are at least twice those of a quiet machine."""
Outcome = Literal["done", "failed", "time", "memory", "answer"]


class CaseReport(Document):
    """How one case went."""

    case: str
    outcome: Outcome
    """``failed``: by its exit code, or status 500; ``answer``: another status than 201."""
    seconds: float
    peak_bytes: int | None
    """Largest memory that its processes took; none where that cannot be measured."""
    message: str = ""
    """What was wrong, in words."""
    issues: tuple[Issue, ...] = ()
    """What is wrong with its outputs."""
    stray: tuple[str, ...] = ()
    """Files that belong to no output."""
    dice: float | None = None
    """Mean Dice over the classes; none without a reference."""


class Rehearsal(Document):
    """``rehearsal.json``: how a container went, and whether it would pass."""

    schema_version: Literal[1] = 1
    container: str
    way: str
    method: str
    memory_bytes: int
    shm_bytes: int
    seconds: float
    """Time limit for one case."""
    start_seconds: float | None = None
    """Time from starting to the first health check that succeeded; none where each case starts a container."""
    cases: tuple[CaseReport, ...]
    broken: CaseReport | None = None
    """The case that was injected: an image whose voxels are not finite."""
    outside: tuple[str, ...] = ()
    """Files that were written outside of the folder of the outputs, and are lost."""
    issues: tuple[Issue, ...] = ()
    """What is wrong with the image, and with how the container starts and ends."""
    passes: bool = False
    verdict: str = ""


def busy_machine(load: float, num_cores: int) -> list[Issue]:
    """A warning where so many processes waited for the cores before a rehearsal that its times mean little."""
    if load <= BUSY * num_cores:
        return []
    message = (
        f"this machine was already busy (load {load:.1f} on {count_noun(num_cores, 'core')}), so all times are too long"
    )
    fix = "rehearse again when nothing else runs"
    return [Issue(code="container.busy_machine", severity="warning", where="times", message=message, fix=fix)]


def judge(found: Rehearsal, program: ContainerProgram) -> tuple[bool, str]:
    """Whether a container would pass, and one line that says so, with what to change."""
    errors = [issue for issue in found.issues if issue.severity == "error"]
    bad = [case for case in found.cases if case.outcome != "done"]
    wrong = [issue for case in found.cases for issue in case.issues if issue.severity == "error"]
    if errors:
        return False, f"Would not pass: {errors[0]}"
    if not found.cases:
        return False, "Would not pass: no case was run"
    if bad:
        others = f" ({len(bad)} of {len(found.cases)} cases fail)" if len(found.cases) > 1 else ""
        fix = advice(bad[0].outcome, program)
        return False, f"Would not pass: {bad[0].case}: {bad[0].message}{others}{'; ' * bool(fix)}{fix}"
    if wrong:
        return False, f"Would not pass: {wrong[0]}"
    line = f"Would pass: {count_noun(len(found.cases), 'case')}, {_figures(found)}"
    slowest = max(case.seconds for case in found.cases)
    if slowest > CLOSE * found.seconds:
        line += f"; close to the time limit: {advice('time', program)}"
    elif (peak := _peak(found)) is not None and peak > CLOSE * found.memory_bytes:
        line += f"; close to the memory limit: {advice('memory', program)}"
    if found.broken is not None and found.broken.outcome != "done":
        line += "; but an image that cannot be predicted fails the whole submission: build with --empty-if-failing to write an empty label map instead"
    return True, line


def _figures(found: Rehearsal) -> str:
    slowest = max(case.seconds for case in found.cases)
    parts = [f"at most {format_duration(slowest)} of {format_duration(found.seconds)}"]
    if (peak := _peak(found)) is not None:
        parts.append(f"{peak / GB:.1f} of {found.memory_bytes / GB:.1f} GB")
    if found.start_seconds is not None:
        parts.append(f"start-up {format_duration(found.start_seconds)}")
    return ", ".join(parts)


def _peak(found: Rehearsal) -> int | None:
    return max((case.peak_bytes for case in found.cases if case.peak_bytes is not None), default=None)


def advice(outcome: Outcome, program: ContainerProgram) -> str:
    """What to change so that a container needs less; empty where nothing is known."""
    if outcome == "time":
        parts = [f"--no-mirroring (networks run once instead of {program.mirrored} times)"] * (program.mirrored > 1)
        parts += [f"fewer folds (--folds 1 instead of all, {program.networks} networks)"] * (program.networks > 1)
        return (
            f"build with {' and '.join(parts)}" if parts else "ask for a machine with a GPU, or train a smaller network"
        )
    if outcome == "memory":
        fewer = "build with fewer folds (--folds 1), " * (program.networks > 1)
        return f"{fewer}ask for a machine with more memory, or train with coarser voxels (--target-spacing)"
    return ""


def lines_of(found: Rehearsal) -> Iterator[str]:
    """The report as text, the verdict last."""
    yield f"{found.container}: {found.method}, by {found.way}"
    if found.start_seconds is not None:
        yield f"start-up  {format_duration(found.start_seconds)}"
    for case in (*found.cases, *([found.broken] if found.broken else [])):
        peak = "" if case.peak_bytes is None else f", {case.peak_bytes / GB:.2f} GB"
        dice = "" if case.dice is None else f", Dice {case.dice:.3f}"
        state = case.message if case.outcome != "done" else "done"
        yield f"{case.case}  {case.seconds:.1f} s{peak}{dice}: {state}"
        yield from (f"  {issue.severity}: {issue}" for issue in case.issues)
        if case.stray:
            yield f"  warning: files that belong to no output: {shorten(case.stray)}"
    if found.outside:
        yield f"warning: written outside of the outputs, and lost: {shorten(found.outside)}"
    yield from (f"{issue.severity}: {issue}" for issue in found.issues)
    yield found.verdict
