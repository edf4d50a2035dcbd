"""Probabilities become label maps: the mean of several models, the largest probability, and RankSEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rankseg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from whole_volume import mean_probabilities

from autoseg.evaluation.label_maps import (
    count_agreement,
    count_ensembles,
    decide,
    ensemble_labels,
    ensemble_slabs,
    probability_slabs,
)
from autoseg.evaluation.rankseg import CERTAIN, rank_labels
from autoseg.issues import AutosegError
from planners import LabelClass, Labels

TWO = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), region_order=(1, 2)
)


def voxels(*probabilities: tuple[float, ...]) -> np.ndarray:
    """(K, 1, 1, number of voxels) from the probabilities of each voxel."""
    return np.array(probabilities, dtype=np.float32).T[:, None, None, :]


def test_largest_probability_wins_and_the_first_of_equals() -> None:
    got = decide(voxels((0.1, 0.2, 0.7), (0.4, 0.4, 0.2), (0.2, 0.4, 0.4)), TWO)

    assert got.shape == (1, 1, 3)
    assert got.ravel().tolist() == [2, 0, 1]


def test_regions_write_in_order_above_one_half() -> None:
    got = decide(voxels((0.9, 0.9), (0.9, 0.5), (0.2, 0.8), (0.5, 0.5), (0.5001, 0.0)), REGIONS)

    assert got.ravel().tolist() == [2, 1, 2, 0, 1]


@pytest.mark.parametrize(("number", "dtype"), [(254, np.uint8), (255, np.uint16)])
def test_integer_type_grows_with_the_number_of_classes(number: int, dtype: type[np.integer]) -> None:
    labels = Labels(classes=tuple(LabelClass(name=str(i), values=(i,)) for i in range(1, number + 1)))
    probabilities = np.zeros((number + 1, 1, 1, 2), dtype=np.float32)
    probabilities[number, 0, 0, 1] = 1

    got = decide(probabilities, labels)

    assert got.dtype == dtype
    assert got.ravel().tolist() == [0, number]


# --- RankSEG ---


def labels_for(number: int) -> Labels:
    return Labels(classes=tuple(LabelClass(name=str(k), values=(k,)) for k in range(1, number)))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=0)


def ranked(p: np.ndarray, labels: Labels) -> np.ndarray:
    return rank_labels(probability_slabs(p.astype(np.float32)), p.shape[1:], labels, are_logits=False)[1]


def slow_claims(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each class by sorting all its voxels (K, n): which it claims, and whether it claims any."""
    claims = np.zeros(p.shape, dtype=bool)
    for own, of in zip(claims, p, strict=True):
        if of.max() > 0.5:
            order = np.argsort(-of, kind="stable")
            sums, sizes = np.cumsum(of[order]), np.arange(1, of.size + 1)
            own[order[: 1 + np.argmax(2 * sums / (sizes + of.sum() + 1))]] = True
    return claims, claims.any(axis=1)


def slow_rank(p: np.ndarray) -> np.ndarray:
    """The rule voxel by voxel, from (K, n)."""
    claims, active = slow_claims(p)
    alone = claims & (claims.sum(axis=0) == 1)
    k, s, m = alone.sum(axis=1), (p * alone).sum(axis=1), p.sum(axis=1)
    result = p.argmax(axis=0)
    for v in range(p.shape[1]) if active.any() else ():
        among = np.flatnonzero(claims[:, v]) if claims[:, v].any() else np.flatnonzero(active)
        gains = [2 / (k[c] + m[c] + 2) * (p[c, v] - s[c] / (k[c] + m[c] + 1)) for c in among]
        result[v] = among[0] if len(among) == 1 else among[int(np.argmax(gains))]
    return result


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(2, 5), scale=st.floats(0.3, 6), background=st.floats(-1, 3))
def test_rank_agrees_with_the_rule_voxel_by_voxel(seed: int, number: int, scale: float, background: float) -> None:
    logits = (np.random.default_rng(seed).normal(size=(number, 3, 5, 7)) * scale).astype(np.float32)
    logits[0] += np.float32(background)
    p, labels = softmax(logits), labels_for(number)
    expected = slow_rank(p.reshape(number, -1)).reshape(p.shape[1:])

    plain, by_logits = rank_labels(
        [(slice(0, 2), list(logits[:, :2])), (slice(2, 3), list(logits[:, 2:]))], p.shape[1:], labels, are_logits=True
    )

    assert np.array_equal(plain, logits.argmax(axis=0))
    # what is certain is rounded, which may decide where two choices are equal to the last digits
    assert np.mean(by_logits != expected) <= 0.02
    assert np.mean(ranked(p, labels) != expected) <= 0.02


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.3, 6))
def test_regions_claim_each_for_itself(seed: int, scale: float) -> None:
    logits = (np.random.default_rng(seed).normal(size=(2, 2, 5, 6)) * scale).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    claims, _ = slow_claims(p.reshape(2, -1))
    masks = claims if claims.any() else (p > 0.5).reshape(2, -1)
    expected = np.where(masks[1], 2, np.where(masks[0], 1, 0)).reshape(p.shape[1:])

    plain, by_logits = rank_labels([(slice(0, 2), list(logits))], p.shape[1:], REGIONS, are_logits=True)

    assert np.array_equal(plain, decide(p, REGIONS))
    assert np.mean(by_logits != expected) <= 0.02
    assert np.mean(ranked(p, REGIONS) != expected) <= 0.02


def test_rank_agrees_with_the_package() -> None:
    rng = np.random.default_rng(0)
    for number in (2, 3, 5):
        p = softmax(rng.normal(size=(number, 4, 8, 9)) * 3)
        package = rankseg.RankSEG(metric="dice", output_mode="multiclass", solver="RMA", unassigned_policy="max_score")

        assert np.array_equal(ranked(p, labels_for(number)), package.predict(torch.from_numpy(p[None]))[0].numpy())


def test_a_class_takes_voxels_below_one_half_where_it_is_unsure() -> None:
    """Claimed are those above half of the best expected Dice, which is 2 (0.6 + 0.4) / (2 + 1 + 1) = 0.5 with both."""
    p = voxels((0.4, 0.6), (0.6, 0.4), *[(1.0, 0.0)] * 5)

    assert ranked(p, labels_for(2)).ravel().tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert decide(p, labels_for(2)).ravel().tolist() == [1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("highest", "claimed"), [(0.5, 0), (0.51, 2)])
def test_a_class_without_a_voxel_above_one_half_claims_nothing(highest: float, claimed: int) -> None:
    p = voxels((1 - highest, highest), (0.6, 0.4), *[(1.0, 0.0)] * 9)

    assert np.count_nonzero(ranked(p, labels_for(2))) == claimed


def test_where_no_class_claims_the_largest_probability_stays() -> None:
    p = voxels((0.3, 0.4, 0.3), (0.4, 0.3, 0.3))

    assert ranked(p, TWO).ravel().tolist() == [1, 0]


@pytest.mark.parametrize(("distance", "counted"), [(-1e-4, True), (1e-4, False)])
def test_what_is_left_of_certain_voxels_is_not_expected(distance: float, counted: bool) -> None:
    """Of two thousand voxels a thousandth each would make two expected ones, and then a voxel at 0.15 is worth claiming."""
    tail = 1 - (CERTAIN + distance)
    p = voxels((0.3, 0.7), (0.85, 0.15), *[(1 - tail, tail)] * 2000)

    assert ranked(p, labels_for(2)).ravel()[:3].tolist() == [1, int(counted), 0]


def test_logits_and_probabilities_are_decided_alike() -> None:
    """As far as both are uncertain; one lead in logits stands for any number of others that share the rest."""
    logits = np.random.default_rng(1).normal(size=(4, 3, 20, 20)).astype(np.float32) * 5
    by_logits = rank_labels([(slice(0, 3), list(logits))], (3, 20, 20), labels_for(4), are_logits=True)[1]

    assert np.mean(by_logits != ranked(softmax(logits), labels_for(4))) < 0.001


# --- ensembles of decided label maps ---

UNIT = st.floats(0, 1, width=16)


@settings(max_examples=60, deadline=None)
@given(
    members=st.lists(arrays(np.float16, (3, 2, 3, 4), elements=UNIT), min_size=2, max_size=3),
    parts=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    labels=st.sampled_from([TWO, REGIONS]),
)
def test_ensembles_from_label_maps_are_those_of_all_probabilities(
    members: list[np.ndarray], parts: list[int], labels: Labels
) -> None:
    members = [each[: labels.num_outputs] for each in members]
    weights = tuple(part / sum(parts[: len(members)]) for part in parts[: len(members)])
    whole = mean_probabilities([each.astype(np.float32) for each in members], weights)
    sharp = np.abs(whole - 0.5).min() > 1e-4 and np.min(np.abs(np.diff(np.sort(whole, axis=0), axis=0))) > 1e-4
    label_maps = [decide(each, labels) for each in members]
    expected = decide(whole, labels)
    reference = np.random.default_rng(0).integers(0, 3, expected.shape)

    got = ensemble_labels(label_maps, members, weights, labels)
    counts = count_ensembles(label_maps, members, [weights], reference, labels)

    if sharp:
        assert np.array_equal(got, expected)
    assert np.array_equal(counts[0], count_agreement(got, reference, labels))
    together = np.concatenate([np.array(part) for _, part in ensemble_slabs(members, weights)], axis=1)
    assert together == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("labels", [labels_for(5), REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("memory_bytes", [0, 3000], ids=["file", "both"])
def test_probabilities_in_a_file_decide_as_those_in_memory(
    labels: Labels, memory_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    logits = 2 * rng.normal(size=(labels.num_outputs, 6, 13, 11)).astype(np.float32)
    logits -= np.arange(labels.num_outputs, dtype=np.float32)[:, None, None, None]  # classes of different size
    slabs = [(slice(i, i + 2), list(logits[:, i : i + 2])) for i in (0, 2, 4)]
    whole = rank_labels(slabs, logits.shape[1:], labels, are_logits=True)
    monkeypatch.setattr("autoseg.evaluation.rankseg.BLOCK_VOXELS", 50)
    got = rank_labels(slabs, logits.shape[1:], labels, are_logits=True, memory_bytes=memory_bytes, folder=tmp_path)
    assert [each.tolist() for each in got] == [each.tolist() for each in whole]
    assert (whole[0] != whole[1]).any()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    scores = [(slice(0, 1), list(np.full((2, 1, 3, 3), 0.5, np.float32)))]
    with pytest.raises(AutosegError) as caught:
        rank_labels(scores, (1, 3, 3), labels_for(2), are_logits=False, memory_bytes=0, folder=tmp_path / "gone")
    assert caught.value.codes == ("file.not_written",)
