"""Training of one configuration on one fold, from its preprocessed cases to its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autoseg.issues import Issue
from autoseg.networks.weights import save_weights
from autoseg.tracking.callbacks import Callback, Callbacks, FoldEnd, FoldStart, StepRecord
from autoseg.training.checkpoints import (
    CHECKPOINT_FILE,
    Checkpoints,
    load_latest,
    read_state,
    restore,
    saved_at_failure,
)
from autoseg.training.fold_spec import (
    FoldRun,
    FoldSpec,
    FoldState,
    add_issue,
    batch_source,
    copy_weights,
    make_fold_parts,
)
from autoseg.training.guards import (
    ClassGuard,
    CollapseGuard,
    DataGuard,
    FiniteGuard,
    OverfittingGuard,
    readable_errors,
    shrink_micro_batch,
)
from autoseg.training.loop import train
from autoseg.training.preflight import clear_fold, require_fit
from autoseg.training.sampling import load_batches, with_sought
from autoseg.training.validation import EpochHistory

BEST_FILE, FINAL_FILE = "best.safetensors", "final.safetensors"


def train_fold(
    spec: FoldSpec, callbacks: Sequence[Callback] = (), *, should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Train to the schedule's last step, or resume from the checkpoint in the spec's folder.

    Leaves ``final.safetensors``, ``best.safetensors`` (best moving average of the pseudo-Dice), ``history.jsonl``,
    ``issues.json`` and ``checkpoint.pt``. If ``should_stop`` says so after a step, that step is saved and `KeyboardInterrupt`
    raised. Raises `AutosegError` before the first step if plan, schedule and cases do not fit or memory does not suffice for a
    single sample, and later if the loss stays not finite; ``history.jsonl`` and ``issues.json`` then record the training up to
    there, and a later call resumes from the last checkpoint.
    """
    require_fit(spec)
    run, issues = _begin(spec, callbacks, should_stop)
    error: BaseException | None = None
    run.listeners.on_fold_start(
        FoldStart(
            configuration=spec.configuration.name,
            fold=spec.fold,
            key=spec.key,
            steps_done=run.steps_done,
            num_steps=spec.training.num_steps,
        )
    )
    try:
        for issue in issues:
            add_issue(run, issue, repeat=True)
        _take_steps(run)
        weights = run.parts.network.state_dict()
        save_weights(spec.folder / BEST_FILE, run.state.best or weights, key=spec.key)
        save_weights(spec.folder / FINAL_FILE, weights, key=spec.key)
    except BaseException as raised:
        error = raised
        raise
    finally:
        run.listeners.on_fold_end(FoldEnd(steps_done=run.steps_done, error=error))


def _take_steps(run: FoldRun) -> None:
    """All steps that are left; batches are drawn anew whenever a callback wants that."""
    num_steps, source = run.spec.training.num_steps, batch_source(run.spec, purpose="training")

    def on_step(record: StepRecord) -> None:
        run.listeners.on_step(record)
        run.steps_done = record.step + 1

    while run.steps_done < num_steps:
        steps = range(run.steps_done, num_steps)
        sought = with_sought(source, tuple(run.state.sought))
        batches = load_batches(sought, steps, num_workers=run.num_workers, device=run.spec.device)
        with readable_errors(run.spec.where):
            train(
                run.parts,
                saved_at_failure(batches, steps, run),
                steps,
                control=run,
                on_step=on_step,
                on_memory_error=lambda step: shrink_micro_batch(run, step),
            )


def _begin(
    spec: FoldSpec, callbacks: Sequence[Callback], should_stop: Callable[[], bool]
) -> tuple[FoldRun, tuple[Issue, ...]]:
    """The training as this machine can do it, from the newest checkpoint if there is one, with what is to be told of that."""
    checkpoint, damage = load_latest(spec.folder / CHECKPOINT_FILE, key=spec.key)
    batch_size = spec.training.batch_size
    cleared = clear_fold(spec, most=batch_size if checkpoint is None else checkpoint.state["micro_batch_size"])
    spec = cleared.spec
    parts, listeners = make_fold_parts(spec), Callbacks([])
    if checkpoint is None:
        state = FoldState(micro_batch_size=batch_size, good=copy_weights(parts.network))
    else:
        restore(parts, checkpoint)
        state = read_state(checkpoint)
    state.micro_batch_size = cleared.micro_batch_size
    steps_done = 0 if checkpoint is None else checkpoint.step
    run = FoldRun(
        spec=spec, parts=parts, state=state, listeners=listeners, num_workers=spec.num_workers, steps_done=steps_done
    )
    guards = [guard(run) for guard in (CollapseGuard, ClassGuard, DataGuard, OverfittingGuard)]
    # in this order: a skipped step belongs to its epoch, and a checkpoint holds the epoch that ends with its step
    listeners.members.extend((FiniteGuard(run), EpochHistory(run), *guards, Checkpoints(run, should_stop), *callbacks))
    notes = spec.start.notes if spec.start is not None and checkpoint is None else ()
    adapted = (
        Issue(code="training.weights_adapted", severity="note", where=spec.where, message=note) for note in notes
    )
    return run, (*damage, *adapted, *cleared.issues)
