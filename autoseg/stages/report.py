"""Report: one page from the files of a run folder."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping
from functools import partial

from autoseg.delivery.report import read_report, write_report
from autoseg.delivery.submission import challenges_of
from autoseg.pipeline import RunRecord, write_record
from autoseg.settings import STAGES, given_settings
from autoseg.stages.announce import no_use_issues
from autoseg.stages.plan import plan_edits
from autoseg.stages.run import Run
from autoseg.stages.schedule import read_prepared, schedule_edits
from autoseg.stages.select import score_issues
from autoseg.stages.work import Work
from planners import Schedule


def report(run: Run) -> Generator[Work, None, None]:
    """Write ``report/index.html``."""
    yield Work(name="report", what="the report", do=partial(write_page, run))


def write_page(run: Run) -> None:
    """The page of a run, from its documents."""
    record = write_record(run, "running")
    content = read_report(
        run.folder,
        warnings=no_use_issues(run.schedule),
        caveats=score_issues(run, read_prepared(run)),
        settings=given_settings(run.settings),
        edits=(*plan_edits(run), *schedule_edits(run)),
        commands=commands(run),
        environment=environment(record),
        durations_s=durations(record.stages_s, run.schedule),
    )
    write_report(run.folder.report, content)


def commands(run: Run) -> dict[str, str]:
    """Shell commands for what comes next."""
    root = run.folder.root
    useful = {
        "Segment new images": ("predict", root, "FOLDER_OF_IMAGES", "predictions"),
        "Score predictions": ("evaluate", "predictions", "FOLDER_OF_REFERENCES"),
        "Resume this run": ("run", root),
        "Train for an hour more": ("run", root, "--budget", "+1h"),
    }
    if run.dataset.test:
        names = challenges_of(run.dataset)
        useful["Pack the test predictions"] = ("submit", root, "--as", names[0] if len(names) == 1 else "zip")
    return {purpose: shlex.join(("autoseg", *map(str, words))) for purpose, words in useful.items()}


def environment(record: RunRecord) -> dict[str, str]:
    """Versions and hardware, in the order shown."""
    return {
        "autoseg": record.autoseg,
        "Python": record.python,
        **record.packages,
        "device": record.device,
        "processor": record.processor,
        "system": record.platform,
        "seed": str(record.seed),
    }


def durations(stages_s: Mapping[str, float], schedule: Schedule) -> dict[str, float]:
    """Seconds by kind of stage: those of all folds together, without trainings of earlier schedules."""
    folds = {f"{each.configuration}-fold_{fold}" for each in schedule.trainings for fold in range(schedule.num_folds)}
    total: dict[str, float] = {}
    for stage, seconds in stages_s.items():
        kind, _, fold = stage.partition("-")
        if not fold or fold in folds:
            total[kind] = total.get(kind, 0.0) + seconds
    return {kind: total[kind] for kind in STAGES if kind in total}
