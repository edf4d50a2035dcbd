"""What a prediction is said to need: less where less is there, and never more than there is until nothing can be left out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from builders import Job

import autoseg
from autoseg.imaging.image import Geometry
from autoseg.inference import predict
from autoseg.inference.needs import MOST_RANKED, Use, case_needs, label_bytes, least_sums, member_needs
from autoseg.inference.predictor import Predictor
from autoseg.wording import format_duration
from planners import ChannelNormalization, Configuration, Loss, Network, Resampling, trial_training

LINEAR = Resampling(order=1, order_z=0)
SHAPE = (1, 200, 128, 96)


def use_of(classes: int = 40, networks: int = 5, *, half_sums: bool = False, on_cpu: bool = True) -> Use:
    configuration = Configuration(
        name="3d_fullres", dimensions=3, data="3d_fullres", spacing_mm=(1.0,) * 3, median_shape=(200.0, 128.0, 96.0),
        patch_shape=(64, 64, 64), batch_size=2, normalization=(ChannelNormalization(scheme="ct"),),
        resample_image=LINEAR, resample_labels=LINEAR, resample_logits=LINEAR,
        network=Network(
            family="unet", num_inputs=1, num_outputs=classes, features=(8, 16), kernels=((3, 3, 3),) * 2,
            strides=((1, 1, 1), (2, 2, 2)), blocks=(1, 1), decoder_blocks=(1,),
        ),
        loss=Loss(batch_dice=False), deep_supervision=False, mirror_axes=(0, 1),
    )  # fmt: skip
    training = trial_training(configuration, base_features=8, batch_size=2, precision="float32")
    return Use(
        configuration=configuration,
        training=training,
        networks=networks,
        mirror_axes=2,
        half_sums=half_sums,
        on_cpu=on_cpu,
    )


def test_windows_and_passes_are_counted() -> None:
    needs = member_needs(use_of(), SHAPE, 10**12)
    assert needs.windows == 6 * 3 * 2
    assert needs.passes == needs.windows * 5 * 4


def test_less_memory_is_taken_step_by_step_where_less_is_there() -> None:
    use = use_of()
    whole = member_needs(use, SHAPE, 10**12)
    assert (whole.batch_size, whole.remembered_bytes > 0, whole.disk_bytes) == (2, True, 0)
    # sums of the rows of a window, not of the volume
    assert whole.sums_bytes < 4 * 41 * math.prod(SHAPE) / 2
    assert member_needs(use, SHAPE, whole.memory_bytes) == whole
    single = member_needs(use, SHAPE, whole.memory_bytes - 1)
    assert (single.batch_size, single.remembered_bytes > 0, single.disk_bytes) == (1, True, 0)
    assert member_needs(use, SHAPE, single.memory_bytes) == single
    anew = member_needs(use, SHAPE, single.memory_bytes - 1)
    assert (anew.batch_size, anew.remembered_bytes, anew.disk_bytes) == (1, 0, 0)
    assert member_needs(use, SHAPE, anew.memory_bytes) == anew
    spilled = member_needs(use, SHAPE, anew.memory_bytes - 10**7)
    assert spilled.disk_bytes == anew.sums_bytes
    assert spilled.memory_bytes == anew.memory_bytes - 10**7
    least = member_needs(use, SHAPE, 0)
    assert least.sums_bytes == least_sums(use) < anew.sums_bytes
    assert least.disk_bytes == anew.sums_bytes


def test_a_gpu_keeps_sums_itself() -> None:
    needs = member_needs(use_of(on_cpu=False), SHAPE, 0)
    assert (needs.batch_size, needs.sums_bytes, needs.network_bytes, needs.disk_bytes) == (2, 0, 0, 0)
    assert needs.slab_bytes > 0


def test_networks_that_are_summed_alone_take_half_of_it_each() -> None:
    one = member_needs(use_of(), SHAPE, 10**12)
    five = member_needs(use_of(half_sums=True), SHAPE, 10**12)
    assert five.sums_bytes == one.sums_bytes * 5 // 2
    assert five.remembered_bytes == one.remembered_bytes * 5


def test_folds_and_classes_and_length_of_the_body_cost_what_they_must() -> None:
    """Memory does not grow with folds or the longest axis, and is linear in classes."""
    base, folds = (member_needs(use_of(networks=n), SHAPE, 10**12).memory_bytes for n in (1, 5))
    assert base == folds
    short, long = (member_needs(use_of(), (1, rows, 512, 512), 10**12) for rows in (400, 800))
    assert long.memory_bytes == short.memory_bytes
    assert long.windows > 1.9 * short.windows
    few, some, many = (member_needs(use_of(classes=n), SHAPE, 10**12) for n in (40, 80, 120))
    assert many.memory_bytes - some.memory_bytes == pytest.approx(some.memory_bytes - few.memory_bytes, rel=0.02)


def needs_of(available: int, **changes):
    given = {
        "channels": 1,
        "voxels": math.prod(SHAPE),
        "resident_bytes": 10**9,
        "available_bytes": available,
        "postprocesses": False,
        **changes,
    }
    return case_needs([[use_of()]], [[SHAPE]], **given)


def test_the_next_image_is_read_meanwhile_where_memory_is_enough_for_both() -> None:
    rich = needs_of(10**12)
    assert rich.reads_ahead
    just = needs_of(rich.memory_bytes - 10**9)
    assert just == rich
    less = needs_of(rich.memory_bytes - 10**9 - 1)
    assert not less.reads_ahead
    assert less.memory_bytes < rich.memory_bytes
    assert less.passes == {"3d_fullres": 36 * 5 * 4}


def test_the_limit_is_kept_until_nothing_can_be_left_out() -> None:
    least = needs_of(0)
    assert least.disk_bytes > 0
    for available in range(3 * 10**8, 2 * 10**9, 10**8):
        assert needs_of(available).memory_bytes <= max(10**9 + available, least.memory_bytes)
    assert needs_of(2 * 10**9).disk_bytes == 0


def test_probabilities_take_disk() -> None:
    assert needs_of(10**12, kept_classes=40).disk_bytes == 4 * 40 * math.prod(SHAPE)


def test_postprocessing_takes_memory_for_components() -> None:
    assert label_bytes(1000, postprocesses=True) > label_bytes(1000, postprocesses=False) > 1000


def test_rankseg_keeps_what_memory_is_there_for_and_the_rest_in_a_file() -> None:
    plain, ranked = needs_of(10**12), needs_of(10**12, ranked_classes=40)
    every = 4 * 40 * math.prod(SHAPE)
    assert (ranked.ranked_bytes, ranked.unsure_bytes) == (every, 0)
    assert ranked.memory_bytes > plain.memory_bytes + every
    little = needs_of(10**9, ranked_classes=40)
    assert little.ranked_bytes + little.unsure_bytes == every
    assert little.ranked_bytes < every
    assert little.memory_bytes <= 2 * 10**9
    many = needs_of(10**12, ranked_classes=200)
    assert (many.ranked_bytes, many.unsure_bytes) == (MOST_RANKED, 4 * 200 * math.prod(SHAPE) - MOST_RANKED)


@pytest.mark.parametrize("told", [True, False])
def test_time_is_told_from_many_passes_on_with_what_is_outside_the_networks(
    finished: Job, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    predictor = autoseg.Predictor.load(finished.root, device="cpu")
    geometry = Geometry(shape=(20, 30, 40), spacing_mm=(1.0, 1.0, 1.0))
    passes = sum(predictor.needs(geometry).passes.values())
    monkeypatch.setattr(predict, "TIMED_FROM", 2 * passes if told else 2 * passes + 1)
    monkeypatch.setattr(Predictor, "time_passes", lambda self: {"2d": 0.5})
    monkeypatch.setattr(Predictor, "time_voxel", lambda self: 0.01)
    said: list[str] = []
    predict.tell_needs(predictor, {"a": geometry, "b": geometry}, said.append, probabilities=False)
    time = format_duration(2 * (0.5 * passes + 0.01 * 20 * 30 * 40))
    assert said[0].endswith(f", about {time} on cpu" if told else " windows")


def test_more_classes_take_longer_outside_the_networks(finished: Job) -> None:
    predictor = autoseg.Predictor.load(finished.root, device="cpu")
    (member,) = predictor.model.members
    network = member.configuration.network.model_copy(update={"num_outputs": 3000})
    many = replace(member, configuration=member.configuration.model_copy(update={"network": network}))
    model = replace(predictor.model, members=(many,))
    assert replace(predictor, model=model).time_voxel() > predictor.time_voxel() > 0  # a thousand times as many
