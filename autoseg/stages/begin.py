"""How a call finds or starts a run: its folder, settings and device, and what is refused before anything is read."""

from __future__ import annotations

import io
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.compute.executor import available_cores
from autoseg.data.dataset import DatasetDescription
from autoseg.data.splits import cases_of_groups, cases_of_splits
from autoseg.data.tables import read_groups_table
from autoseg.imaging.readers import require_text
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import RunFolder, require_place_for_run, run_of
from autoseg.settings import STAGES, Difference, Settings, as_arguments, changes_of, differences, make_settings, updated
from autoseg.stages.run import (
    GIVE_ANOTHER,
    Run,
    discover,
    keep_first_settings,
    require_planned,
    require_redo,
    stored_settings,
    trained_folds,
)
from autoseg.storage.atomic import load_document, load_or_none, write_error
from autoseg.storage.cache import key_of
from autoseg.tracking.callbacks import make_callbacks
from autoseg.wording import as_line, count_noun
from planners import (
    DEFAULT_CPU_BUDGET_S,
    Plan,
    Schedule,
    configuration_names,
    unknown_fields,
)

if TYPE_CHECKING:
    import torch


logger = logging.getLogger("autoseg")


def find_run(target: Path | None, out: Path | None) -> tuple[Path | None, Path]:
    """The dataset, if ``target`` is one, and the run folder of a call.

    A folder with ``settings.json``, or in which a run was started, is a run; anything else is a dataset, whose run is in
    ``out`` (default ``run``). ``dataset.json`` stands for its folder.
    """
    target = target and described_folder(target)
    if target is not None and (RunFolder(target).settings.is_file() or RunFolder(target).is_begun):
        if out is not None and out.resolve() != target.resolve():
            issue = Issue(
                code="run.two_folders",
                where=str(target),
                message=f"is a run folder, but --out names another one, {out}",
                fix="pass only one of them",
            )
            raise AutosegError(issue)
        return None, target
    return target, Path("run") if out is None else out


def described_folder(path: Path) -> Path:
    """The folder that a ``dataset.json`` describes; any other path itself."""
    return path.parent if path.name == "dataset.json" and path.is_file() else path


def begin_run(target: Path | None, out: Path | None, given: Mapping[str, Any], **context: Any) -> Run:
    """The run of a call, with its settings updated.

    ``given`` are the settings of this call; everything else stays as in the run. Options that would make trained networks
    worthless are refused unless ``redo`` is in ``context``. ``device`` is looked for at once where ``needs_device``.
    The first settings are written at once unless they name what may not exist (`keep_first_settings`), others, and those of
    a run that lost them, by `keep_settings`. Raises `AutosegError` before anything is written.
    """
    dataset, root = find_run(target, out)
    require_place_for_run(root)
    stored = stored_settings(RunFolder(root))
    if dataset is None and stored is None:
        raise AutosegError(
            Issue(
                code="run.no_dataset",
                where="DATASET",
                message="is missing",
                fix="pass a folder of labelled volumes, or a run folder",
            )
        )
    given = {**given, **({} if dataset is None else {"dataset": dataset})}
    given, added_s = with_added_time(RunFolder(root), stored, given)
    settings = make_settings(given) if stored is None else updated(stored, given)
    folder = RunFolder(root, settings.work)
    require_text([root, *([] if settings.work is None else [settings.work])])
    require_free(folder, settings.dataset)
    needs_device = context.pop("needs_device", False)
    run = Run(
        folder=folder,
        settings=settings,
        num_threads=settings.threads or available_cores(),
        num_workers=settings.workers or available_cores(),
        added_s=added_s,
        **context,
    )
    if stored is not None:
        _refuse_differences(run, differences(stored, settings))
    refuse_contradictions(settings, folder)
    refuse_bad_files(settings)
    refuse_unknown_configurations(run)
    if dataset is not None and not dataset.exists():
        fix = "pass a folder of labelled volumes, or a run folder"
        raise AutosegError(Issue(code="dataset.missing", where=str(dataset), message="does not exist", fix=fix))
    lines: list[str] = []
    if needs_device:
        run = _with_device(run, lines)
        run = replace(run, callbacks=(*run.callbacks, *make_callbacks(settings.track, root)))
    start_log(folder)
    for line in lines:
        run.say(line)
    if not any((settings.set, settings.layout, settings.spec, settings.exclude)):
        keep_first_settings(run)
    return run


def with_added_time(
    folder: RunFolder, stored: Settings | None, given: Mapping[str, Any]
) -> tuple[Mapping[str, Any], float | None]:
    """``given`` with the whole budget instead of what ``--budget +1h`` adds to it, and the seconds that are added, if any.

    A schedule file that the run followed has done its part then. Raises `AutosegError` where there is nothing to add to.
    """
    text = given.get("budget")
    if not isinstance(text, str) or not text.strip().startswith("+"):
        return given, None
    where, more = f"--budget {text}", text.strip()[1:]
    added_s = make_settings({"dataset": folder.root, "budget": more}).budget or 0.0
    schedule = load_or_none(Schedule, folder.schedule)
    if stored is None or schedule is None:
        message = f"adds time to an existing run, but there is none in {folder.root}"
        fix = f"pass --budget {more} for a new run, or the folder of a run"
        raise AutosegError(Issue(code="run.nothing_to_add_to", where=where, message=message, fix=fix))
    if given.get("schedule") not in (None, "none"):
        raise AutosegError(_contradiction(where, f"--schedule {given['schedule']} already sets how long to train"))
    known = schedule.conditions
    default = DEFAULT_CPU_BUDGET_S if known.device == "cpu" else round(known.elapsed_s + schedule.expected_s)
    total = (known.budget_s or default if stored.budget is None else stored.budget) + added_s
    return {**given, "budget": total, "schedule": "none"}, added_s


def refuse_bad_files(settings: Settings) -> None:
    """Refuse files of folds, groups and schedules that cannot be read, before images are."""
    for path, named in ((settings.splits, cases_of_splits), (settings.groups, cases_of_groups)):
        if path is not None:
            named(path)
    if settings.groups_table is not None:
        read_groups_table(settings.groups_table)
    if settings.schedule is not None:
        load_document(Schedule, settings.schedule, fix=GIVE_ANOTHER)


def _with_device(run: Run, lines: list[str]) -> Run:
    """The run on its device; ``lines`` get what there is to say of it, once there is a log."""
    from autoseg.compute.device import choose_devices, introduce_device, set_threads

    issues: list[Issue] = []
    devices = choose_devices(run.settings.device, issues.append)
    count = run.settings.ddp or 1
    if run.ranks is not None:
        count, devices = 1, devices[:1]
    if count > 1:
        devices = _devices_of_one_model(devices, count)
    elif run.fold is not None or (run.callbacks and len(devices) > 1):
        if run.fold is None:
            issues.append(_one_device_issue(devices[0]))
        devices = devices[:1]
    on_cpu = max(1, sum(device.type == "cpu" for device in devices))
    if run.settings.threads is None:
        run = replace(run, num_threads=max(1, available_cores() // on_cpu))
    set_threads(run.num_threads)
    first = introduce_device(devices[0], num_threads=run.num_threads)
    names = tuple(map(str, devices)) if len(devices) > 1 else ()
    how = "one training at a time" if count > 1 else "trainings side by side"
    more = f"; {how} on {', '.join(names)}" if names else ""
    if run.ranks is not None:
        more = f"; one training at a time by {run.ranks.count} processes of torchrun"
    lines += [f"Device: {first}{more}", *map(as_line, issues)]
    together, beside = (names, ()) if count > 1 else ((), names)
    return replace(run, device_name=str(devices[0]), ddp=together, device_names=beside)


def _devices_of_one_model(devices: Sequence[torch.device], count: int) -> tuple[torch.device, ...]:
    """The first ``count`` of the devices; a CPU takes any number of processes. Raises `AutosegError` for fewer GPUs."""
    if len(devices) == 1 and devices[0].type == "cpu":
        return (devices[0],) * count
    if len(devices) < count:
        message = f"{count_noun(len(devices), 'device')} for {count} processes: {', '.join(map(str, devices))}"
        fix = f"use --ddp {len(devices)}, or name as many --devices"
        raise AutosegError(Issue(code="ddp.too_few_devices", where=f"--ddp {count}", message=message, fix=fix))
    return tuple(devices[:count])


def _one_device_issue(device: torch.device) -> Issue:
    message = f"callbacks are called in this process, so everything is trained on {device}"
    fix = "omit them to use all devices"
    return Issue(code="device.callbacks", severity="note", where="--devices", message=message, fix=fix)


def _refuse_differences(run: Run, changed: Sequence[Difference]) -> None:
    """Options that were given otherwise before are named with what they cost, and need ``--redo`` where that is a training.

    Names that do not exist are refused first.
    """
    deciding = [each for each in changed if each.option.decides]
    if deciding:
        _refuse_unknown_names(run, {each.name for each in deciding})
        of_trainings = [each for each in deciding if STAGES.index(each.option.stage) <= STAGES.index("train")]
        costly = [each for each in of_trainings if run.added_s is None or each.name not in ("budget", "schedule")]
        costly = [each for each in costly if each.name != "schedule" or not _is_given_present(run)]
        if costly and not _are_of_model(run):
            instead = "choose another run folder with --out"
            if [each.name for each in costly] == ["budget"]:
                instead = f"add time to the trained networks (autoseg run {run.folder.root} --budget +1h), {instead}"
            require_redo(run, [str(each) for each in costly], code="run.option_differs", instead=instead)
        run.say(f"Changed since the last call: {'; '.join(map(str, deciding))}")


def _is_given_present(run: Run) -> bool:
    """Whether the schedule file that is given says what the run's own schedule says: where it trains otherwise, its stage refuses."""
    given, present = run.settings.schedule, load_or_none(Schedule, run.folder.schedule)
    return given is not None and present is not None and key_of(load_or_none(Schedule, given)) == key_of(present)


def _are_of_model(run: Run) -> bool:
    """Whether the run's model was made with the present options, and no other training is begun: stages find what is left to do."""
    from autoseg.inference.bundle import open_bundle

    records = [run.folder.stage(f"train-{name}-fold_{fold}") for name, fold in trained_folds(run.folder)]
    with suppress(AutosegError):
        made_with = open_bundle(run.folder.model).description.options
        return made_with == as_arguments(run.settings, deciding=True) and all(path.is_file() for path in records)
    return False


def _refuse_unknown_names(run: Run, names: set[str]) -> None:
    if not names.isdisjoint({"layout", "exclude"}):
        discover(run)
    if "configurations" in names and run.folder.plan.is_file():
        require_planned(run.plan.names, run)


def refuse_unknown_configurations(run: Run) -> None:
    """Refuse configurations that no plan has, before images are read; a plan that is there may have others."""
    if not run.folder.plan.is_file() and run.settings.pretrained is None:
        require_planned(configuration_names(), run)


def refuse_contradictions(settings: Settings, folder: RunFolder) -> None:
    """Refuse options that cannot be followed, alone or together, all at once."""
    issues = [
        *unknown_fields("plan", changes_of(settings, "plan")),
        *unknown_fields("schedule", changes_of(settings, "schedule")),
    ]
    if settings.pretrained is not None:
        if settings.pretrained.resolve() == folder.root.resolve():
            raise AutosegError(
                Issue(
                    code="settings.pretrained_is_run",
                    where=f"--pretrained {settings.pretrained}",
                    message="is the run folder itself, whose model would be overwritten",
                    fix="choose another folder with --out, or omit --pretrained to resume the run",
                )
            )
        because = f"the plan of --pretrained {settings.pretrained} fixes networks, patch and spacing"
        fixed = {
            "--preset": settings.preset != "default",
            "--memory-gb": settings.memory_gb is not None,
            "--target-spacing": settings.target_spacing is not None,
        }
        issues += [_contradiction(name, because) for name, given in fixed.items() if given]
    own_folds = {
        "--folds": settings.folds is not None,
        "--leave-one-group-out": settings.leave_one_group_out,
        "--hold-out-groups": settings.hold_out_groups is not None,
    }
    given = [name for name, is_given in own_folds.items() if is_given]
    if settings.splits is not None:
        issues += [_contradiction(name, f"the folds of --splits {settings.splits} are fixed") for name in given]
    elif len(given) > 1:
        issues.append(_contradiction(given[0], f"{given[-1]} gives each group a fold"))
    if settings.hold_out_groups is not None and settings.groups_table is None:
        message, fix = "needs --groups-table FILE, which has the column", "add it"
        issues.append(Issue(code="settings.contradiction", where="--hold-out-groups", message=message, fix=fix))
    if issues:
        raise AutosegError(*issues, headline="these options contradict each other:")


def _contradiction(option: str, because: str) -> Issue:
    return Issue(code="settings.contradiction", where=option, message=because, fix="omit one of them")


def require_free(folder: RunFolder, dataset: Path) -> None:
    """Raise `AutosegError` where the run folder is the dataset itself, or holds files of others that it would overwrite.

    A plan may have been put into it for the run to follow.
    """
    for option, place in (("--out", folder.root), ("--work", folder.work)):
        if place is not None and place.resolve() == dataset.resolve():
            raise _not_free(place, "is the dataset folder, which autoseg never changes", option)
    if folder.is_begun or folder.settings.is_file():
        return
    others = [
        path.name for path in (folder.fingerprint, folder.schedule, folder.splits, folder.selection) if path.is_file()
    ]
    if others:
        raise _not_free(folder.root, f"has {', '.join(others)}, but no run was started there")
    if folder.dataset.is_file():
        try:
            load_document(DatasetDescription, folder.dataset)
        except AutosegError as error:
            raise _not_free(folder.dataset, "was not written by a run, and would be overwritten") from error


def require_free_for_plan(folder: RunFolder, dataset: Path) -> None:
    """Raise `AutosegError` where a plan that is made of the files in ``dataset`` may not be put.

    That is in a dataset, in a run, which has its own plan, and over a ``plan.json`` that is not a plan.
    """
    require_free(folder, dataset)
    if folder.is_begun or folder.dataset.exists():
        raise _not_free(folder.root, "is a run folder with its own plan")
    if not folder.plan.exists():
        return
    try:
        load_document(Plan, folder.plan)
    except AutosegError as error:
        raise _not_free(folder.plan, "exists and is not an autoseg plan, so it is not replaced") from error


def _not_free(path: Path, message: str, option: str = "--out") -> AutosegError:
    return AutosegError(
        Issue(code="run.folder_not_free", where=str(path), message=message, fix=f"choose another folder with {option}")
    )


def require_place_for_scores(path: Path) -> None:
    """Raise `AutosegError` where scores may not be put at ``path``: over a file that is no table of scores, or over those of a run.

    A run relies on the scores of its cross-validation and of its folds: others in their place would be taken for its own.
    """
    from autoseg.evaluation.table import read_summary

    whole, fix = path.resolve(), "choose another file with --out"
    run = run_of(whole)
    own = run is not None and (whole.parent == run.cross_validation or run.models in whole.parents)
    if own and whole.name == "summary.json":
        message = f"contains the scores of the run in {run.root}"  # type: ignore[union-attr]
        raise AutosegError(Issue(code="scores.of_a_run", where=str(path), message=message, fix=fix))
    if not path.exists():
        return
    try:
        read_summary(path)
    except AutosegError as error:
        message = "exists and was not written by autoseg evaluate, so it is not replaced"
        raise AutosegError(Issue(code="scores.not_free", where=str(path), message=message, fix=fix)) from error


def start_log(folder: RunFolder) -> None:
    """Write every line to the run's ``log.txt``. Raises `AutosegError` where the folder is not writable."""
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder.log, delay=True)
        # Without a buffer, which would refuse the line of a signal handler that interrupts the writing of another.
        handler.stream = io.TextIOWrapper(io.FileIO(folder.log, "ab"), encoding="utf-8", write_through=True)
    except OSError as error:
        raise write_error(folder.log, error) from error
    for other in [each for each in logger.handlers if isinstance(each, logging.FileHandler)]:
        logger.removeHandler(other)  # of a run that this process worked on before
        other.close()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # The stage that meets a full disk reports it; a log line that no longer fits must not add a traceback.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.debug("called: %s", shlex.join(sys.argv))
