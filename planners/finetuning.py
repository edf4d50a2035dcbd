"""A plan for fine-tuning a pretrained model: its topology and preprocessing, the dataset's channels and labels (method section 11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from planners.decision import Decision, DecisionRecord, listed, millimetres, voxels
from planners.document import Issue, PlanningError
from planners.fingerprint import MOST_VOXELS, Labels
from planners.geometry import Axis, transpose
from planners.plan import Configuration, Plan, SourceAxes
from planners.rules.spacing import decide_inputs
from planners.schedule.candidates import shows_slices
from planners.schedule.documents import with_width

SOURCE = "method 11 and decision record 0102"
DIRECTIONS: dict[SourceAxes, str] = {
    "anatomical": "reoriented to the same anatomical axes",
    "acquisition": "kept in the axes of their acquisition",
    "ras": "reoriented as nnU-Net's readers do",
}
REGION_TERMS = {"dice": "Dice", "squared_dice": "Dice with squared terms in the denominator"}
VOXEL_TERMS = {
    "cross_entropy": "cross entropy", "focal": "focal loss", "top_k": "cross entropy over the worst tenth of the voxels",
}  # fmt: skip


def plan_finetuning(own: Plan, pretrained: Plan, widths: Mapping[str, int]) -> Plan:
    """The pretrained plan's trained configurations, fitted to the dataset that ``own`` was planned for.

    ``widths``: base features that each of them was trained with. Kept are topology, width, patch, batch, spacing, axis order
    and interpolation (method section 11).
    Normalisation and intensities are kept for channels of the same name. Channels, labels, loss and the axes that must not
    be mirrored are those of the dataset. Raises `PlanningError` with all issues where the two do not fit.
    """
    trained = [configuration for configuration in pretrained.configurations if configuration.name in widths]
    shape = _in_axes_of(own, pretrained, own.original_median_shape)
    spacing = _in_axes_of(own, pretrained, own.original_median_spacing_mm)
    _refuse(own, pretrained, trained, shape, spacing)
    mine, theirs = _distinct_names(own.channels), _distinct_names(pretrained.channels)
    known = dict(zip(theirs, pretrained.intensities, strict=True))
    schemes = dict(zip(theirs, pretrained.configurations[0].normalization, strict=True))  # the same in all of a plan
    planned = own.configurations[0].normalization
    normalization = tuple(schemes.get(name, scheme) for name, scheme in zip(mine, planned, strict=True))
    names = [configuration.name for configuration in trained]
    configurations = []
    for configuration in trained:
        inputs = len(input_names(own.channels, own.labels, configuration))
        twin = _own_twin(own, configuration)
        network = with_width(configuration.network, widths[configuration.name]).model_copy(
            update={"num_inputs": inputs, "num_outputs": own.labels.num_outputs}
        )
        update = {
            "data": configuration.data if configuration.data in names else configuration.name,
            "next_stage": configuration.next_stage if configuration.next_stage in names else None,
            "median_shape": tuple(max(1.0, float(round(n))) for n in _resampled(configuration, shape, spacing)),
            "normalization": normalization,
            "network": network,
            "loss": configuration.loss if twin is None else twin.loss,
            "mirror_axes": _mirror_axes(configuration, pretrained, own),
        }
        configurations.append(configuration.model_copy(update=update))
    fitted = pretrained.model_copy(
        update={
            "dataset_name": own.dataset_name,
            "channels": own.channels,
            "labels": own.labels,
            "original_median_spacing_mm": spacing,
            "original_median_shape": shape,
            "intensities": tuple(known.get(name, each) for name, each in zip(mine, own.intensities, strict=True)),
            "configurations": tuple(configurations),
            "decisions": tuple(_decisions(own, pretrained, tuple(configurations))),
        }
    )
    return Plan.model_validate(fitted.model_dump())  # copies are not checked


def input_names(channels: tuple[str, ...], labels: Labels, configuration: Configuration) -> tuple[str, ...]:
    """What each input of a network is: the channels, then in a cascade the foreground values of the stage before.

    No two have the same name.
    """
    names = _distinct_names(channels)
    if configuration.previous_stage is None:
        return names
    holders = ([label.name for label in labels.classes if value in label.values] for value in labels.values)
    return (*names, *(f"{configuration.previous_stage}: {' and '.join(holding)}" for holding in holders))


def output_names(labels: Labels) -> tuple[str, ...]:
    """What each output of a network stands for: regions as declared, or the background and the classes by their values."""
    if labels.has_regions:
        return tuple(label.name for label in labels.classes)
    return ("background", *(label.name for label in sorted(labels.classes, key=lambda label: label.values)))


def _distinct_names(channels: Sequence[str]) -> tuple[str, ...]:
    """The channels' names, made distinct by a number: ``MRI``, ``MRI (2)``."""
    names: list[str] = []
    for channel in channels:
        candidates = (channel if number == 1 else f"{channel} ({number})" for number in count(1))
        names.append(next(name for name in candidates if name not in names))
    return tuple(names)


def _refuse(
    own: Plan,
    pretrained: Plan,
    trained: Sequence[Configuration],
    shape: tuple[float, ...],
    spacing_mm: tuple[float, ...],
) -> None:
    issues = []
    if own.strict_reference != pretrained.strict_reference:
        strict = pretrained.strict_reference
        issues.append(
            Issue(
                code="plan.pretrained_axes",
                where="axes",
                message=f"the pretrained model uses {'the axes of the files' if strict else 'anatomical axes'}",
                fix=f"{'give' if strict else 'leave out'} --strict-reference",
            )
        )
    if all(c.dimensions == 3 for c in trained) and shows_slices(own):
        issues.append(
            Issue(
                code="plan.pretrained_dimensions",
                where="images",
                message="are single slices, but the pretrained networks are 3D",
                fix="use a model with a 2D network",
            )
        )
    issues += [
        Issue(
            code="plan.image_too_large",
            where="images",
            message=f"at the {millimetres(configuration.spacing_mm)} of the pretrained {configuration.name} the median case "
            f"has {size:.3g} voxels along an axis, more than {MOST_VOXELS}",
            fix="check the spacings for mixed units",
        )
        for configuration in trained
        if (size := max(_resampled(configuration, shape, spacing_mm))) > MOST_VOXELS
    ]
    if issues:
        raise PlanningError(f"dataset {own.dataset_name} cannot be planned with the pretrained model", issues)


def _in_axes_of(own: Plan, pretrained: Plan, values: Sequence[float]) -> tuple[float, float, float]:
    """Values of the own plan's axes in the order of the pretrained plan's."""
    return transpose(transpose(values, own.transpose_backward), pretrained.transpose_forward)


def _resampled(configuration: Configuration, shape: tuple[float, ...], spacing_mm: tuple[float, ...]) -> list[float]:
    last = -configuration.dimensions
    extents = zip(shape[last:], spacing_mm[last:], configuration.spacing_mm, strict=True)
    return [size * old / new for size, old, new in extents]


def _own_twin(own: Plan, configuration: Configuration) -> Configuration | None:
    """The own plan's network of the same name and family, whose loss is taken."""
    kind = configuration.name, configuration.network.family
    return next((c for c in own.configurations if (c.name, c.network.family) == kind), None)


def _mirror_axes(configuration: Configuration, pretrained: Plan, own: Plan) -> tuple[Axis, ...]:
    """Those of the pretrained model, without axes that some own configuration does not mirror for left and right labels."""
    forbidden = {
        own.transpose_forward[axis + 3 - c.dimensions]
        for c in own.configurations
        for axis in range(c.dimensions)
        if axis not in c.mirror_axes
    }
    if forbidden and own.source_axes != pretrained.source_axes:
        return ()  # the left-right axis differs between cases
    offset = 3 - configuration.dimensions
    return tuple(
        axis for axis in configuration.mirror_axes if pretrained.transpose_forward[axis + offset] not in forbidden
    )


def _decisions(own: Plan, pretrained: Plan, configurations: tuple[Configuration, ...]) -> list[DecisionRecord]:
    names = [configuration.name for configuration in configurations]
    theirs, mine = _distinct_names(pretrained.channels), _distinct_names(own.channels)
    networks = Decision(
        rule="finetuning.plan",
        value=names,
        reason=f"networks of {pretrained.dataset_name} are fine-tuned: {listed(names)} keep their topology, width, patch, batch, spacing, "
        f"axis order and interpolation; channels and labels are those of {own.dataset_name}",
        source=SOURCE,
        change="without --pretrained the dataset gets its own plan",
    )
    kept_axes, own_axes = (
        "kept in the axes of their files" if plan.strict_reference else DIRECTIONS[plan.source_axes]
        for plan in (pretrained, own)
    )
    directions = Decision(
        rule="finetuning.directions",
        value=pretrained.source_axes,
        reason=f"images are {kept_axes}, as those of {pretrained.dataset_name} were"
        + ("" if kept_axes == own_axes else f"; their own plan would have them {own_axes}"),
        source=SOURCE,
    )
    order = Decision(
        rule="finetuning.axes",
        value=pretrained.transpose_forward,
        reason=f"axes keep the order {listed(list(map(str, pretrained.transpose_forward)))} of the pretrained model",
        source=SOURCE,
    )
    known, new = ([name for name in mine if (name in theirs) is wanted] for wanted in (True, False))
    kept = "no channel has the name of one of the pretrained model"
    if known:
        kept = f"{listed(known)} {'keeps' if len(known) == 1 else 'keep'} the normalisation of the pretrained model, by name"
    if new:
        kept += f"; {listed(new)} {'is' if len(new) == 1 else 'are'} normalised by this dataset's own intensities"
    channels = Decision(
        rule="finetuning.normalization",
        value=known,
        reason=kept,
        source=SOURCE,
        change="a channel with the name of one of the pretrained model would keep its normalisation",
    )
    shared: tuple[Decision[Any], ...] = (networks, directions, order, channels)
    records = [decision.record() for decision in shared]
    for configuration in configurations:
        records += _configuration_records(own, pretrained, configuration)
    return records


def _configuration_records(own: Plan, pretrained: Plan, configuration: Configuration) -> list[DecisionRecord]:
    name, size = configuration.name, voxels(configuration.median_shape)
    median_mm = _in_axes_of(own, pretrained, own.original_median_spacing_mm)[-configuration.dimensions :]
    chosen, found = millimetres(configuration.spacing_mm), millimetres(median_mm)
    reason = f"{chosen}, the pretrained model's, is also the median of this dataset; its median case has {size} voxels"
    if chosen != found:
        reason = f"from {found}, the median of this dataset, images are resampled to {chosen}, the pretrained model's; the median case "
        reason += f"then has {size} voxels"
    spacing = Decision(
        rule="finetuning.spacing",
        value=configuration.spacing_mm,
        reason=reason,
        source=SOURCE,
        change="a pretrained model with a spacing nearer to this dataset's would keep more detail"
        if chosen != found
        else None,
    )
    patch = Decision(
        rule="finetuning.patch",
        value=configuration.patch_shape,
        reason=f"patches of {voxels(configuration.patch_shape)} voxels and a batch size of {configuration.batch_size} are the pretrained "
        f"model's, planned for {pretrained.memory_target_gb:g} GB of memory",
        source=SOURCE,
    )
    records = [
        spacing.record(name),
        patch.record(name),
        *_loss_records(own, configuration),
        _mirroring(own, pretrained, configuration).record(name),
    ]
    if configuration.previous_stage is not None:
        inputs = decide_inputs(len(own.channels), configuration.previous_stage, len(own.labels.values))
        records.insert(0, inputs.record(name))
    return records


def _loss_records(own: Plan, configuration: Configuration) -> list[DecisionRecord]:
    """The own plan's where the loss is its; see `_own_twin`."""
    if _own_twin(own, configuration) is not None:
        return [d for d in own.decisions if d.configuration == configuration.name and d.rule.startswith("loss.")]
    loss = configuration.loss
    terms = [REGION_TERMS[loss.region]]
    if loss.voxel is not None:
        voxel = VOXEL_TERMS[loss.voxel]
        terms.append(f"binary {voxel} of each region" if own.labels.has_regions else voxel)
    decision = Decision(
        rule="finetuning.loss",
        value=loss,
        reason=f"the dataset's own plan has no network of this name and topology, so the loss stays {listed(terms)}, with Dice "
        f"summed {'over the whole batch' if loss.batch_dice else 'for each patch'}",
        source=SOURCE,
    )
    return [decision.record(configuration.name)]


def _mirroring(own: Plan, pretrained: Plan, configuration: Configuration) -> Decision[tuple[Axis, ...]]:
    """Along which axes of the patch images are mirrored: those of the pretrained model that the dataset's own plan allows."""
    kept, theirs = configuration.mirror_axes, pretrained.configuration(configuration.name).mirror_axes
    short = [c.name for c in own.configurations if len(c.mirror_axes) < c.dimensions]
    reasons = [d.reason for d in own.decisions if d.rule.startswith("mirroring.") and d.configuration in short]
    why_not = reasons[0] if reasons else ""
    reason = f"along {_axes(kept)} of the patch" if kept else "along no axis"
    if kept or not theirs:
        reason += ", as in the pretrained model"
    if why_not and own.source_axes != pretrained.source_axes:
        reason += f": {why_not}, and in the pretrained model's axes that axis differs between cases"
    elif kept != theirs:
        reason += f", but not along {_axes([axis for axis in theirs if axis not in kept])}: {why_not}"
    return Decision(rule="finetuning.mirroring", value=kept, reason=reason, source=f"{SOURCE}; decision record 0012")


def _axes(axes: Sequence[Axis]) -> str:
    return f"{'axis' if len(axes) == 1 else 'axes'} {listed(list(map(str, axes)))}"
