"""Plan: what to do with the dataset, by rules; a plan that the user edited is kept."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

from autoseg.preprocessing.fingerprint import describe_unusual_classes
from autoseg.preprocessing.preprocess import shared_inputs
from autoseg.settings import changes_of
from autoseg.stages.pretrained import fit_plan, open_pretrained
from autoseg.stages.run import Run, require_redo, trained_folds
from autoseg.stages.work import Work, changed_inputs, is_edited, read_record, reads_as, written_document
from autoseg.storage.atomic import save_document
from autoseg.storage.cache import key_of
from planners import (
    Configuration,
    Edit,
    Plan,
    edited_plan,
    estimate_configuration_memory,
    find_edits,
    plan_dataset,
    refuse_bad_assignments,
    trial_training,
)


def plan(run: Run) -> Generator[Work, None, None]:
    """Apply the planner's rules to the fingerprint, then what the user set (``--set plan.…``).

    A ``plan.json`` that was edited since, or put there for the run, is kept until ``--replan``. A GPU smaller than the
    preset's memory caps the plan that a run begins with; continued on another device, the run keeps its memory target
    (decision record 0118).
    """
    own = planned(run)
    if is_edited(run, "plan", run.folder.plan, Plan, own):
        changes = "; ".join(map(str, find_edits(own, run.plan))) or "nothing that affects results"
        run.say(f"plan.json was edited: {changes}; keeping it (--replan discards the edits)")
    else:
        yield Work(
            name="plan",
            what="the plan",
            inputs=partial(_inputs, run),
            outputs=[run.folder.plan],
            edited={run.folder.plan: Plan},
            is_whole=reads_as(Plan),
            do=partial(_save, run, own),
            keeps_record=True,
        )
    trainings = [
        trial_training(each, base_features=each.network.features[0], batch_size=each.batch_size, precision="float32")
        for each in run.plan.configurations
    ]
    refuse_bad_assignments(trainings, changes_of(run.settings, "schedule"))
    _describe(run, run.plan)


def _save(run: Run, own: Plan) -> None:
    refuse_other_plan(run, own)
    save_document(run.folder.plan, own)


def planned(run: Run, *, changed: bool = True) -> Plan:
    """The plan by the rules and the user's settings, whatever ``plan.json`` says; ``changed``: by ``--set``, too."""
    settings = run.settings
    goes_on = run.folder.plan.is_file() and not run.replan and not changed_inputs(run.folder, "plan", _inputs(run))
    before = written_document(run.folder, "plan", run.folder.plan, Plan) or run.plan if goes_on else None
    pretrained = open_pretrained(run)
    own = plan_dataset(
        run.fingerprint,
        preset=settings.preset,
        memory_gb=settings.memory_gb,
        device_memory_gb=device_memory_gb(run) if before is None else before.memory_target_gb,
        target_spacing_mm=settings.target_spacing,
        strict_reference=settings.strict_reference,
    )
    plan = own if pretrained is None else fit_plan(pretrained, own)
    return edited_plan(plan, changes_of(settings, "plan")) if changed else plan


def trained_by(plan: Plan, name: str) -> str:
    """Key of all of a plan that the weights of a configuration depend on."""
    return key_of(plan.configuration(name), shared_inputs(plan))


def is_trained_by(run: Run, plan: Plan, name: str, fold: int) -> bool | None:
    """Whether a fold was trained by this plan; None for one that is not finished."""
    record = read_record(run.folder, f"train-{name}-fold_{fold}")
    if record is None:
        return None
    return name in plan.names and record.inputs.get("plan") == trained_by(plan, name)


def refuse_other_plan(run: Run, plan: Plan) -> None:
    """Raise `AutosegError` where networks were trained by another plan, unless they may be trained again."""
    others = [fold for fold in trained_folds(run.folder) if is_trained_by(run, plan, *fold) is False]
    require_redo(run, ["the plan changed"], code="run.plan_changed", folds=others, plan=plan)


def plan_edits(run: Run) -> tuple[Edit, ...]:
    """What the user changed in ``plan.json`` or by ``--set``, next to the values of the rules."""
    return find_edits(planned(run, changed=False), run.plan)


def _inputs(run: Run) -> dict[str, str]:
    settings = run.settings
    chosen = {
        "target spacing (--target-spacing)": settings.target_spacing,
        "pretrained model (--pretrained)": settings.pretrained and open_pretrained(run).key,  # type: ignore[union-attr]
        "changes (--set)": changes_of(settings, "plan") or None,
    }
    return {
        "fingerprint": key_of(run.fingerprint),
        "preset (--preset)": key_of(settings.preset),
        "memory to plan for (--memory-gb)": key_of(settings.memory_gb),
        **{name: key_of(value) for name, value in chosen.items() if value is not None},
    }


def device_memory_gb(run: Run) -> float | None:
    """Memory of the GPU that trains, in whole GB (1e9 bytes); None for other devices.

    Whole ones, because drivers keep a small part that differs from version to version.
    """
    if not run.device_name.startswith("cuda"):
        return None
    import torch

    return max(1.0, float(round(torch.cuda.get_device_properties(run.device).total_memory / 1e9)))


def most_needed_gb(plan: Plan) -> float:
    """Memory of a CUDA GPU in GB (1e9 bytes) that training takes, of the configuration that takes most."""
    estimates = (
        estimate_configuration_memory(configuration, dtype="bfloat16", device="cuda")
        for configuration in plan.configurations
        if len(configuration.network.features) > 1
    )
    return max((estimate.training_bytes / 1e9 for estimate in estimates), default=0.0)


def _describe(run: Run, plan: Plan) -> None:
    device_gb = device_memory_gb(run) if run.settings.pretrained is None else None
    if run.settings.memory_gb is None and device_gb is not None and device_gb < (needed := most_needed_gb(plan)):
        run.say(
            f"Note: this plan needs about {needed:.1f} GB, but the GPU has {device_gb:g} GB: what does not fit "
            f"is computed in micro-batches; --memory-gb {device_gb:g} plans for this GPU"
        )
    for sentence in describe_unusual_classes(run.fingerprint):
        run.say(f"Note: {sentence}")
    for configuration in plan.configurations:
        run.say(f"Plan: {describe_configuration(configuration)}")


def describe_configuration(configuration: Configuration) -> str:
    """One line: name, network, patch, spacing."""
    patch = " x ".join(str(n) for n in configuration.patch_shape)
    spacing = " x ".join(f"{s:.3g}" for s in configuration.spacing_mm)
    stages = len(configuration.network.features)
    return f"{configuration.name}: {configuration.network.family} with {stages} stages, patch {patch}, {spacing} mm"
