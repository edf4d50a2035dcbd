"""Fine-tuning a finished model: its plan fitted to the dataset, its weights fitted to that plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoseg.data.dataset import DatasetDescription
from autoseg.issues import Issue
from autoseg.stages.run import Run
from planners import Configuration, Plan, Training, input_names, output_names, plan_finetuning

if TYPE_CHECKING:
    from autoseg.inference.model import ModelFiles
    from autoseg.networks.weights import Interface, Transfer

# Rooms that load torch are imported where they are used: stages before training do without it.


def open_pretrained(run: Run) -> ModelFiles | None:
    """The pretrained model; None if none was given. Raises `AutosegError` for what is not a finished model."""
    if run.settings.pretrained is None:
        return None
    from autoseg.inference.model import open_model

    return open_model(run.settings.pretrained)


def fit_plan(files: ModelFiles, own: Plan) -> Plan:
    """The model's plan, fitted to the dataset that ``own`` was planned for."""
    about = files.description
    widths = {name: about.training(name).base_features for name in about.stages}
    return plan_finetuning(own, about.plan, widths)


def find_overlap(files: ModelFiles, dataset: DatasetDescription) -> Issue | None:
    """An issue where the pretrained networks may have seen cases that they will be scored on."""
    before = files.description.dataset
    known = {path for case in before.training for path in case.images}
    shared = [case.case_id for case in dataset.training if known & set(case.images)]
    if shared:
        message = (
            f"{len(shared)} of {len(dataset.training)} cases were among those that the pretrained model was trained on"
        )
    elif not before.training and before.name == dataset.name:
        message = f"the pretrained model was also trained on {before.name}"
    else:
        return None
    return Issue(
        code="scores.pretrained_saw_cases",
        severity="warning",
        where="--pretrained",
        message=f"{message}, so the cross-validation scores are too high",
        fix="evaluate the model on cases that neither training used",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a fold needs to start from a pretrained model."""

    files: ModelFiles
    plan: Plan
    configuration: Configuration
    training: Training
    fold: int
    seed: int
    """Of the network's random initialisation, which new parts keep."""


def fit_weights(start: Start) -> Transfer:
    """The weights of one pretrained network for a fold of the same configuration.

    Folds take the pretrained folds in turn, so that the networks of an ensemble start from different weights.
    """
    from autoseg.networks.weights import transfer_weights
    from autoseg.training.fold_spec import make_network

    about = start.files.description
    name = start.configuration.name
    fold = about.selection.folds[start.fold % len(about.selection.folds)]
    fresh = make_network(start.configuration, start.training, seed=start.seed)
    return transfer_weights(
        start.files.weights(name, fold),
        fresh.state_dict(),
        network=start.configuration.network,
        before=interface(about.plan, about.plan.configuration(name)),
        after=interface(start.plan, start.configuration),
        where=start.files.where(name, fold),
    )


def interface(plan: Plan, configuration: Configuration) -> Interface:
    """Names of a configuration's inputs and outputs."""
    from autoseg.networks.weights import Interface

    return Interface(inputs=input_names(plan.channels, plan.labels, configuration), outputs=output_names(plan.labels))
