"""Decisions of fine-tuning: what is taken from the pretrained model, what from the dataset (method section 11)."""

from __future__ import annotations

from collections.abc import Sequence

from planners.decision import Decision
from planners.geometry import Axis, Permutation
from planners.plan import Configuration, Loss, Plan, SourceAxes
from planners.wording import listed, millimetres, voxels

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


def decide_pretrained_networks(own: Plan, pretrained: Plan, names: Sequence[str]) -> Decision[tuple[str, ...]]:
    """Which networks are fine-tuned."""
    return Decision(
        rule="finetuning.plan",
        value=tuple(names),
        reason=f"networks of {pretrained.dataset_name} are fine-tuned: {listed(names)} keep their topology, width, patch, batch, spacing, "
        f"axis order and interpolation; channels and labels are those of {own.dataset_name}",
        source=SOURCE,
        change="without --pretrained the dataset gets its own plan",
    )


def decide_pretrained_normalization(known: Sequence[str], new: Sequence[str]) -> Decision[tuple[str, ...]]:
    """Channels ``known`` to the pretrained model keep its normalisation; ``new`` ones have their own."""
    kept = "no channel has the name of one of the pretrained model"
    if known:
        kept = f"{listed(known)} {'keeps' if len(known) == 1 else 'keep'} the normalisation of the pretrained model, by name"
    added = (
        f"; {listed(new)} {'is' if len(new) == 1 else 'are'} normalised by this dataset's own intensities"
        if new
        else ""
    )
    return Decision(
        rule="finetuning.normalization",
        value=tuple(known),
        reason=kept + added,
        source=SOURCE,
        change="a channel with the name of one of the pretrained model would keep its normalisation",
    )


def decide_pretrained_directions(own: Plan, pretrained: Plan) -> Decision[SourceAxes]:
    """To which axes images are reoriented."""
    theirs, mine = _directions(pretrained), _directions(own)
    return Decision(
        rule="finetuning.directions",
        value=pretrained.source_axes,
        reason=f"images are {theirs}, as those of {pretrained.dataset_name} were"
        + ("" if theirs == mine else f"; their own plan would have them {mine}"),
        source=SOURCE,
    )


def decide_pretrained_axes(pretrained: Plan) -> Decision[Permutation]:
    """The order of the axes."""
    order = pretrained.transpose_forward
    return Decision(
        rule="finetuning.axes",
        value=order,
        reason=f"axes keep the order {listed([str(axis) for axis in order])} of the pretrained model",
        source=SOURCE,
    )


def decide_pretrained_spacing(configuration: Configuration, median_mm: Sequence[float]) -> Decision[tuple[float, ...]]:
    """The target spacing; ``median_mm`` is the dataset's own, in as many plan axes as the configuration has."""
    chosen, found = millimetres(configuration.spacing_mm), millimetres(median_mm)
    size = voxels(configuration.median_shape)
    if chosen == found:
        reason, change = (
            f"{chosen}, the pretrained model's, is also the median of this dataset; its median case has {size} voxels",
            None,
        )
    else:
        reason = f"from {found}, the median of this dataset, images are resampled to {chosen}, the pretrained model's; the median case "
        reason += f"then has {size} voxels"
        change = "a pretrained model with a spacing nearer to this dataset's would keep more detail"
    return Decision(
        rule="finetuning.spacing", value=configuration.spacing_mm, reason=reason, source=SOURCE, change=change
    )


def decide_pretrained_patch(configuration: Configuration, memory_gb: float) -> Decision[tuple[int, ...]]:
    """Patch and batch size."""
    return Decision(
        rule="finetuning.patch",
        value=configuration.patch_shape,
        reason=f"patches of {voxels(configuration.patch_shape)} voxels and a batch size of {configuration.batch_size} are the pretrained "
        f"model's, planned for {memory_gb:g} GB of memory",
        source=SOURCE,
    )


def decide_pretrained_loss(loss: Loss, *, has_regions: bool) -> Decision[Loss]:
    """The pretrained model's loss, where the dataset's own plan has no network of this name and topology."""
    terms = [REGION_TERMS[loss.region]]
    if loss.voxel is not None:
        terms.append(f"binary {VOXEL_TERMS[loss.voxel]} of each region" if has_regions else VOXEL_TERMS[loss.voxel])
    sums = "over the whole batch" if loss.batch_dice else "for each patch"
    return Decision(
        rule="finetuning.loss",
        value=loss,
        reason=f"the dataset's own plan has no network of this name and topology, so the loss stays {listed(terms)}, with Dice "
        f"summed {sums}",
        source=SOURCE,
    )


def decide_pretrained_mirroring(
    kept: tuple[Axis, ...], theirs: tuple[Axis, ...], *, why_not: str, fixed: bool
) -> Decision[tuple[Axis, ...]]:
    """Along which axes of the patch images are mirrored: those ``kept`` of the pretrained model's.

    ``why_not``: why the dataset's own plan leaves out an axis; empty if it does not. ``fixed``: the left-right axis is the
    same in all images.
    """
    reason = f"along {_axes(kept)} of the patch" if kept else "along no axis"
    if kept or not theirs:
        reason += ", as in the pretrained model"
    if why_not and not fixed:
        reason += f": {why_not}, and in the pretrained model's axes that axis differs between cases"
    elif kept != theirs:
        reason += f", but not along {_axes([axis for axis in theirs if axis not in kept])}: {why_not}"
    return Decision(rule="finetuning.mirroring", value=kept, reason=reason, source=f"{SOURCE}; decision record 0012")


def _axes(axes: Sequence[Axis]) -> str:
    return f"{'axis' if len(axes) == 1 else 'axes'} {listed([str(axis) for axis in axes])}"


def _directions(plan: Plan) -> str:
    return "kept in the axes of their files" if plan.strict_reference else DIRECTIONS[plan.source_axes]
