"""Label maps from logits that are computed while they are decided are those of logits that were all there before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from whole_volume import mean_probabilities, whole_logits

from autoseg.evaluation.label_maps import (
    decide,
    probability_slabs,
)
from autoseg.evaluation.rankseg import rank_labels
from autoseg.imaging.image import Geometry
from autoseg.imaging.placement import Placement, inside_box
from autoseg.imaging.resampling import resample_slabs, to_probabilities
from autoseg.inference.member_output import How, MemberOutput, open_logits
from autoseg.inference.model import Member
from autoseg.inference.needs import member_needs
from autoseg.inference.slabs import KeptVolumes, blank_probabilities, decide_together
from autoseg.networks.build import build_network
from planners import (
    ChannelNormalization,
    Configuration,
    LabelClass,
    Labels,
    Loss,
    Network,
    Resampling,
    trial_training,
)

CLASSES = Labels(classes=tuple(LabelClass(name=name, values=(i,)) for i, name in enumerate("abc", 1)))
REGIONS = Labels(
    classes=(
        LabelClass(name="whole", values=(1, 2, 3)),
        LabelClass(name="core", values=(2, 3)),
        LabelClass(name="rim", values=(1, 3)),
    ),
    region_order=(1, 2, 3),
)
SHAPE = (11, 23, 19)
"""Of the crop, plan axes."""
HOW = How(device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def thin_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few rows, as volumes of a usual size have."""
    monkeypatch.setattr("autoseg.imaging.resampling.LEAST_SLAB_VOXELS", 1000)


def placement_of(resampled: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Placement:
    """A crop of an image with turned and mirrored axes, resampled."""
    pairs = zip(SHAPE, resampled, spacing_mm, strict=True)
    return Placement(
        source=Geometry(shape=(25, 21, 14), spacing_mm=(1.0, 1.0, 1.0)),
        permutation=(2, 0, 1),
        flips=(True, False, True),
        transpose_forward=(0, 1, 2),
        shape_before_cropping=(14, 25, 21),
        box=((2, 13), (1, 24), (0, 19)),
        spacing_mm=spacing_mm,
        resampled_shape=resampled,
        resampled_spacing_mm=tuple(mm * n / m for n, m, mm in pairs),  # type: ignore[arg-type]
    )


def output_of(placement: Placement, labels: Labels, patch: tuple[int, ...], order: int, seed: int) -> MemberOutput:
    """Of an untrained network, which is sure of nothing, for noise."""
    axes = len(patch)
    resampling = Resampling(order=order, order_z=0)
    configuration = Configuration(
        name="3d_fullres" if axes == 3 else "2d", dimensions=axes, data="3d_fullres", spacing_mm=(1.0,) * axes,
        median_shape=(11.0,) * axes, patch_shape=patch, batch_size=2,
        normalization=(ChannelNormalization(scheme="zscore"),),
        resample_image=resampling, resample_labels=resampling, resample_logits=resampling,
        network=Network(
            family="unet", num_inputs=1, num_outputs=labels.num_outputs, features=(4, 8), kernels=((3,) * axes,) * 2,
            strides=((1,) * axes, (2,) * axes), blocks=(1, 1), decoder_blocks=(1,),
        ),
        loss=Loss(batch_dice=False), deep_supervision=False, mirror_axes=(0,),
    )  # fmt: skip
    training = trial_training(configuration, base_features=4, batch_size=2, precision="float32")
    networks = tuple(build_network(configuration.network, seed=seed + i).eval() for i in range(2))
    member = Member(configuration=configuration, training=training, networks=networks)
    image = np.random.default_rng(seed).normal(size=(1, *placement.resampled_shape)).astype(np.float32)
    logits, needs = open_logits(member, image, HOW)
    return MemberOutput(logits=logits, placement=placement, configuration=configuration, needs=needs)


def kept(output: MemberOutput) -> MemberOutput:
    """The same with logits that were summed at full size, and are in memory."""
    logits = output.logits
    whole = whole_logits(
        logits.image,
        logits.networks,
        patch=logits.patch,
        mirror_axes=logits.mirror_axes,
        batch_size=logits.batch_size,
    )
    return replace(output, logits=whole.numpy())


def probabilities_of(output: MemberOutput, labels: Labels) -> np.ndarray:
    """(K, Z, Y, X), all at full size."""
    whole = blank_probabilities(output.placement, labels)
    axis = output._separate_axis(output.placement.spacing_mm)
    resampling = output.configuration.resample_logits
    inside = inside_box(whole, output.placement)
    for rows, scores in resample_slabs(output.logits, SHAPE, resampling=resampling, separate_axis=axis):
        slab = np.stack(scores)
        to_probabilities(slab, has_regions=labels.has_regions)
        inside[:, rows] = slab
    return whole


FINE = placement_of((21, 31, 25), (1.0, 1.0, 1.0))
THICK = placement_of((5, 31, 25), (4.0, 0.9, 0.9))
SAME = placement_of(SHAPE, (1.0, 1.0, 1.0))
PLACES = {"finer": FINE, "thick slices": THICK, "same grid": SAME}


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("place", PLACES)
def test_one_configuration_is_decided_while_it_is_computed(
    place: str, labels: Labels, order: int, tmp_path: Path
) -> None:
    patch = (16, 16) if place == "thick slices" else (16, 16, 16)
    output = output_of(PLACES[place], labels, patch, order, seed=1)
    expected = kept(output)
    np.testing.assert_array_equal(output.label_map(labels), expected.label_map(labels))
    following = placement_of((13, 40, 17), PLACES[place].spacing_mm)
    np.testing.assert_array_equal(output.next_stage(following, labels), expected.next_stage(following, labels))
    whole = probabilities_of(expected, labels)
    target = blank_probabilities(output.placement, labels)
    found = decide_together([output], labels, (), ranks=True, target=inside_box(target, output.placement))
    np.testing.assert_array_equal(target, whole)
    kept_volumes = KeptVolumes(output.placement, labels, tmp_path)
    decide_together([output], labels, (), ranks=False, target=kept_volumes.inside)
    np.testing.assert_array_equal(np.stack([kept_volumes[k] for k in range(len(whole))]), whole)
    kept_volumes.close()
    assert not list(tmp_path.iterdir())
    for mine, theirs in zip(found, decide_together([expected], labels, (), ranks=True), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(found[0], expected.label_map(labels))
    plain, _ = decide_together([output], labels, (), ranks=False)
    np.testing.assert_array_equal(plain, found[0])


@pytest.mark.parametrize("weights", [(), (0.25, 0.75)])
@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
def test_configurations_of_different_grids_are_averaged_slab_by_slab(labels: Labels, weights) -> None:
    outputs = [output_of(FINE, labels, (16, 16, 16), 1, seed=1), output_of(THICK, labels, (16, 16), 1, seed=5)]
    whole = mean_probabilities([probabilities_of(kept(each), labels) for each in outputs], weights)
    target = blank_probabilities(FINE, labels)
    plain, ranked = decide_together(outputs, labels, weights, ranks=True, target=inside_box(target, FINE))
    np.testing.assert_array_equal(target, whole)
    np.testing.assert_array_equal(plain, decide(whole, labels))
    expected = rank_labels(probability_slabs(whole), whole.shape[1:], labels, are_logits=False)
    np.testing.assert_array_equal(plain, expected[0])
    np.testing.assert_array_equal(ranked, expected[1])
    without, none = decide_together(outputs, labels, weights, ranks=False)
    assert none is None
    np.testing.assert_array_equal(without, plain)


def test_configurations_of_other_parts_of_an_image_are_refused() -> None:
    output = output_of(FINE, CLASSES, (16, 16, 16), 1, seed=1)
    moved = FINE.model_copy(update={"box": ((1, 12), (1, 24), (0, 19))})
    with pytest.raises(ValueError, match="different parts"):
        decide_together([output, replace(output, placement=moved)], CLASSES, (), ranks=False)


def test_sums_that_fill_memory_are_computed_although_a_little_less_is_free_a_moment_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = output_of(placement_of(SHAPE, (1.0, 1.0, 1.0)), CLASSES, (8, 8, 8), 1, 0)
    configuration, networks = whole.configuration, whole.logits.networks
    training = trial_training(configuration, base_features=4, batch_size=2, precision="float32")
    member = Member(configuration=configuration, training=training, networks=networks)
    least = member_needs(HOW.use(member), whole.logits.image.shape, 0)
    free = iter(range(least.memory_bytes + 1000, 0, -1))
    monkeypatch.setattr("autoseg.inference.member_output.available_bytes", lambda limit: next(free))
    logits, needs = open_logits(member, whole.logits.image.numpy(), replace(HOW, memory_bytes=10**9))
    assert needs.memory_bytes == least.memory_bytes + 1000
    # windows go through the network one by one, which rounds otherwise
    np.testing.assert_allclose(logits[:, 0:3], whole.logits[:, 0:3], atol=1e-4)
    logits.close()
