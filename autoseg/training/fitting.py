"""Whether plan, schedule and preprocessed cases go together: asked before the first step, all faults told at once."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.training.patches import ANNOTATED, PatchSource
from planners import Configuration, Labels, Training

NUM_LABELLED = 3
"""Cases whose classes are looked at; all of a folder were stored with the same ones, and reading them takes time."""


def require_fit(
    labels: Labels,
    configuration: Configuration,
    training: Training,
    *,
    training_cases: Sequence[PatchSource],
    validation_cases: Sequence[PatchSource],
    names: Sequence[str],
    where: str,
) -> None:
    """Raise `AutosegError` with all that keeps a training from its first step.

    ``names`` are those of the training cases; ``where`` names the training.
    """
    problems = [*_plan_problems(labels, configuration, training, where)]
    if not training_cases:
        problems.append(
            Issue(code=UNNAMED, where=where, message="no case trains", fix="take folds with training cases (--splits)")
        )
    channels = len(configuration.normalization)
    known = {label.name for label in labels.classes} | {ANNOTATED}
    for number, case in enumerate([*training_cases, *validation_cases]):
        name = f"case {names[number]}" if number < len(names) else f"case number {number}"
        found = case.image.shape[0]
        if found != channels:
            fault = f"the preprocessed image has {found} channels, but the plan has {channels}"
            problems.append(Issue(code=UNNAMED, where=name, message=fault, fix="preprocess it again with this plan"))
        strange = sorted(set(case.locations) - known) if number < NUM_LABELLED else []
        if strange:
            fault = f"the preprocessed labels show {', '.join(strange)}, which the plan does not know"
            problems.append(Issue(code=UNNAMED, where=name, message=fault, fix="preprocess it again with this plan"))
    if problems:
        raise AutosegError(*problems, headline=(f"{where} cannot be trained"))


def _plan_problems(labels: Labels, configuration: Configuration, training: Training, where: str) -> list[Issue]:
    network, problems = configuration.network, []
    stage_inputs = len(labels.values) if configuration.previous_stage else 0
    inputs = len(configuration.normalization) + stage_inputs
    outputs = labels.num_outputs
    for what, found, needed in (("inputs", network.num_inputs, inputs), ("outputs", network.num_outputs, outputs)):
        if found != needed:
            fault = f"the network has {found} {what}, but channels and labels of the plan need {needed}"
            problems.append(Issue(code=UNNAMED, where=where, message=fault, fix="plan the dataset again"))
    if training.configuration != configuration.name:
        fault = f"the schedule's training is one of {training.configuration}"
        problems.append(
            Issue(code=UNNAMED, where=where, message=fault, fix="take the schedule that was made for this plan")
        )
    return problems
