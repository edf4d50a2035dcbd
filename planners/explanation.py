"""A plan's decisions as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from planners.decision import DecisionRecord, counted, gigabytes, listed, millimetres, voxels
from planners.edits import Edit, find_edits
from planners.memory import estimate_configuration_memory
from planners.plan import Configuration, Plan
from planners.registry import TOPOLOGIES
from planners.rules.topology import why_untrainable
from planners.schedule.candidates import method_configurations
from planners.schedule.cost import CARDS, modelled_fold_h, spread_h
from planners.schedule.documents import Schedule

WIDTH = 100
"""Characters a line."""

TITLES = {
    "memory.target": "Memory target",
    "spacing.target": "Target spacing",
    "shape.median": "Median shape",
    "shape.at_least_one_voxel": "Median shape (departure from nnU-Net)",
    "axes.source": "Orientation",
    "axes.acquisition": "Orientation (as acquired)",
    "axes.order": "Order of the axes",
    "axes.single_slice": "Order of the axes (departure from nnU-Net)",
    "intensity.normalization": "Normalisation",
    "intensity.by_content": "Normalisation (by the images)",
    "interpolation.orders": "Resampling",
    "candidates.volumetric": "2D or 3D",
    "candidates.vnet": "V-Net",
    "candidates.residual_unet": "Residual encoder",
    "candidates.small_patch": "Smaller patch for little time",
    "candidates.coarse": "Coarser voxels for little time",
    "cascade.low_resolution": "Cascade",
    "cascade.inputs": "Inputs",
    "patch.trainable": "Trainable network (departure from nnU-Net)",
    "patch.shape": "Patch size",
    "topology.stages": "Network",
    "batch.size": "Batch size",
    "loss.batch_dice": "Batch Dice",
    "loss.terms": "Loss",
    "loss.rare_class": "Loss (departure from nnU-Net)",
    "supervision.deep": "Deep supervision",
    "supervision.single_head": "Deep supervision (departure from nnU-Net)",
    "mirroring.axes": "Mirroring",
    "mirroring.sided_axis": "Mirroring (left and right labels)",
    "finetuning.plan": "Fine-tuning",
    "finetuning.directions": "Orientation",
    "finetuning.axes": "Order of the axes",
    "finetuning.normalization": "Normalisation",
    "finetuning.spacing": "Target spacing",
    "finetuning.patch": "Patch and batch size",
    "finetuning.loss": "Loss",
    "finetuning.mirroring": "Mirroring",
}
"""Heading of each decision of a plan ..."""
SCHEDULE_TITLES = {
    "schedule.single_slices": "Single slices",
    "schedule.race": "Race",
    "schedule.configurations": "Configurations",
    "schedule.asked_for": "Configurations",
    "schedule.folds": "Folds",
    "schedule.length": "Length",
    "schedule.width": "Width",
    "schedule.optimiser": "Optimiser",
    "schedule.mirroring": "Mirroring",
    "schedule.compiling": "Compiled steps",
}
"""... and of a schedule."""
DEPARTURES = frozenset(
    {
        "axes.single_slice",
        "loss.rare_class",
        "patch.trainable",
        "shape.at_least_one_voxel",
        "supervision.single_head",
    }
)
"""Rules that fix what nnU-Net would plan wrongly."""
DIFFERENCES = frozenset({"axes.acquisition", "axes.source", "intensity.by_content", "mirroring.sided_axis"})
"""Rules that differ from nnU-Net by choice."""
NNUNET_NAMES = (None, "2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
"""Configurations that nnU-Net plans, and none: departures are listed for these, not for candidates beside them."""
EDITED_BY = {
    "patch.shape": ("patch_shape",),
    "topology.stages": ("topology", "features", "kernels", "strides", "blocks", "decoder_blocks"),
    "batch.size": ("batch_size",),
    "intensity.normalization": ("normalization",),
    "intensity.by_content": ("normalization",),
    "loss.batch_dice": ("loss.batch_dice",),
    "loss.terms": ("loss.region", "loss.voxel"),
    "loss.rare_class": ("loss.region", "loss.voxel"),
    "supervision.deep": ("deep_supervision",),
    "supervision.single_head": ("deep_supervision",),
    "mirroring.axes": ("mirror_axes",),
    "mirroring.sided_axis": ("mirror_axes",),
    "finetuning.spacing": ("spacing_mm",),
    "finetuning.patch": ("patch_shape", "batch_size"),
    "finetuning.loss": ("loss.region", "loss.voxel", "loss.batch_dice"),
    "finetuning.mirroring": ("mirror_axes",),
    "memory.target": ("memory_target_gb",),
    "spacing.target": ("spacing_mm",),
}
"""Fields that a decision sets: an edit of one of them is shown beside the decision."""


def explain(plan: Plan, *, own: Plan | None = None) -> str:
    """What will be done with the dataset, decision by decision, with numbers, reason and source.

    First decisions on the whole dataset, then those that all configurations share, then the rest of each configuration with
    the memory it takes. A decision is followed by what would change it, and by edits: fields in which ``plan`` differs from
    the rules' ``own`` one. Departures from nnU-Net and other differences are listed last, except for fine-tuning.
    """
    edits = () if own is None else find_edits(own, plan)
    shared = _shared(plan)
    rules = {decision.rule for decision in shared}
    general = [d for d in plan.decisions if d.configuration is None]
    parts = [_headline(plan), _section("Dataset", general, edits=edits)]
    if shared:
        parts.append(_section("All configurations", shared, edits=edits))
    for configuration in plan.configurations:
        mine = [d for d in plan.decisions if d.configuration == configuration.name and d.rule not in rules]
        parts.append(_section(_summary(configuration), mine, before=_memory(configuration), edits=edits))
    left = [edit for edit in edits if not any(edit in _edits_of(decision, edits) for decision in plan.decisions)]
    if left:
        parts.append("\n".join(("Other fields", "-" * 12, *(line for edit in left for line in _edited(edit)))))
    if hours := _hours(plan):
        parts.append(hours)
    if not any(decision.rule == "finetuning.plan" for decision in plan.decisions):
        parts.append(_departures(plan))
    return "\n\n".join(parts) + "\n"


def explain_schedule(schedule: Schedule) -> str:
    """What is trained for how long, decision by decision: folds, configurations, widths, and what a race found."""
    general = [decision for decision in schedule.decisions if decision.configuration is None]
    parts = [_section("Schedule", general)]
    for training in schedule.trainings:
        mine = [decision for decision in schedule.decisions if decision.configuration == training.configuration]
        title = f"{training.configuration}: {counted(training.base_features, 'feature')}, {counted(training.num_steps, 'step')} a fold"
        parts.append(_section(title, mine))
    return "\n\n".join(parts) + "\n"


def _edits_of(decision: DecisionRecord, edits: Sequence[Edit]) -> list[Edit]:
    """Edits of what a decision set: of its configuration, or of any for shared decisions."""
    fields = EDITED_BY.get(decision.rule, ())
    found = []
    for edit in edits:
        name, _, field = edit.path.partition(".")
        of_another = decision.configuration not in (None, name)
        if edit.path in fields or (field in fields and not of_another):
            found.append(edit)
    return found


def _edited(edit: Edit) -> list[str]:
    return _wrap(f"  Edited: {edit}.", indent="  ")


def _shared(plan: Plan) -> list[DecisionRecord]:
    """Decisions that all configurations share, reason included; none if there is one configuration."""
    first, *others = plan.names
    known = {(d.rule, d.reason, d.change, d.configuration) for d in plan.decisions}
    return [
        d
        for d in plan.decisions
        if others and d.configuration == first and all((d.rule, d.reason, d.change, name) in known for name in others)
    ]


def _headline(plan: Plan) -> str:
    names = plan.names
    classes = [label.name for label in plan.labels.classes]
    kind = "regions" if plan.labels.has_regions else "classes"
    lines = [
        f"Plan for {plan.dataset_name}",
        "=" * (len(plan.dataset_name) + 9),
        *_wrap(
            f"{counted(len(plan.channels), 'channel')} ({listed(plan.channels)}); {kind}: {listed(classes)}. "
            f"Preset {plan.preset}, planned for {plan.memory_target_gb:g} GB of memory. "
            f'{counted(len(names), "configuration")}: {listed(names)}. In brackets: the rule and its source, where "method" is that of '
            "nnU-Net v2.",
            indent="",
        ),
    ]
    return "\n".join(lines)


def _summary(configuration: Configuration) -> str:
    network = configuration.network
    return (
        f"{configuration.name}: {configuration.dimensions}D {TOPOLOGIES.get(network.family).title}, "
        f"{counted(len(network.strides), 'stage')}, patch {voxels(configuration.patch_shape)}, "
        f"batch {configuration.batch_size}, {millimetres(configuration.spacing_mm)}"
    )


def _memory(configuration: Configuration) -> list[str]:
    """Memory on a CPU, where the model was measured; nothing for a network that cannot be trained."""
    if why_untrainable(configuration):
        return []
    half, full = (estimate_configuration_memory(configuration, dtype=dtype) for dtype in ("bfloat16", "float32"))
    return _wrap(
        f"* Memory: On a CPU training takes about {gigabytes(half.training_bytes)} in bfloat16 ({gigabytes(full.training_bytes)} in "
        f"float32), predicting {gigabytes(half.inference_bytes)} ({gigabytes(full.inference_bytes)}) in addition to the images; "
        "narrower networks take less.",
        indent="  ",
    )


FOLDS = 5
"""For which hours are told."""


def _hours(plan: Plan) -> str:
    """What nnU-Net's schedule takes on GPUs; empty where networks cannot be trained or do not tell what they compute."""
    configurations = [c for c in method_configurations(plan) if not why_untrainable(c)]
    widths = [max(len(c.name), 8) + 2 for c in configurations]
    names = "".join(f"{c.name:>{width}}" for c, width in zip(configurations, widths, strict=True))
    lines = [f"{'':10}{names}{'1 GPU':>10}{'4 GPUs':>8}{'8 GPUs':>8}"]
    for card in CARDS:
        hours = [each for c in configurations if (each := modelled_fold_h(c, card)) is not None]
        if not hours or len(hours) < len(configurations):
            return ""
        spread = (spread_h(hours * FOLDS, gpus) for gpus in (1, 4, 8))
        shown = "".join(f"{found:{width - 2}.1f} h" for found, width in zip(hours, widths, strict=True))
        lines.append(
            f"{card.name:10}{shown}"
            + "".join(
                f"{found:{width}.{0 if found >= 10 else 1}f} h" for found, width in zip(spread, (8, 6, 6), strict=True)
            )
        )
    about = _wrap(
        f"Hours of nnU-Net's schedule for one fold, and for {FOLDS} folds of all on one or several GPUs. They follow from the bytes and "
        "operations of the networks, fitted to public times of nnU-Net on A100, V100 and RTX 2080 Ti, which they meet within 26 %; "
        "for other cards they follow from the data sheet. Loading and augmentation must keep up. With --budget a run takes the time given.",
        indent="",
    )
    return "\n".join(("Hours on a GPU", "-" * 14, *about, *lines))


def _section(
    title: str, decisions: Sequence[DecisionRecord], *, before: Sequence[str] = (), edits: Sequence[Edit] = ()
) -> str:
    lines = (line for decision in decisions for line in _decision(decision, _edits_of(decision, edits)))
    return "\n".join((title, "-" * len(title), *before, *lines))


def _decision(decision: DecisionRecord, edits: Sequence[Edit]) -> list[str]:
    lines = _wrap(
        f"* {(TITLES | SCHEDULE_TITLES).get(decision.rule, decision.rule)}: {_capital(decision.reason)}.", indent="  "
    )
    if decision.change:
        lines += _wrap(f"  Would change it: {decision.change}.", indent="  ")
    lines += [line for edit in edits for line in _edited(edit)]
    return [*lines, f"  [{decision.rule}; {decision.source}]"]


def _departures(plan: Plan) -> str:
    if plan.strict_reference:
        faults = [fault for configuration in plan.configurations for fault in why_untrainable(configuration)]
        paragraphs = [
            "This is exactly nnU-Net's plan (--strict-reference).",
            *(f"It cannot be trained: {fault}." for fault in faults),
        ]
        return "\n".join(line for paragraph in paragraphs for line in _wrap(paragraph, indent="  "))
    planned_there = [decision for decision in plan.decisions if decision.configuration in NNUNET_NAMES]
    fixed = [decision for decision in planned_there if decision.rule in DEPARTURES]
    different = [decision for decision in planned_there if _differs(plan, decision)]
    paragraphs = [f"Departures from nnU-Net: {_places(fixed)}." if fixed else "No departures from nnU-Net were needed."]
    if different:
        paragraphs.append(f"Different from nnU-Net by choice: {_places(different)}.")
    return "\n".join(line for paragraph in paragraphs for line in _wrap(paragraph, indent="  "))


def _differs(plan: Plan, decision: DecisionRecord) -> bool:
    """Whether the plan really differs from nnU-Net: all axes are mirrored where left-right is not an axis of the slices."""
    if decision.rule != "mirroring.sided_axis" or decision.configuration is None:
        return decision.rule in DIFFERENCES
    configuration = plan.configuration(decision.configuration)
    return len(configuration.mirror_axes) < configuration.dimensions


def _places(decisions: Sequence[DecisionRecord]) -> str:
    return listed([f"{decision.rule} ({decision.configuration or 'whole dataset'})" for decision in decisions])


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _wrap(text: str, *, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
