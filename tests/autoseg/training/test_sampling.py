"""Where patches come from, and how they are cut."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_folds import MadeCase, load_batches, make_case, make_plan, make_spec

from autoseg.issues import Issue
from autoseg.training.augmentation import Recipe
from autoseg.training.fold_spec import batch_source
from autoseg.training.sampling import (
    ANNOTATED,
    BatchSource,
    Crop,
    crop_size,
    cut,
    draw_patch,
    finish,
    generator,
    is_forced,
    load_crops,
    pack,
    with_sought,
)

SIZES, SMALL = (st.tuples(*[st.integers(1, most)] * 3) for most in (40, 8))


@pytest.mark.parametrize(
    ("patch", "degrees", "expected"),
    [
        ((128, 128, 128), 30, (205, 205, 205)),
        ((96, 160, 160), 30, (191, 257, 219)),
        ((512, 512), 180, (602, 602)),
        ((256, 128), 15, (329, 150)),
        ((40, 56, 40), 30, (73, 80, 64)),
        ((256, 128), 180, (301, 301)),
        ((64, 10, 10), 30, (75, 27, 47)),
        ((10, 64, 10), 30, (47, 75, 27)),
        ((10, 10, 64), 30, (27, 47, 75)),
    ],
)
def test_crop_sizes_are_the_methods(patch, degrees, expected) -> None:
    """The checks of method section 6.1, and shapes whose corners come furthest from either side."""
    assert crop_size(patch, rotation=math.radians(degrees), dummy_2d=False) == expected


def test_in_plane_rotation_leaves_the_first_axis() -> None:
    assert crop_size((10, 64, 64), rotation=math.pi, dummy_2d=True)[0] == 10


@given(shape=SIZES, patch=SIZES, seed=st.integers(0, 2**20))
def test_free_patches_are_inside_or_around_the_image(shape, patch, seed) -> None:
    rng = np.random.default_rng(seed)
    start = draw_patch(rng, shape, patch=patch, crop=patch, locations={}, forced=False)
    for s, n, p in zip(start, shape, patch, strict=True):
        if p <= n:
            assert 0 <= s <= n - p
        else:  # half the missing voxels on either side
            assert -s in ((p - n) // 2, (p - n + 1) // 2)


@given(shape=st.tuples(*[st.integers(8, 40)] * 3), seed=st.integers(0, 2**20))
def test_forced_patches_hold_the_drawn_voxel(shape, seed) -> None:
    rng = np.random.default_rng(seed)
    voxel = np.array([[rng.integers(n) for n in shape]], dtype=np.int32)
    start = draw_patch(rng, shape, patch=(8, 8, 8), crop=(8, 8, 8), locations={"a": voxel}, forced=True)
    assert all(s <= v < s + 8 for s, v in zip(start, voxel[0], strict=True))
    assert all(0 <= s <= n - 8 for s, n in zip(start, shape, strict=True))


def test_classes_are_equally_likely_whatever_their_size() -> None:
    many = np.zeros((1000, 3), np.int32)
    one = np.array([[30, 30, 30]], np.int32)
    rng = np.random.default_rng(0)
    starts = [
        draw_patch(rng, (32, 32, 32), patch=(4, 4, 4), crop=(4, 4, 4), locations={"a": many, "b": one}, forced=True)
        for _ in range(2000)
    ]
    share = np.mean([s[0] > 0 for s in starts])
    assert abs(share - 0.5) < 0.05  # four standard errors of 2000 draws


@pytest.mark.parametrize(("forced", "locations"), [(False, {"a": [[0, 0, 0]]}), (True, {"a": []}), (True, {})])
def test_free_patches_come_from_everywhere(forced: bool, locations: dict[str, list[list[int]]]) -> None:
    """Unforced ones whatever classes there are, forced ones where there is none."""
    rng = np.random.default_rng(0)
    found = {name: np.array(voxels, np.int32).reshape(-1, 3) for name, voxels in locations.items()}
    starts = [
        draw_patch(rng, (8, 8, 8), patch=(4, 4, 4), crop=(4, 4, 4), locations=found, forced=forced) for _ in range(60)
    ]
    assert all({start[axis] for start in starts} == {0, 1, 2, 3, 4} for axis in range(3))


def test_unforced_samples_of_partly_annotated_data_are_centred_on_annotated_voxels() -> None:
    voxel = np.array([[20, 20, 20]], np.int32)
    rng = np.random.default_rng(0)
    start = draw_patch(rng, (32, 32, 32), patch=(4, 4, 4), crop=(4, 4, 4), locations={ANNOTATED: voxel}, forced=False)
    assert start == (18, 18, 18)


@pytest.mark.parametrize(("batch_size", "forced"), [(1, 0), (2, 1), (3, 1), (9, 3), (12, 4)])
def test_forced_share_of_a_batch_is_the_methods(batch_size: int, forced: int) -> None:
    """Method section 7.2: the last ones, from round(0.67 B) on."""
    assert sum(is_forced(i, batch_size=batch_size, foreground_share=0.33) for i in range(batch_size)) == forced


@given(shape=SMALL, size=SMALL, start=st.tuples(*[st.integers(-10, 10)] * 3))
def test_cutting_agrees_with_padding_first(shape, size, start) -> None:
    array = np.arange(2 * math.prod(shape), dtype=np.float32).reshape(2, *shape)
    padded = np.pad(array, ((0, 0), *[(20, 20)] * 3), constant_values=-7)
    expected = padded[(slice(None), *(slice(20 + s, 20 + s + k) for s, k in zip(start, size, strict=True)))]
    np.testing.assert_array_equal(cut(array, start, size, outside=-7), expected)


def test_draws_follow_from_what_they_are_for() -> None:
    base = {"seed": 1, "configuration": "2d", "fold": 0, "step": 3, "sample": 0, "purpose": "patch"}
    first = generator(**base).random(4)
    np.testing.assert_array_equal(first, generator(**base).random(4))
    for change in ({"seed": 2}, {"configuration": "3d"}, {"fold": 1}, {"step": 4}, {"sample": 1}, {"purpose": "noise"}):
        assert not np.array_equal(first, generator(**{**base, **change}).random(4))


@pytest.mark.parametrize("name", ["3d_fullres", "2d"])
def test_batches_are_the_same_whatever_the_number_of_workers(tmp_path, name: str) -> None:
    source = batch_source(make_spec(tmp_path, name=name), purpose="training")
    one, two = ([b for b in load_batches(source, range(3), num_workers=n, device=torch.device("cpu"))] for n in (0, 2))
    for (image, labels), (image_2, labels_2) in zip(one, two, strict=True):
        assert torch.equal(image, image_2)
        assert torch.equal(labels, labels_2)
    assert not torch.equal(one[0][0], one[1][0])
    assert one[0][0].shape[2:] == make_plan().configuration(name).patch_shape


FEW_FILES = """
import resource, sys
from dataclasses import replace
from pathlib import Path

import torch
from made_folds import make_spec

from autoseg.training.fold_spec import batch_source
from autoseg.training.sampling import load_crops

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    source = replace(batch_source(make_spec(Path("."), name="2d"), purpose="training"), batch_size=354)
    for crops in load_crops(source, range(2), num_workers=2, device=torch.device("cpu")):
        print(len(crops.crops()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere tensors travel in another way")
def test_large_batches_arrive_with_few_descriptors(tmp_path) -> None:
    """A descriptor for each sample's tensors would be 708 for a batch."""
    (tmp_path / "load.py").write_text(FEW_FILES)
    path = os.pathsep.join([str(Path(__file__).parents[2] / "support"), *sys.path])
    done = subprocess.run(
        [sys.executable, "load.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        timeout=600,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["354"] * 2), done.stderr


@dataclass(frozen=True)
class SlowSource:
    """A source whose batches take their time."""

    source: BatchSource
    seconds: float

    @property
    def recipe(self) -> Recipe:
        return self.source.recipe

    def __getitem__(self, step: int) -> list[Crop]:
        time.sleep(self.seconds)
        return self.source[step]


@pytest.mark.parametrize(("seconds", "told"), [(0.0, False), (1.2, True)])
def test_a_batch_that_does_not_come_is_told_and_waited_for(tmp_path, seconds: float, told: bool) -> None:
    source = batch_source(make_spec(tmp_path, name="2d"), purpose="training")
    slow = cast(BatchSource, SlowSource(source, seconds))
    issues: list[Issue] = []
    patience_s = 0.5 if told else 30.0
    loaded = [
        *load_crops(slow, range(1), num_workers=1, device=torch.device("cpu"), say=issues.append, patience_s=patience_s)
    ]
    assert len(loaded) == 1
    assert {issue.code for issue in issues} == ({"training.no_batch"} if told else set())


def test_packing_changes_nothing(tmp_path) -> None:
    """Samples that are rotated or scaled come first, so that their crops, which are larger, lie side by side."""
    source = replace(batch_source(make_spec(tmp_path, name="2d"), purpose="training"), batch_size=40)
    crops = source[0]
    packed = pack(crops, source.recipe.patch)
    moves = [parameters.moves for parameters in packed.parameters]
    assert moves == sorted(moves, reverse=True)
    assert set(moves) == {True, False}
    for before, after in zip(crops, packed.crops(), strict=True):
        assert torch.equal(before.image, after.image)
        assert torch.equal(before.labels, after.labels)
        assert (before.parameters, before.disturbance) == (after.parameters, after.disturbance)
        assert (before.noise is None) == (after.noise is None)
        assert before.noise is None or torch.equal(before.noise, after.noise)


@pytest.mark.parametrize("name", ["3d_fullres", "2d"])
def test_crops_are_larger_than_the_patch_only_where_they_are_rotated_or_scaled(tmp_path, name: str) -> None:
    source = batch_source(make_spec(tmp_path, name=name), purpose="training")
    patch = source.recipe.patch
    larger = crop_size(patch, rotation=source.recipe.rotation, dummy_2d=source.recipe.dummy_2d)
    assert larger != patch
    seen = set()
    for crop in (source.sample(step, 0) for step in range(40)):
        rotated, scaled = (value is not None for value in (crop.parameters.angles, crop.parameters.scale))
        assert crop.image.shape[1:] == crop.labels.shape[1:] == (larger if rotated or scaled else patch)
        seen.add((rotated, scaled))
    assert len(seen) == 4


def test_crops_beyond_the_image_are_empty_there(tmp_path) -> None:
    spec = make_spec(tmp_path)
    case = replace(make_case(0, (14, 14, 14)), image=np.ones((1, 14, 14, 14), np.float32))
    spec = replace(spec, validation_cases=[case])
    crop = batch_source(spec, purpose="validation").sample(0, 0)
    inside = crop.labels[0] != -1
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(crop.image[0], inside.float())


def test_forced_samples_hold_foreground(tmp_path) -> None:
    source = batch_source(make_spec(tmp_path), purpose="validation")
    assert all(finish(source[step], source.recipe, torch.device("cpu"))[1][1].any() for step in range(20))


def test_more_patches_hold_a_class_that_is_sought_and_the_others_stay_as_they_were(tmp_path) -> None:
    spec = make_spec(tmp_path)
    spec = replace(spec, training_cases=[spec.training_cases[0], *map(without_box, spec.training_cases[1:])])
    plain, seeking = (with_sought(batch_source(spec, purpose="training"), sought) for sought in ((), ("box",)))
    assert dict(seeking.sought) == {"box": [0]}
    draws = [(seeking.choose(step, i), plain.choose(step, i)) for step in range(300) for i in range(2)]
    changed = [found for found, before in draws if found[2] is not None]
    assert all(number == 0 for _, number, _ in changed)
    assert abs(len(changed) / len(draws) - 1 / 3) < 0.08  # four standard deviations of 600 draws
    assert all(found[1] == before[1] for found, before in draws if found[2] is None)
    crop = next(seeking.sample(step, 0) for step in range(300) if seeking.choose(step, 0)[2] is not None)
    assert (crop.labels == 2).any()


def test_a_class_of_few_cases_is_drawn_as_often_as_the_others(tmp_path) -> None:
    """Of ten cases one shows the box: half of the forced samples are centred on it, the rest is as it was."""
    spec = replace(make_spec(tmp_path), training_cases=[make_case(i) for i in range(10)])
    plain = batch_source(spec, purpose="training")
    assert not plain.scarce
    one, few = ([without_box(case) if i >= n else case for i, case in enumerate(spec.training_cases)] for n in (1, 2))
    assert not batch_source(replace(spec, training_cases=few), purpose="training").scarce  # a fifth
    assert not batch_source(replace(spec, training_cases=one), purpose="validation").scarce
    eleven = replace(spec, training_cases=[*few, without_box(make_case(10))])
    assert list(batch_source(eleven, purpose="training").scarce) == ["box"]  # two of them are less than a fifth
    source = batch_source(replace(spec, training_cases=one), purpose="training")
    assert (dict(source.scarce), source.num_classes) == ({"box": [0]}, 2)
    draws = [(source.choose(step, i), plain.choose(step, i), i) for step in range(400) for i in range(2)]
    changed = [(found, i) for found, _, i in draws if found[2] is not None]
    assert all((found[1:], i) == ((0, "box"), 1) for found, i in changed)  # the second sample of each batch is forced
    assert abs(len(changed) / 400 - 1 / 2) < 0.1  # four standard deviations
    assert all(found[1] == before[1] for found, before, _ in draws if found[2] is None)
    step = next(step for step in range(400) if source.choose(step, 1)[2] is not None)
    assert (source.sample(step, 1).labels == 2).any()
    again = batch_source(replace(spec, training_cases=one), purpose="training")
    assert torch.equal(again.sample(step, 1).image, source.sample(step, 1).image)


def without_box(case: MadeCase) -> MadeCase:
    return replace(case, locations={**case.locations, "box": np.zeros((0, 3), np.int32)})
