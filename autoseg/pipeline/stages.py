"""The stages before training: look, check, fingerprint, plan, preprocess. Each does first what is missing before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from autoseg.data.checks import check_dataset, require_clean
from autoseg.data.dataset import DatasetDescription, describe_dataset, errors_that_remain, leave_out_bad
from autoseg.data.discovery import discover_dataset
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.pipeline.contents import read_contents, trained_on
from autoseg.pipeline.finetuning import fit_plan, open_pretrained
from autoseg.pipeline.freshness import (
    consumed_before,
    open_stage,
    refuse_changes,
    refuse_redoing,
    what_changed,
)
from autoseg.pipeline.options import Options
from autoseg.pipeline.resources import warn_of_disk
from autoseg.pipeline.splitting import refuse_bad_folds
from autoseg.preprocessing.fingerprint import describe_unusual_classes, take_fingerprint
from autoseg.preprocessing.preprocess import Target, preprocess_dataset
from autoseg.storage.atomic import load_document, save_document
from autoseg.storage.cache import key_of
from autoseg.storage.locks import hold_lock
from autoseg.wording import count_noun
from planners import (
    Configuration,
    Fingerprint,
    Plan,
    method_configurations,
    plan_dataset,
    preferred_configurations,
    why_untrainable,
)


def check_stage(options: Options) -> DatasetDescription:
    """Find out what is in the folder and whether it can be used; raises with all errors at once.

    With ``skip_bad`` cases that have an error are left out, and only errors of the dataset as a whole raise.
    """
    dataset = discover_dataset(
        options.dataset,
        layout=options.layout,
        spec=options.spec,
        looks=options.run.label_looks,
        num_workers=options.num_workers,
        reporter=options.reporter,
    )
    options.reporter.say(f"Found {describe_dataset(dataset)}")
    dataset = read_contents(options.run, dataset, num_workers=options.num_workers)
    consumed = {"dataset": key_of(dataset), "choice to leave bad cases out (--skip-bad)": key_of(options.skip_bad)}
    outputs = [options.run.dataset]
    with open_stage(
        options.run, "check", consumed, outputs, what="the check", say=options.reporter.say, forget=options.may_retrain
    ) as to_do:
        if not to_do:
            return load_document(DatasetDescription, options.run.dataset)
        findings = check_dataset(
            dataset, num_workers=options.num_workers, reporter=options.reporter, keep_in=options.run.kept("check")
        )
        if options.skip_bad:
            require_clean(errors_that_remain(findings))
            checked = leave_out_bad(dataset, findings)
        else:
            require_clean(findings)
            checked = dataset.model_copy(update={"issues": tuple(findings)})
        if not options.may_retrain:
            refuse_changes(options.run, "fingerprint", fingerprint_inputs(options, checked), what="the fingerprint")
        noted = [f for f in checked.issues if f.severity != "error"]
        save_document(options.run.dataset, checked)
    warnings = sum(finding.severity == "warning" for finding in noted)
    left_out = (
        f"{len(checked.left_out)} left out for errors ({', '.join(checked.left_out)})"
        if checked.left_out
        else "no errors"
    )
    options.reporter.say(
        f"Check: {left_out}, {count_noun(warnings, 'warning')}, {count_noun(len(noted) - warnings, 'note')}"
    )
    for finding in noted:
        if finding.severity == "warning":
            options.reporter.say(f"  {finding.where}: {finding.message}; {finding.fix}")
    return checked


def fingerprint_stage(options: Options) -> tuple[DatasetDescription, Fingerprint]:
    """Sizes, spacings and intensities of the training cases."""
    dataset = check_stage(options)
    canonical = not options.strict_reference
    consumed, outputs, say = fingerprint_inputs(options, dataset), [options.run.fingerprint], options.reporter.say
    with open_stage(
        options.run, "fingerprint", consumed, outputs, what="the fingerprint", say=say, may_redo=options.may_retrain
    ) as to_do:
        if not to_do:
            return dataset, load_document(Fingerprint, options.run.fingerprint)
        fingerprint = take_fingerprint(
            dataset,
            num_workers=options.num_workers,
            reporter=options.reporter,
            canonical=canonical,
            keep_in=options.run.kept("fingerprint"),
        )
        save_document(options.run.fingerprint, fingerprint)
    return dataset, fingerprint


def fingerprint_inputs(options: Options, dataset: DatasetDescription) -> dict[str, str]:
    """What a fingerprint is taken of."""
    return {"dataset": trained_on(dataset), "orientation (--strict-reference)": key_of(not options.strict_reference)}


def plan_stage(options: Options) -> tuple[DatasetDescription, Plan]:
    """What to do with the dataset, and why.

    A GPU smaller than the preset's memory caps the plan that a run begins with; continued on another device, the run keeps
    its memory target (decision record 0118).
    """
    pretrained = open_pretrained(options)  # what is no model is refused before images are read
    dataset, fingerprint = fingerprint_stage(options)
    device_gb = None if pretrained is not None else _device_memory_gb(options)
    spacing_mm = options.target_spacing_mm
    consumed = {
        "preset (--preset)": key_of(options.preset),
        "memory to plan for (--memory-gb)": key_of(options.memory_gb),
        **({} if spacing_mm is None else {"target spacing (--target-spacing)": key_of(spacing_mm)}),
    }
    changes, outputs, say = what_changed(options.run, "plan", consumed, ()), [options.run.plan], options.reporter.say
    with open_stage(
        options.run, "plan", consumed, outputs, what="the plan", say=say, forget=options.may_retrain
    ) as to_do:
        begun = load_document(Plan, options.run.plan) if options.run.plan.exists() else None
        own = plan_dataset(
            fingerprint,
            preset=options.preset,
            memory_gb=options.memory_gb,
            device_memory_gb=device_gb if to_do or begun is None or pretrained is not None else begun.memory_target_gb,
            target_spacing_mm=spacing_mm,
            strict_reference=options.strict_reference,
        )
        plan = own if pretrained is None else fit_plan(pretrained, own)
        if begun is None or key_of(begun) != key_of(plan):
            if not options.may_retrain and consumed_before(options.run, "schedule").get("plan") not in (
                None,
                key_of(plan),
            ):
                refuse_redoing(
                    options.run,
                    changes or ["the pretrained model (--pretrained) or the rules changed"],
                    what="the plan",
                )
            save_document(options.run.plan, plan)
    if options.memory_gb is None and device_gb is not None and device_gb < plan.memory_target_gb:
        options.reporter.say(
            f"Note: this run keeps the {plan.memory_target_gb:g} GB that it was planned for, but the GPU has {device_gb:g} GB: what "
            f"does not fit is computed in pieces; --memory-gb {device_gb:g} plans for this GPU"
        )
    for note in describe_unusual_classes(fingerprint):
        options.reporter.say(f"Note: {note}")
    for configuration in plan.configurations:
        options.reporter.say(f"Plan: {describe_configuration(configuration)}")
    return dataset, plan


def _device_memory_gb(options: Options) -> float | None:
    """Memory of the GPU that trains, in whole GB (1e9 bytes); None for other devices.

    Whole ones, because drivers keep a small part that differs from version to version.
    """
    if not options.device_name.startswith("cuda"):
        return None
    import torch

    return max(1.0, float(round(torch.cuda.get_device_properties(options.device).total_memory / 1e9)))


def describe_configuration(configuration: Configuration) -> str:
    """One line: name, network, patch, spacing."""
    patch = " x ".join(str(n) for n in configuration.patch_shape)
    spacing = " x ".join(f"{s:.3g}" for s in configuration.spacing_mm)
    stages = len(configuration.network.features)
    return f"{configuration.name}: {configuration.network.family} with {stages} stages, patch {patch}, {spacing} mm"


def all_configurations(dataset: DatasetDescription, plan: Plan) -> Sequence[Configuration]:
    """Those that a schedule for some machine and budget may train."""
    return tuple(dict.fromkeys([*preferred_configurations(plan), *method_configurations(plan)]))


def follows_method(options: Options) -> bool:
    """Whether the run trains by the method's schedule: without a budget, on a GPU."""
    return options.budget_s is None and options.device_name.startswith("cuda")


def preprocess_stage(
    options: Options,
    *,
    choose: Callable[[DatasetDescription, Plan], Sequence[Configuration]] = all_configurations,
) -> tuple[DatasetDescription, Plan]:
    """Preprocessed data of every configuration that may be trained, or of those that ``choose`` picks, which may refuse."""
    dataset, plan = plan_stage(options)
    refuse_bad_folds(options, dataset)
    preprocess_configurations(options, dataset, plan, choose(dataset, plan))
    return dataset, plan


def preprocess_configurations(
    options: Options, dataset: DatasetDescription, plan: Plan, chosen: Sequence[Configuration]
) -> None:
    """Preprocessed data of ``chosen`` configurations; several that read the same data share them."""
    require_trainable(options, chosen)
    names = tuple(dict.fromkeys(configuration.data for configuration in chosen))
    with ExitStack() as locks:
        for name in sorted(names):  # one order for all processes, or two could wait for each other for ever
            lock, what = options.run.lock(f"preprocess-{name}"), f"preprocessing for {name}"
            locks.enter_context(hold_lock(lock, what=what, wait=True, say=options.reporter.say))
        warn_of_disk(options, plan, names)
        targets = [Target(plan.configuration(name), options.run.preprocessed(name)) for name in names]
        preprocess_dataset(dataset, plan, targets, num_workers=options.num_workers, reporter=options.reporter)


def require_trainable(options: Options, configurations: Sequence[Configuration]) -> None:
    """Refuse plans whose networks cannot be trained before hours go into their data."""
    problems = [
        Issue(code=UNNAMED, where=str(options.run.plan), message=fault, fix="or choose another --preset")
        for configuration in configurations
        for fault in why_untrainable(configuration)
    ]
    if problems:
        raise AutosegError(*problems, headline=("the plan cannot be trained"))
