"""A run on a cluster: its work as commands that are sent there, in order, and what each part of it is doing.

The run folder is the state. Every command is what a person could type, finds there what is done, and resumes the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from autoseg.compute.cluster import (
    Address,
    Cluster,
    DaskCluster,
    Slurm,
    Task,
    open_dask,
    parse_slurm_options,
    read_code,
    read_queue,
)
from autoseg.compute.executor import stop_requests
from autoseg.compute.slots import Slots
from autoseg.inference.model import final_weights
from autoseg.inference.predictions import predictions_among
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import RunFolder
from autoseg.settings import Settings, flag_of
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.train import (
    all_keys,
    asked_jobs,
    is_trained,
    names_of,
    refuse_trained_otherwise,
    with_stages_before,
)
from autoseg.stages.work import read_record
from autoseg.storage.atomic import load_or_none
from autoseg.storage.locks import hold_lock, owner_of
from autoseg.tracking.callbacks import HISTORY_FILE, MOMENT_FILE, Moment, read_history
from autoseg.tracking.progress import Reporter
from autoseg.training.checkpoints import CHECKPOINT_FILE
from autoseg.wording import count_noun
from planners import Schedule

PREPARE, SELECT, FINISH = "prepare", "selection", "finish"
"""Names of tasks before and after the trainings."""


def call_words(given: Mapping[str, Any], settings: Settings) -> list[str]:
    """Options of a call as a command line takes them in any folder; ``settings`` has their whole paths."""
    words: list[str] = []
    for name, value in given.items():
        flag, known = flag_of(name), getattr(settings, name)
        match known if isinstance(known, Path) else value:
            case None:
                continue
            case bool():
                words.append(flag if value else f"--no-{flag[2:]}")
            case Mapping():
                words += [word for key, text in value.items() for word in (flag, f"{key}={text}")]
            case list() | tuple() if name == "set":
                words += [word for each in value for word in (flag, str(each))]
            case list() | tuple():
                words += [flag, ",".join(map(str, value))]
            case whole:
                words += [flag, str(whole)]
    return words


def run_there(
    run: Run, address: Address, given: Mapping[str, Any], *, until: Literal["train", "report"], slurm_options: str = ""
) -> Run:
    """Send what is left of a run to a cluster, and wait for it: all before training, each fold, then the rest.

    ``given`` are the options of this call. A killed call loses nothing: the next one waits for what is in Slurm's queue and
    sends the rest. Raises `AutosegError` with an issue for each task that failed, after all others.
    """
    root, folder = run.folder.root.absolute(), run.folder.cluster.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with (
        hold_lock(run.folder.lock("cluster"), what=f"the run in {root} on a cluster"),
        open_cluster(address, folder=folder, slurm_options=slurm_options) as cluster,
    ):
        send = partial(send_tasks, cluster, reporter=run.reporter)
        if prepare := preparation(run, given):
            if isinstance(cluster, DaskCluster):  # cases are spread over the workers
                prepare = replace(prepare, command=(*prepare.command, "--cluster", str(cluster.address)))
            send(PREPARE, [prepare], title="Preparing the training")
        run = replace(run, settings=Run.open(root).settings)
        for name, tasks in training_waves(run):
            send(name, tasks, title="Training")
        if until == "report":
            for name, tasks, title in evaluating(run, cluster):
                send(name, tasks, title=title)
            send(FINISH, [finishing(run)], title="Reporting")
    return run


def open_cluster(
    address: Address, *, folder: Path, slurm_options: str
) -> AbstractContextManager[DaskCluster] | AbstractContextManager[Slurm]:
    """The cluster at ``address``, whose machines share ``folder``."""
    if address.kind == "slurm":
        return nullcontext(Slurm(options=parse_slurm_options(slurm_options), most=address.number))
    return open_dask(address, folder=folder)


def send_tasks(cluster: Cluster, name: str, tasks: Sequence[Task], *, title: str, reporter: Reporter) -> None:
    """Do all tasks there. Raises `AutosegError` with those that failed."""
    with reporter.track(title, len(tasks)) as tracker:
        issues = cluster.run(name, tasks, say=reporter.say, done=lambda task: tracker.advance(note=task.name))
    if issues:
        raise AutosegError(*issues, headline=f"{len(issues)} of {count_noun(len(tasks), 'task')} failed")


SLURM_PARTS = 4
"""Of a prediction, where no number of tasks is given."""


def predict_there(
    words: Sequence[str], output: Path, address: Address, *, slurm_options: str, reporter: Reporter
) -> list[Path]:
    """Send a prediction to a cluster in equal parts, one for each worker; ``words`` are its command. Returns the label maps."""
    folder = output.absolute() / ".cluster"
    folder.mkdir(parents=True, exist_ok=True)
    with open_cluster(address, folder=folder, slurm_options=slurm_options) as cluster:
        number = cluster.num_workers if isinstance(cluster, DaskCluster) else cluster.most or SLURM_PARTS
        send_tasks(cluster, "predict", _parts(words, folder, number), title="Predicting, in parts", reporter=reporter)
    return sorted(predictions_among(list(output.iterdir())))


def _parts(words: Sequence[str], folder: Path, number: int) -> list[Task]:
    return [
        Task(name=f"part-{k}", command=(*words, "--part", f"{k}/{number}"), folder=folder) for k in range(1, number + 1)
    ]


def predict_on(
    devices: Sequence[str], words: Sequence[str], output: Path, *, num_threads: int, reporter: Reporter
) -> list[Path]:
    """Predict in equal parts, one on each of these devices of this machine."""
    folder = output.absolute() / ".cluster"
    folder.mkdir(parents=True, exist_ok=True)
    with stop_requests(reporter.say) as should_stop:
        slots = Slots(devices=devices, options=("--threads", str(num_threads)), should_stop=should_stop)
        tasks = _parts(words, folder, len(devices))
        send_tasks(slots, "predict", tasks, title=f"Predicting on {', '.join(devices)}", reporter=reporter)
    return sorted(predictions_among(list(output.iterdir())))


def write_scripts(
    run: Run, address: Address, given: Mapping[str, Any], *, until: str, slurm_options: str
) -> list[Path]:
    """Write the job scripts of what is left of a run, as far as its trainings are known, and submit nothing."""
    if address.kind != "slurm":
        fix = "use --cluster slurm, or omit it"
        message = f"writes job scripts, and --cluster {address} has none"
        raise AutosegError(Issue(code="settings.contradiction", where="--dry-run", message=message, fix=fix))
    prepare = preparation(run, given)
    jobs = [(PREPARE, [prepare])] if prepare else training_waves(run)
    if until == "report":
        jobs.append((FINISH, [finishing(run)]))
    slurm = Slurm(options=parse_slurm_options(slurm_options), most=address.number)
    return [slurm.write_script(name, tasks) for name, tasks in jobs]


def preparation(run: Run, given: Mapping[str, Any]) -> Task | None:
    """All before the trainings; None where a schedule was made with the present settings, and nothing is to be redone."""
    root, calls = str(run.folder.root.absolute()), {"redo": run.redo, "replan": run.replan}
    is_scheduled = run.folder.schedule.is_file() and read_record(run.folder, "schedule") is not None
    if is_scheduled and not any(calls.values()) and load_or_none(Settings, run.folder.settings) == run.settings:
        return None
    words = [*call_words(given, run.settings), *(flag_of(name) for name, is_given in calls.items() if is_given)]
    target = [str(run.settings.dataset), "--out", root] if not run.folder.plan.is_file() else [root]
    return Task(name=PREPARE, command=("schedule", *target, *words), folder=run.folder.cluster.absolute())


def evaluating(run: Run, cluster: DaskCluster | Slurm) -> list[tuple[str, list[Task], str]]:
    """Selection and test images, as far as it is worth it to divide them: what is left is done with the report."""
    folder = run.folder.cluster.absolute()
    command: tuple[str, ...] = ("select", str(run.folder.root.absolute()))
    is_dask = isinstance(cluster, DaskCluster)
    workers = cluster.num_workers if isinstance(cluster, DaskCluster) else cluster.most or SLURM_PARTS
    if isinstance(cluster, DaskCluster):  # its cases are counted and scored by all workers
        command = (*command, "--cluster", str(cluster.address))
    number = min(workers, len(run.dataset.test))
    if number < 2 and not is_dask:
        return []
    select = (SELECT, [Task(name=SELECT, command=command, folder=folder)], "Selecting")
    predict = ("predict", own_predictions(run, number), "Predicting the test images")
    return [select, predict] if number > 1 else [select]


def own_predictions(run: Run, number: int) -> list[Task]:
    """So many tasks that share the test images of a run."""
    folder, command = run.folder.cluster.absolute(), ("predict", str(run.folder.root.absolute()))
    return [Task(name=f"predict-{k}", command=command, folder=folder) for k in range(1, number + 1)]


def finishing(run: Run) -> Task:
    """All after the trainings."""
    command = ("run", str(run.folder.root.absolute()))
    return Task(name=FINISH, command=command, folder=run.folder.cluster.absolute())


def training_waves(run: Run) -> list[tuple[str, list[Task]]]:
    """Trainings that are left, by what must be done before: first stages of cascades, then those that follow them."""
    prepared = read_prepared(run)
    jobs = with_stages_before(prepared, asked_jobs(run, prepared.schedule))
    refuse_trained_otherwise(run, prepared, jobs)
    keys = all_keys(run, prepared)
    waves: dict[int, list[Task]] = {}
    for pair in names_of(jobs):
        if not prepared.schedule.steps_of(*pair) and run.fold is None:
            continue  # left out
        task = training_task(run, prepared, pair, keys[pair])
        if not task.is_done():
            waves.setdefault(len(prepared.plan.chain(pair[0])), []).append(task)
    numbered = enumerate((waves[depth] for depth in sorted(waves)), start=1)
    return [("train" if number == 1 else f"train-{number}", tasks) for number, tasks in numbered]


def training_pairs(schedule: Schedule) -> dict[str, tuple[str, int]]:
    """Configuration and fold of each training, by the name of its task."""
    pairs = [(each.configuration, fold) for each in schedule.trainings for fold in range(schedule.num_folds)]
    return {task_name(*pair): pair for pair in pairs}


def task_name(name: str, fold: int) -> str:
    """Of the training and validation of one fold."""
    return f"train-{name}-fold_{fold}"


def training_task(run: Run, prepared: Prepared, pair: tuple[str, int], key: str) -> Task:
    """The training and validation of one fold."""
    name, fold = pair
    root = str(run.folder.root.absolute())
    words = ["train", root, "--configuration", name, "--fold", str(fold), "--wait", *["--redo"] * run.redo]
    return Task(
        name=task_name(name, fold),
        command=tuple(words),
        folder=run.folder.cluster.absolute(),
        is_done=partial(is_validated, run.folder, prepared, pair, key),
    )


def is_validated(folder: RunFolder, prepared: Prepared, pair: tuple[str, int], key: str) -> bool:
    """Whether a fold is trained and, where it has cases for that, validated."""
    name, fold = pair
    if not is_trained(final_weights(folder, name, fold), key):
        return False
    record = read_record(folder, f"validate-{name}-fold_{fold}")
    return not prepared.splits.folds[fold].val or (record is not None and record.inputs["model"] == key)


State = Literal["done", "running", "waiting", "failed", "not begun", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStatus:
    """One part of a run: a stage, or the training of one fold."""

    name: str
    state: State
    where: str = ""
    """Process and machine, job or worker."""
    note: str = ""
    """Steps done; why it waits; the log of what failed."""


def status(run: Run) -> list[UnitStatus]:
    """The parts of a run that are done, running (and where), waiting or failed; from its folder, its locks and Slurm's queue."""
    folder, schedule = run.folder, load_or_none(Schedule, run.folder.schedule)
    named = {} if schedule is None else training_pairs(schedule)
    tasks = [_sent(folder, name) for name in (PREPARE, *named, FINISH)]
    parts = [_sent(folder, path.stem) for path in sorted(folder.cluster.glob("predict-*.json"))]
    later = [_sent(folder, SELECT), *parts, tasks[-1]]
    queue = read_queue([*tasks, *later[:-1]])
    units = [_stage(folder, name) for name in ("check", "fingerprint", "plan", "schedule")]
    units += [_task(folder, tasks[0], queue)] if any(unit.state != "done" for unit in units) else []
    if schedule is not None:
        prepared = read_prepared(run)
        keys = all_keys(run, prepared)
        for pair, task in zip(named.values(), tasks[1:-1], strict=True):
            if schedule.steps_of(*pair):
                units.append(_training(run, prepared, pair, keys[pair], task, queue))
    page = (folder.report / "index.html").is_file()
    ends = [_stage(folder, "select"), UnitStatus(name="report", state="done" if page else "not begun")]
    units += ends
    sent = [_task(folder, task, queue) for task in later] if any(unit.state != "done" for unit in ends) else []
    units += [unit for unit in sent if unit.state != "not begun"]
    return [unit for unit in units if unit.name != PREPARE or unit.state != "not begun"]


def _sent(folder: RunFolder, name: str) -> Task:
    """A task as it may have been sent, for its files."""
    return Task(name=name, command=(), folder=folder.cluster.absolute())


def _stage(folder: RunFolder, name: str) -> UnitStatus:
    if owner := owner_of(folder.lock(name)):
        return UnitStatus(name=name, state="running", where=owner)
    return UnitStatus(name=name, state="not begun" if read_record(folder, name) is None else "done")


def _task(folder: RunFolder, task: Task, queue: Mapping[str, tuple[str, str]]) -> UnitStatus:
    """What is known of a task that was sent to a cluster, apart from its results."""
    record = task.read_record()
    if record is None:
        return UnitStatus(name=task.name, state="not begun")
    if (found := queue.get(task.name)) is not None:
        state: State = "running" if found[0] in ("RUNNING", "COMPLETING") else "waiting"
        return UnitStatus(name=task.name, state=state, where=record.place, note=f"{found[0].lower()} {found[1]}")
    if record.state == "failed" or (record.job is not None and read_code(task) != 0):
        return UnitStatus(name=task.name, state="failed", where=record.place, note=f"{task.log}: {task.last_line}")
    is_driven = any(owner_of(folder.lock(name)) for name in ("cluster", "devices"))
    if record.job is None and record.state in ("waiting", "running") and is_driven:
        return UnitStatus(name=task.name, state=record.state, where=record.place)
    return UnitStatus(name=task.name, state="not begun")


def _training(
    run: Run,
    prepared: Prepared,
    pair: tuple[str, int],
    key: str,
    task: Task,
    queue: Mapping[str, tuple[str, str]],
) -> UnitStatus:
    name, fold = pair
    if is_validated(run.folder, prepared, pair, key):
        return UnitStatus(name=task.name, state="done")
    sent = _task(run.folder, task, queue)
    history, _ = read_history(run.folder.fold(name, fold) / HISTORY_FILE)
    moment = load_or_none(Moment, run.folder.fold(name, fold) / MOMENT_FILE)
    done = max([each.step for each in history[-1:]], default=0)
    if moment is not None and moment.key == key:
        done = max(done, moment.step)
    steps = f"step {done} of {prepared.schedule.steps_of(name, fold)}" if done else ""
    owners = (owner_of(run.folder.lock(f"{stage}-{name}-fold_{fold}")) for stage in ("train", "validate"))
    if owner := next((each for each in owners if each), None):
        where = f"{owner}, {sent.where}" if sent.where else owner
        return replace(sent, state="running", where=where, note=steps)
    if sent.state == "not begun" and (run.folder.fold(name, fold) / CHECKPOINT_FILE).is_file():
        return replace(sent, state="stopped", note=steps)
    return sent
