"""Training on from a finished model: its plan fitted to the dataset, its weights fitted to that plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoseg.data.dataset import DatasetDescription
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.pipeline.options import Options
from planners import Configuration, Plan, Training, input_names, output_names, plan_finetuning

if TYPE_CHECKING:
    from autoseg.inference.model_files import ModelFiles
    from autoseg.networks.transfer import Interface, Transfer

# Rooms that load torch are imported where they are used: stages before training go without it.


def open_pretrained(options: Options) -> ModelFiles | None:
    """The model to train on from; None where nobody named one.

    Raises `AutosegError` for what is no finished model, and where other wishes contradict its plan.
    """
    refuse_contradictions(options)
    if options.pretrained is None:
        return None
    from autoseg.inference.model import open_model

    return open_model(options.pretrained)


def fit_plan(files: ModelFiles, own: Plan) -> Plan:
    """The model's plan, fitted to the dataset that ``own`` was planned for."""
    about = files.description
    widths = {name: about.training(name).base_features for name in about.stages}
    return plan_finetuning(own, about.plan, widths)


def refuse_contradictions(options: Options) -> None:
    """Refuse wishes that a pretrained plan cannot follow, all at once, and a run folder whose own model it is."""
    if options.pretrained is None:
        return
    if options.pretrained.resolve() == options.run.root.resolve():
        raise AutosegError(
            f"--pretrained {options.pretrained} is the run folder itself (--out), whose model would be written over; give another "
            "folder with --out, or leave --pretrained out to go on with the run"
        )
    wishes = {
        "--preset": options.preset != "default",
        "--memory-gb": options.memory_gb is not None,
        "--target-spacing": options.target_spacing_mm is not None,
    }
    found = f"the plan of --pretrained {options.pretrained} fixes networks, patch and spacing"
    problems = [
        Issue(code=UNNAMED, where=name, message=found, fix="leave one of the two away")
        for name, given in wishes.items()
        if given
    ]
    if problems:
        raise AutosegError(*problems, headline=("these options contradict each other"))


def describe_overlap(files: ModelFiles, dataset: DatasetDescription) -> str | None:
    """A sentence where the pretrained networks may have seen cases that they will be scored on."""
    before = files.description.dataset
    known = {path for case in before.training for path in case.images}
    shared = [case.case_id for case in dataset.training if known & set(case.images)]
    if shared:
        return (
            f"{len(shared)} of {len(dataset.training)} cases were among those that the pretrained model was trained on, so "
            "the cross-validation will flatter"
        )
    if not before.training and before.name == dataset.name:
        name = before.name
        return f"the pretrained model was trained on {name} as well: where cases are the same, the cross-validation will flatter"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a fold needs to begin from a pretrained model."""

    files: ModelFiles
    plan: Plan
    configuration: Configuration
    training: Training
    fold: int
    seed: int
    """Of the network's random start, which what is new keeps."""


def fit_weights(start: Start) -> Transfer:
    """The weights of one pretrained network for a fold of the same configuration.

    Folds take the pretrained folds in turn, so that the networks of an ensemble begin at different places.
    """
    from autoseg.networks.transfer import transfer_weights
    from autoseg.training.task import make_network

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
    from autoseg.networks.transfer import Interface

    return Interface(inputs=input_names(plan.channels, plan.labels, configuration), outputs=output_names(plan.labels))
