"""Fine-tuning a finished model: its plan fitted to the dataset, its weights fitted to that plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoseg.data.dataset import DatasetDescription
from autoseg.issues import Issue
from autoseg.stages.run import Run
from planners import Configuration, Plan, Schedule, Training, input_names, output_names, plan_finetuning

if TYPE_CHECKING:
    from autoseg.inference.bundle import ModelFiles
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
    """An issue where the pretrained networks have seen images that they will be scored on, or where that is not known.

    Images are compared by content, so copies under other names or with other labels are found, too, and so are those of models
    that the pretrained one started from.
    """
    before, earlier = files.description.dataset, files.description.seen_before
    known = {image for case in before.training for image in (*case.images, *case.image_contents)}.union(earlier or ())
    shared = [case for case in dataset.training if known & {*case.images, *case.image_contents}]
    code, so = "scores.pretrained_saw_cases", "so the scores are too high"
    if shared:
        message = (
            f"{len(shared)} of {len(dataset.training)} cases were among those that the pretrained model was trained on"
        )
    elif not before.training and before.name == dataset.name:
        message = f"the pretrained model was also trained on {before.name}"
    elif not any(case.image_contents for case in before.training):
        code, so = "scores.pretrained_cases_unknown", "so the scores may be too high"
        message = f"the pretrained model does not say on which cases of {before.name} it was trained"
    elif earlier is None:
        code, so = "scores.pretrained_cases_unknown", "so the scores may be too high"
        message = "the pretrained model started from one that does not say on which cases it was trained"
    else:
        return None
    return Issue(
        code=code,
        severity="warning",
        where="--pretrained",
        message=f"{message}, {so}",
        fix="evaluate the model on cases that neither training used",
    )


def describe_start(run: Run, dataset: DatasetDescription, plan: Plan, schedule: Schedule) -> None:
    """Say what users should know about a training that starts from another model."""
    pretrained = open_pretrained(run)
    if pretrained is None:
        return
    from autoseg.networks.weights import describe_transfer

    about = pretrained.description
    run.say(f"Fine-tuning a model of {about.dataset.name} with its plan: {', '.join(about.stages)}")
    for training in schedule.trainings:
        before, after = (interface(each, each.configuration(training.configuration)) for each in (about.plan, plan))
        for note in describe_transfer(before, after):
            run.say(f"  {training.configuration}, {note}")
    if (overlap := find_overlap(pretrained, dataset)) is not None:
        run.show(overlap)


def fit_weights(files: ModelFiles, plan: Plan, training: Training, *, fold: int, seed: int) -> Transfer:
    """The weights of one pretrained network for a fold of the same configuration in ``plan``.

    Folds take the pretrained folds in turn, so that the networks of an ensemble start from different weights. New parts keep
    the random initialisation of ``seed``.
    """
    from autoseg.networks.weights import transfer_weights
    from autoseg.training.fold_spec import make_network

    about, name = files.description, training.configuration
    configuration, before = plan.configuration(name), about.selection.folds[fold % len(about.selection.folds)]
    return transfer_weights(
        files.weights(name, before),
        make_network(configuration, training, seed=seed).state_dict(),
        network=configuration.network,
        before=interface(about.plan, about.plan.configuration(name)),
        after=interface(plan, configuration),
        where=files.where(name, before),
    )


def interface(plan: Plan, configuration: Configuration) -> Interface:
    """Names of a configuration's inputs and outputs."""
    from autoseg.networks.weights import Interface

    return Interface(inputs=input_names(plan.channels, plan.labels, configuration), outputs=output_names(plan.labels))
