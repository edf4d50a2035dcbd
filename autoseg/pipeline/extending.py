"""Adds a configuration that a person asks for to the schedule of a run, with the stages that it needs."""

from __future__ import annotations

from autoseg.data.dataset import DatasetDescription
from autoseg.data.splits import Splits
from autoseg.issues import AutosegError
from autoseg.pipeline.bench import make_bench
from autoseg.pipeline.cascading import require_unseen
from autoseg.pipeline.measuring import measure_steps
from autoseg.pipeline.options import Options
from autoseg.pipeline.stages import follows_method, preprocess_configurations
from autoseg.storage.atomic import load_document, save_document
from autoseg.storage.locks import hold_lock
from planners import Measurement, Plan, Schedule, extend_schedule


def add_training(options: Options, dataset: DatasetDescription, plan: Plan, splits: Splits, name: str) -> Schedule:
    """The run's schedule with ``name`` in it; what it lacks of it is preprocessed, timed and written down.

    Raises `AutosegError` for a configuration that a given schedule does not train, or that cannot be trained on these folds,
    and `KeyError` for one that the plan lacks.
    """
    with hold_lock(options.run.lock("schedule"), what="the schedule", wait=True, say=options.reporter.say):
        schedule = load_document(Schedule, options.run.schedule)
        scheduled = [training.configuration for training in schedule.trainings]
        if name in scheduled:  # another process was faster
            return schedule
        if options.schedule is not None:
            raise AutosegError(f"{options.schedule} does not train {name}; it trains {', '.join(scheduled)}")
        chain = plan.chain(name)
        if len(chain) > 1:
            require_unseen(splits, name)
        missing = [configuration for configuration in chain if configuration.name not in scheduled]
        options.reporter.say(
            f"Adding {' and '.join(c.name for c in missing)} to the schedule, which the rule leaves out"
        )
        preprocess_configurations(options, dataset, plan, missing)
        bench, precision = make_bench(options, dataset, plan), schedule.trainings[0].precision
        measurements: list[Measurement] = []
        for configuration in missing:
            measurements += measure_steps(
                bench,
                [configuration],
                budgeted=not follows_method(options),
                num_folds=schedule.num_folds,
                precision=precision,
            )
        schedule = extend_schedule(plan, schedule, name, measurements, elapsed_s=options.elapsed_s)
        save_document(options.run.schedule, schedule)
    return schedule
