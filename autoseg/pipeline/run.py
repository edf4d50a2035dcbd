"""The whole run: every stage in order, its record, its report."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autoseg.issues import AutosegError
from autoseg.pipeline.finetuning import refuse_contradictions
from autoseg.pipeline.freshness import RetrainingError
from autoseg.pipeline.options import Options
from autoseg.pipeline.predicting import predict_stage
from autoseg.pipeline.record import now, what_differs, write_record
from autoseg.pipeline.reporting import report_stage
from autoseg.pipeline.scheduling import read_given
from autoseg.pipeline.selecting import Selected
from autoseg.pipeline.splitting import refuse_bad_files
from autoseg.storage.atomic import remove_orphans
from autoseg.storage.locks import hold_lock


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a finished run leaves."""

    selected: Selected
    predictions: list[Path]
    """Label maps of the dataset's test images."""
    report: Path


def run_all(options: Options) -> RunResult:
    """Do what is missing of the whole run. What is done and still fits is skipped.

    ``run.json`` says how the last call went. Raises `AutosegError` with the reason when it cannot go on.
    """
    refuse_contradictions(options)  # before the record of a finished run is written over
    refuse_bad_files(options)
    read_given(options)
    started = now()
    with hold_lock(options.run.lock("run"), what=f"the run in {options.run.root}"):
        remove_orphans(options.run.root, below=False)
        for folder in options.run.folders:
            remove_orphans(folder)
        difference = what_differs(options)
        if difference is not None:
            options.reporter.say(f"Since the last call {difference}: what is still to do may differ in the last digits")
        if options.may_retrain:  # else it is not known yet whether anything will be done here
            write_record(options, started, "running")
        try:
            selected, predictions = predict_stage(options)
            report = report_stage(options, selected, started)
        except KeyboardInterrupt:
            with suppress(AutosegError):
                write_record(options, started, "interrupted")
            raise
        except RetrainingError:
            raise
        except AutosegError as error:
            with suppress(AutosegError):  # on a full disk the first error is the one to tell
                write_record(options, started, "failed", str(error))
            raise
        write_record(options, started, "finished")
    return RunResult(selected=selected, predictions=predictions, report=report)
