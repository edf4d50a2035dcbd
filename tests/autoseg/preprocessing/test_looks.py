"""Images unlike those of training are told from others, in words that say how."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from autoseg.imaging.image import Geometry, Image
from autoseg.preprocessing import looks
from autoseg.preprocessing.looks import Usual, channel_distances, few, look_at, tilt_deg, unlike
from planners import (
    CaseLook,
    CaseSize,
    ChannelNormalization,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Plan,
    plan_dataset,
)

SHAPE = (12, 20, 24)
SPACING = (2.0, 1.0, 1.0)
PLACE = (SPACING, tuple(n * mm for n, mm in zip(SHAPE, SPACING, strict=True)))
MR = IntensityStatistics(mean=0, median=0, std=1, minimum=0, maximum=9, percentile_00_5=0, percentile_99_5=9)
Draw = Callable[[np.random.Generator], np.ndarray]


def image(*channels: np.ndarray, **geometry: object) -> Image:
    array = np.stack(channels).astype(np.float32)
    given: dict[str, object] = {"shape": SHAPE, "spacing_mm": SPACING} | geometry
    return Image(array=array, geometry=Geometry(**given))  # type: ignore[arg-type]


def skewed(rng: np.random.Generator) -> np.ndarray:
    """As a channel in which few voxels are bright."""
    return rng.gamma(1.0, 100.0, SHAPE)


def even(rng: np.random.Generator) -> np.ndarray:
    """As a channel whose voxels are about equally often dark and bright."""
    return rng.normal(300.0, 50.0, SHAPE)


def training(
    draws: Sequence[Draw], schemes: Sequence[str], *, number: int = 8
) -> tuple[Usual, Plan, np.random.Generator]:
    """What ``number`` cases with such channels looked like, and the plan for them."""
    rng = np.random.default_rng(0)
    names = tuple(f"c{i}" for i in range(len(draws)))
    fingerprint = Fingerprint(
        dataset_name="made",
        cases=tuple(CaseSize(case_id=str(i), shape=SHAPE, spacing_mm=SPACING) for i in range(number)),
        num_training_cases=number,
        channels=names,
        labels=Labels(classes=(LabelClass(name="a", values=(1,)),)),
        intensities=(MR,) * len(draws),
        looks=tuple(look_at(image(*(draw(rng) for draw in draws))) for _ in range(number)),
        median_relative_size_after_cropping=1.0,
    )
    plan = plan_dataset(fingerprint)
    scaled = tuple(ChannelNormalization(scheme=scheme) for scheme in schemes)  # type: ignore[arg-type]
    configurations = tuple(each.model_copy(update={"normalization": scaled}) for each in plan.configurations)
    plan = plan.model_copy(update={"configurations": configurations})
    usual = Usual.of(fingerprint, plan)
    assert usual is not None
    return usual, plan, rng


def test_an_image_like_those_of_training_gets_no_word() -> None:
    usual, plan, rng = training([skewed, even], ["zscore", "zscore"])
    for _ in range(20):
        look = look_at(image(skewed(rng), even(rng)))
        assert unlike(usual, look, plan, place=PLACE) == []
        assert unlike(usual, look_at(image(1000 * skewed(rng) + 5, even(rng))), plan, place=PLACE) == [], "standardised"


def test_too_few_cases_tell_nothing() -> None:
    for number, known in ((looks.LEAST_CASES, True), (looks.LEAST_CASES - 1, False)):
        if known:
            training([even], ["zscore"], number=number)
        else:
            with pytest.raises(AssertionError):
                training([even], ["zscore"], number=number)


def test_few_cases_are_not_all_that_is_usual() -> None:
    assert few(2.0, 3) == 4.0
    assert few(2.0, 300) == pytest.approx(2.02)


def test_channels_in_another_order_are_named() -> None:
    usual, plan, rng = training([skewed, even], ["zscore", "zscore"])
    (words,) = unlike(usual, look_at(image(even(rng), skewed(rng))), plan, place=PLACE)
    assert words == "channels look like c1, c0, expected c0, c1"


def test_channels_are_in_another_order_from_a_gain_on(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, plan, rng = training([skewed, even], ["zscore", "zscore"])
    look = look_at(image(even(rng), skewed(rng)))
    distances = channel_distances(usual, look, plan)
    gain = float(np.trace(distances) - distances[0, 1] - distances[1, 0])
    for limit, is_said in ((gain - 1e-6, True), (gain + 1e-6, False)):
        monkeypatch.setattr(looks, "SWAPPED", limit / few(1.0, 8))
        assert any("look like" in words for words in unlike(usual, look, plan, place=PLACE)) == is_said


def test_intensities_of_another_scale_are_named_where_the_network_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, plan, rng = training([even], ["none"])
    look = look_at(image(even(rng) / 1000))
    (words,) = unlike(usual, look, plan, place=PLACE)
    assert "intensities of channel c0" in words
    distance = float(channel_distances(usual, look, plan)[0, 0])
    for limit, is_said in ((distance - 1e-6, True), (distance + 1e-6, False)):
        monkeypatch.setattr(looks, "STRANGE", limit / few(1.0, 8))
        assert bool(unlike(usual, look, plan, place=PLACE)) == is_said


@pytest.mark.parametrize("what", [0, 1], ids=["voxels", "field of view"])
def test_voxels_and_field_of_view_are_named_beyond_the_range(what: int) -> None:
    usual, plan, rng = training([even], ["zscore"])
    look, limit = look_at(image(even(rng))), few(looks.WIDER, 8)
    for factor, is_said in ((limit, False), (1 / limit, False), (1.01 * limit, True), (0.99 / limit, True)):
        place = [list(each) for each in PLACE]
        place[what][1] *= factor
        found = unlike(usual, look, plan, place=(place[0], place[1]))
        assert [("voxels", "field of view")[what] in words and "along y" in words for words in found] == [
            True
        ] * is_said


def rotated(degrees: float) -> dict[str, object]:
    c, s = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
    return {"direction": ((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0))}


def test_a_tilted_grid_is_named() -> None:
    usual, plan, rng = training([even], ["zscore"])
    for degrees, is_said in ((looks.TILTED_DEG - 0.5, False), (looks.TILTED_DEG + 0.5, True), (89.0, False)):
        tilted = image(even(rng), **rotated(degrees))
        assert tilt_deg(tilted.geometry) == pytest.approx(min(degrees, 90 - degrees), abs=1e-4)
        assert ["tilted" in words for words in unlike(usual, look_at(tilted), plan, place=PLACE)] == [True] * is_said


def test_a_file_without_orientation_is_named_where_those_of_training_had_one() -> None:
    usual, plan, rng = training([even], ["zscore"])
    lost = look_at(image(even(rng), has_orientation=False))
    assert ["orientation" in words for words in unlike(usual, lost, plan, place=PLACE)] == [True]
    photographs = usual.model_copy(update={"has_directions": False})
    assert unlike(photographs, lost, plan, place=PLACE) == []


def test_odd_arrays_are_looked_at_too() -> None:
    """All of one value, or without a finite one."""
    for value in (0.0, 7.0, np.nan):
        look: CaseLook = look_at(image(np.full(SHAPE, value)))
        assert np.isfinite([*look.means, *look.stds, *look.quantiles[0]]).all()
