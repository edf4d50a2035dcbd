"""What a pretrained model leaves to a dataset that it is trained on with, and what it keeps (method section 11)."""

from __future__ import annotations

from collections.abc import Sequence

from planners.decision import Decision
from planners.geometry import Axis, Permutation
from planners.plan import Configuration, Loss, Plan, SourceAxes
from planners.wording import listed, millimetres, voxels

SOURCE = "method 11 and decision record 0102"
DIRECTIONS: dict[SourceAxes, str] = {
    "anatomical": "turned until an axis means the same direction of the body in each",
    "acquisition": "left in the axes that they were acquired in",
    "ras": "turned to directions of the body as readers of the reference turn them",
}
REGION_TERMS = {"dice": "Dice", "squared_dice": "Dice with squared terms in the denominator"}
VOXEL_TERMS = {
    "cross_entropy": "cross entropy", "focal": "focal loss", "top_k": "cross entropy over the worst tenth of the voxels",
}  # fmt: skip


def decide_pretrained_networks(own: Plan, pretrained: Plan, names: Sequence[str]) -> Decision[tuple[str, ...]]:
    """Which networks are trained on."""
    return Decision(
        rule="finetuning.plan",
        value=tuple(names),
        reason=f"training goes on from networks of {pretrained.dataset_name}, so topology, width, patch, batch, spacing, axis order "
        f"and interpolation of {listed(names)} are theirs; channels and labels are those of {own.dataset_name}",
        source=SOURCE,
        change="without --pretrained this dataset gets a plan of its own",
    )


def decide_pretrained_normalization(known: Sequence[str], new: Sequence[str]) -> Decision[tuple[str, ...]]:
    """Channels ``known`` to the pretrained model keep their normalisation; ``new`` ones have their own."""
    kept = "no channel has a name from there"
    if known:
        one = len(known) == 1
        kept = f"{listed(known)} {'has' if one else 'have'} the same name there and {'stays' if one else 'stay'} normalised as there"
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
        change="a channel of the pretrained model's name would be normalised as there",
    )


def decide_pretrained_directions(own: Plan, pretrained: Plan) -> Decision[SourceAxes]:
    """To which axes images are turned before anything else."""
    theirs, mine = _directions(pretrained), _directions(own)
    return Decision(
        rule="finetuning.directions",
        value=pretrained.source_axes,
        reason=f"images are {theirs}, as those of {pretrained.dataset_name} were"
        + ("" if theirs == mine else f"; by a plan of their own they would be {mine}"),
        source=SOURCE,
    )


def decide_pretrained_axes(pretrained: Plan) -> Decision[Permutation]:
    """In which order the axes stand."""
    order = pretrained.transpose_forward
    return Decision(
        rule="finetuning.axes",
        value=order,
        reason=f"axes keep the order {listed([str(axis) for axis in order])} that the networks know",
        source=SOURCE,
    )


def decide_pretrained_spacing(configuration: Configuration, median_mm: Sequence[float]) -> Decision[tuple[float, ...]]:
    """To which voxel size images are resampled; ``median_mm`` is theirs, in as many plan axes as the configuration has."""
    chosen, found = millimetres(configuration.spacing_mm), millimetres(median_mm)
    size = voxels(configuration.median_shape)
    if chosen == found:
        reason, change = (
            f"{chosen}, as the networks were trained, is the median of this dataset too; its median case has {size} voxels",
            None,
        )
    else:
        reason = f"from {found}, the median of this dataset, images are resampled to {chosen}, as the networks were trained; its median "
        reason += f"case then has {size} voxels"
        change = "a model that was trained on voxels nearer to this dataset's would keep more of them"
    return Decision(
        rule="finetuning.spacing", value=configuration.spacing_mm, reason=reason, source=SOURCE, change=change
    )


def decide_pretrained_patch(configuration: Configuration, memory_gb: float) -> Decision[tuple[int, ...]]:
    """How large a piece the networks see at once, and how many of them make a batch."""
    return Decision(
        rule="finetuning.patch",
        value=configuration.patch_shape,
        reason=f"patches of {voxels(configuration.patch_shape)} voxels and a batch size of {configuration.batch_size} are those that the "
        f"networks were trained with; they were planned for {memory_gb:g} GB of memory",
        source=SOURCE,
    )


def decide_pretrained_loss(loss: Loss, *, has_regions: bool) -> Decision[Loss]:
    """The pretrained model's loss, where the dataset's own plan has no network of the name and kind."""
    terms = [REGION_TERMS[loss.region]]
    if loss.voxel is not None:
        terms.append(f"binary {VOXEL_TERMS[loss.voxel]} of each region" if has_regions else VOXEL_TERMS[loss.voxel])
    sums = "over the whole batch" if loss.batch_dice else "for each patch"
    return Decision(
        rule="finetuning.loss",
        value=loss,
        reason=f"a plan of the dataset's own has no network of this name and kind, so the loss stays {listed(terms)}, with Dice "
        f"summed {sums}",
        source=SOURCE,
    )


def decide_pretrained_mirroring(
    kept: tuple[Axis, ...], theirs: tuple[Axis, ...], *, why_not: str, fixed: bool
) -> Decision[tuple[Axis, ...]]:
    """Along which axes of the patch images are mirrored: those ``kept`` of the pretrained model's.

    ``why_not``: why this dataset's own plan leaves an axis out; nothing where it leaves out none. ``fixed``: left and right
    lie along one axis of the images.
    """
    reason = f"along {_axes(kept)} of the patch" if kept else "along no axis"
    if kept or not theirs:
        reason += ", as the networks were trained"
    if why_not and not fixed:
        reason += f": {why_not}, and in axes as the networks know them that axis differs from case to case"
    elif kept != theirs:
        reason += f", but not along {_axes([axis for axis in theirs if axis not in kept])}: {why_not}"
    return Decision(rule="finetuning.mirroring", value=kept, reason=reason, source=f"{SOURCE}; decision record 0012")


def _axes(axes: Sequence[Axis]) -> str:
    return f"{'axis' if len(axes) == 1 else 'axes'} {listed([str(axis) for axis in axes])}"


def _directions(plan: Plan) -> str:
    return "left in the axes of their files" if plan.strict_reference else DIRECTIONS[plan.source_axes]
