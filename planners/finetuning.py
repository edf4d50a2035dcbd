"""A plan for fine-tuning a pretrained model: its topology and preprocessing, the dataset's channels and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from planners.decision import DecisionRecord
from planners.document import Issue, PlanningError
from planners.fingerprint import MOST_VOXELS, Labels
from planners.geometry import Axis, transpose
from planners.plan import ChannelNormalization, Configuration, Loss, Plan
from planners.rules.cascade import decide_inputs
from planners.rules.pretrained import (
    decide_pretrained_axes,
    decide_pretrained_directions,
    decide_pretrained_loss,
    decide_pretrained_mirroring,
    decide_pretrained_networks,
    decide_pretrained_normalization,
    decide_pretrained_patch,
    decide_pretrained_spacing,
)
from planners.schedule.candidates import shows_slices
from planners.schedule.documents import with_width
from planners.wording import millimetres


def plan_finetuning(own: Plan, pretrained: Plan, widths: Mapping[str, int]) -> Plan:
    """The pretrained plan's trained configurations, fitted to the dataset that ``own`` was planned for.

    ``widths``: base features that each of them was trained with. Kept are topology, width, patch, batch, spacing, axis order
    and interpolation (method section 11).
    Normalisation and intensities are kept for channels of the same name. Channels, labels, loss and the axes that must not
    be mirrored are those of the dataset. Raises `PlanningError` with all issues where the two do not fit.
    """
    _refuse(own, pretrained, widths)
    trained = [configuration for configuration in pretrained.configurations if configuration.name in widths]
    names = [configuration.name for configuration in trained]
    shape = _in_axes_of(own, pretrained, own.original_median_shape)
    spacing = _in_axes_of(own, pretrained, own.original_median_spacing_mm)
    forbidden = _unmirrored_source_axes(own)
    normalization = _normalization(own, pretrained)
    known = dict(zip(_distinct_names(pretrained.channels), pretrained.intensities, strict=True))
    configurations = tuple(
        configuration.model_copy(
            update={
                "data": configuration.data if configuration.data in names else configuration.name,
                "next_stage": configuration.next_stage if configuration.next_stage in names else None,
                "median_shape": _median_shape(configuration, shape, spacing),
                "normalization": normalization,
                "network": with_width(configuration.network, widths[configuration.name]).model_copy(
                    update={
                        "num_inputs": len(input_names(own.channels, own.labels, configuration)),
                        "num_outputs": own.labels.num_outputs,
                    }
                ),
                "loss": _loss(own, configuration),
                "mirror_axes": _mirror_axes(configuration, pretrained, own, forbidden),
            }
        )
        for configuration in trained
    )
    fitted = pretrained.model_copy(
        update={
            "dataset_name": own.dataset_name,
            "channels": own.channels,
            "labels": own.labels,
            "original_median_spacing_mm": spacing,
            "original_median_shape": shape,
            "intensities": tuple(
                known.get(name, mine) for name, mine in zip(_distinct_names(own.channels), own.intensities, strict=True)
            ),
            "configurations": configurations,
            "decisions": tuple(_decisions(own, pretrained, configurations)),
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


def _refuse(own: Plan, pretrained: Plan, widths: Mapping[str, int]) -> None:
    issues = []
    if own.strict_reference != pretrained.strict_reference:
        found, verb = (
            ("the axes of the files", "give") if pretrained.strict_reference else ("anatomical axes", "leave out")
        )
        issues.append(
            Issue(
                code="plan.pretrained_axes",
                where="axes",
                message=f"the pretrained model uses {found}",
                fix=f"{verb} --strict-reference",
            )
        )
    if all(c.dimensions == 3 for c in pretrained.configurations if c.name in widths) and shows_slices(own):
        issues.append(
            Issue(
                code="plan.pretrained_dimensions",
                where="images",
                message="are single slices, but the pretrained networks are 3D",
                fix="use a model with a 2D network",
            )
        )
    shape, spacing = (
        _in_axes_of(own, pretrained, each) for each in (own.original_median_shape, own.original_median_spacing_mm)
    )
    for configuration in pretrained.configurations:
        size = max(_resampled(configuration, shape, spacing))
        if configuration.name in widths and size > MOST_VOXELS:
            issues.append(
                Issue(
                    code="plan.image_too_large",
                    where="images",
                    message=f"at the {millimetres(configuration.spacing_mm)} of the pretrained {configuration.name} the median case "
                    f"has {size:.3g} voxels along an axis, more than {MOST_VOXELS}",
                    fix="check the spacings for mixed units",
                )
            )
    if issues:
        raise PlanningError(f"dataset {own.dataset_name} cannot be planned with the pretrained model", issues)


def _in_axes_of(
    own: Plan, pretrained: Plan, values: tuple[float, float, float] | tuple[int, int, int]
) -> tuple[float, float, float]:
    """Values of the own plan's axes in the order of the pretrained plan's."""
    return transpose(transpose(values, own.transpose_backward), pretrained.transpose_forward)


def _median_shape(
    configuration: Configuration, shape: tuple[float, ...], spacing_mm: tuple[float, ...]
) -> tuple[float, ...]:
    return tuple(max(1.0, float(round(size))) for size in _resampled(configuration, shape, spacing_mm))


def _resampled(configuration: Configuration, shape: tuple[float, ...], spacing_mm: tuple[float, ...]) -> list[float]:
    last = -configuration.dimensions
    extents = zip(shape[last:], spacing_mm[last:], configuration.spacing_mm, strict=True)
    return [size * old / new for size, old, new in extents]


def _normalization(own: Plan, pretrained: Plan) -> tuple[ChannelNormalization, ...]:
    """Of each own channel; every configuration of a plan has the same."""
    theirs = dict(zip(_distinct_names(pretrained.channels), pretrained.configurations[0].normalization, strict=True))
    mine = zip(_distinct_names(own.channels), own.configurations[0].normalization, strict=True)
    return tuple(theirs.get(name, planned) for name, planned in mine)


def _loss(own: Plan, configuration: Configuration) -> Loss:
    """The own plan's for a network of this name and family; else the pretrained one's."""
    twin = _own_twin(own, configuration)
    return configuration.loss if twin is None else twin.loss


def _own_twin(own: Plan, configuration: Configuration) -> Configuration | None:
    """The own plan's network of the same name and family."""
    kind = configuration.name, configuration.network.family
    return next((c for c in own.configurations if (c.name, c.network.family) == kind), None)


def _unmirrored_source_axes(own: Plan) -> frozenset[int]:
    """Source axes that some own configuration does not mirror because of left and right labels."""
    return frozenset(
        own.transpose_forward[axis + 3 - c.dimensions]
        for c in own.configurations
        for axis in range(c.dimensions)
        if axis not in c.mirror_axes
    )


def _mirror_axes(
    configuration: Configuration, pretrained: Plan, own: Plan, forbidden: frozenset[int]
) -> tuple[Axis, ...]:
    if forbidden and own.source_axes != pretrained.source_axes:
        return ()  # the left-right axis differs between cases
    offset = 3 - configuration.dimensions
    kept = (axis for axis in configuration.mirror_axes if pretrained.transpose_forward[axis + offset] not in forbidden)
    return tuple(kept)


def _decisions(own: Plan, pretrained: Plan, configurations: tuple[Configuration, ...]) -> list[DecisionRecord]:
    names = [configuration.name for configuration in configurations]
    theirs, mine = _distinct_names(pretrained.channels), _distinct_names(own.channels)
    plan = decide_pretrained_networks(own, pretrained, names)
    channels = decide_pretrained_normalization(
        [name for name in mine if name in theirs], [name for name in mine if name not in theirs]
    )
    directions, axes = decide_pretrained_directions(own, pretrained), decide_pretrained_axes(pretrained)
    return [
        plan.record(list(plan.value)),
        directions.record(directions.value),
        axes.record(list(axes.value)),
        channels.record(list(channels.value)),
        *(
            record
            for configuration in configurations
            for record in _configuration_records(own, pretrained, configuration)
        ),
    ]


def _configuration_records(own: Plan, pretrained: Plan, configuration: Configuration) -> list[DecisionRecord]:
    name, before = configuration.name, pretrained.configuration(configuration.name)
    spacing_mm = _in_axes_of(own, pretrained, own.original_median_spacing_mm)
    spacing = decide_pretrained_spacing(configuration, spacing_mm[-configuration.dimensions :])
    patch = decide_pretrained_patch(configuration, pretrained.memory_target_gb)
    mirroring = decide_pretrained_mirroring(
        configuration.mirror_axes,
        before.mirror_axes,
        why_not=_why_unmirrored(own),
        fixed=own.source_axes == pretrained.source_axes,
    )
    records = [
        spacing.record(list(spacing.value), configuration=name),
        patch.record(list(patch.value), configuration=name),
        *_loss_records(own, configuration),
        mirroring.record(list(mirroring.value), configuration=name),
    ]
    if configuration.previous_stage is not None:
        inputs = decide_inputs(len(own.channels), configuration.previous_stage, len(own.labels.values))
        records.insert(0, inputs.record(inputs.value, configuration=name))
    return records


def _loss_records(own: Plan, configuration: Configuration) -> list[DecisionRecord]:
    """The own plan's where the loss is its; see `_loss`."""
    if _own_twin(own, configuration) is not None:
        return [d for d in own.decisions if d.configuration == configuration.name and d.rule.startswith("loss.")]
    loss = decide_pretrained_loss(configuration.loss, has_regions=own.labels.has_regions)
    return [loss.record(loss.value.model_dump(mode="json"), configuration=configuration.name)]


def _why_unmirrored(own: Plan) -> str:
    """The own plan's reason to leave out an axis; empty if it does not."""
    short = [c.name for c in own.configurations if len(c.mirror_axes) < c.dimensions]
    reasons = [d.reason for d in own.decisions if d.rule.startswith("mirroring.") and d.configuration in short]
    return reasons[0] if reasons else ""
