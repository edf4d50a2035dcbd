"""Losses against double-precision computations by hand, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from autoseg.training import losses
from autoseg.training.losses import (
    deep_supervision_weights,
    make_loss,
    region_table,
    shrink_labels,
    soft_dice,
    supervise_deeply,
)
from planners import LabelClass, Labels, Loss

TWO = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
IGNORING = TWO.model_copy(update={"ignore": 3})
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), region_order=(1, 2)
)


def random_case(num_outputs: int, highest: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(2, num_outputs, 4, 5, 3)).astype(np.float32))
    return logits, torch.from_numpy(rng.integers(0, highest + 1, (2, 4, 5, 3)))


def dice_by_hand(p: np.ndarray, g: np.ndarray, axes: tuple[int, ...]) -> float:
    both, sizes = (p * g).sum(axes), p.sum(axes) + g.sum(axes)
    return float(((2 * both + 1e-5) / np.maximum(sizes + 1e-5, 1e-8)).mean())


@pytest.mark.parametrize("batch_dice", [False, True])
def test_label_loss_agrees_with_double_precision(batch_dice: bool) -> None:
    logits, target = random_case(3, 2)
    z, y = logits.double().numpy(), target.numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    g = np.stack([y == k for k in range(3)], 1).astype(float)
    cross_entropy = -np.log((p * g).sum(1)).mean()
    dice = dice_by_hand(p[:, 1:], g[:, 1:], (0, 2, 3, 4) if batch_dice else (2, 3, 4))
    loss = make_loss(Loss(batch_dice=batch_dice), TWO)(logits, target)
    assert loss.item() == pytest.approx(cross_entropy - dice, abs=1e-6)  # float32 sums of 120 terms


def test_ignored_voxels_change_nothing() -> None:
    logits, target = random_case(3, 2)
    target[:, :2] = 3
    loss = make_loss(Loss(batch_dice=True), IGNORING)
    before = loss(logits, target).item()
    logits[:, :, :2] = 9.0
    assert loss(logits, target).item() == pytest.approx(before, abs=1e-7)
    kept = make_loss(Loss(batch_dice=True), TWO)(logits[:, :, 2:], target[:, 2:])
    assert before == pytest.approx(kept.item(), abs=1e-6)


@pytest.mark.parametrize("voxel", ["cross_entropy", "focal", "top_k", None])
@pytest.mark.parametrize("labels", [IGNORING, REGIONS.model_copy(update={"ignore": 3})], ids=["labels", "regions"])
@pytest.mark.parametrize("content", ["ignored", "background", "one voxel"])
def test_edges_give_finite_losses_and_gradients(voxel, labels, content) -> None:
    logits, target = random_case(labels.num_outputs, 0)
    logits.requires_grad_()
    if content == "ignored":
        target[:] = 3
    if content == "one voxel":
        target[0, 0, 0, 0] = 2
    loss = make_loss(Loss(voxel=voxel, batch_dice=False), labels)(logits, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_region_loss_agrees_with_double_precision() -> None:
    logits, target = random_case(2, 2)
    z, y = logits.double().numpy(), target.numpy()
    p = 1 / (1 + np.exp(-z))
    g = np.stack([y >= 1, y == 2], 1).astype(float)
    expected = -(g * np.log(p) + (1 - g) * np.log(1 - p)).mean() - dice_by_hand(p, g, (2, 3, 4))
    assert make_loss(Loss(batch_dice=False), REGIONS)(logits, target).item() == pytest.approx(expected, abs=1e-6)


def test_ignored_regions_sum_the_cross_entropy_over_regions() -> None:
    """Method section 7.4: with an ignore label the denominator counts voxels once, not once a region."""
    logits, target = random_case(2, 2)
    target[0, 0] = 3
    valid = (target != 3).numpy()
    z, y = logits.double().numpy(), target.numpy()
    p = 1 / (1 + np.exp(-z))
    g = np.stack([(y == 1) | (y == 2), y == 2], 1).astype(float)
    each = -(g * np.log(p) + (1 - g) * np.log(1 - p)) * valid[:, None]
    expected = each.sum() / valid.sum() - dice_by_hand(p * valid[:, None], g * valid[:, None], (2, 3, 4))
    loss = make_loss(Loss(batch_dice=False), REGIONS.model_copy(update={"ignore": 3}))
    assert loss(logits, target).item() == pytest.approx(expected, abs=1e-6)


def test_gradients_agree_with_double_precision() -> None:
    logits, target = random_case(3, 2)
    single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
    make_loss(Loss(batch_dice=True), TWO)(single, target).backward()
    p = double.softmax(1)
    g = torch.zeros_like(p).scatter_(1, target[:, None], 1.0)
    reference = torch.nn.functional.cross_entropy(double, target) - soft_dice(p[:, 1:], g[:, 1:], None, batch_dice=True)
    reference.backward()
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-8)  # float32 rounding


@pytest.mark.parametrize("labels", [TWO, IGNORING], ids=["all", "ignoring"])
@pytest.mark.parametrize("term", ["focal", "top_k"])
def test_further_voxel_terms_agree_with_double_precision(term: str, labels: Labels) -> None:
    """Focal loss with gamma 2, and the mean of the worst tenth, over voxels that are not ignored."""
    logits, target = random_case(3, 2)
    if labels.ignore is not None:
        target[:, :2] = labels.ignore
    z, y = logits.double().numpy(), target.numpy()
    p = (np.exp(z) / np.exp(z).sum(1, keepdims=True)).transpose(0, 2, 3, 4, 1)[y < 3]
    right = np.take_along_axis(p, y[y < 3][:, None], 1)[:, 0]
    each = -np.log(right)
    worst = np.sort(each)[-math.ceil(len(each) / 10) :]
    expected = ((1 - right) ** 2 * each).mean() if term == "focal" else worst.mean()
    both, without = (make_loss(Loss(voxel=name, batch_dice=True), labels)(logits, target) for name in (term, None))
    assert (both - without).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("voxel", ["cross_entropy", "focal", "top_k"])
def test_the_voxel_term_counts_what_is_left(voxel: str) -> None:
    """0 where all voxels are ignored; where only one is not, its own."""
    logits, target = random_case(3, 0)
    target[:] = 3
    both, without = (make_loss(Loss(voxel=name, batch_dice=False), IGNORING) for name in (voxel, None))
    assert both(logits, target) == without(logits, target)
    target[0, 0, 0, 0] = 2
    p = logits[0, :, 0, 0, 0].softmax(0)[2].item()
    expected = -math.log(p) * ((1 - p) ** 2 if voxel == "focal" else 1)
    assert (both(logits, target) - without(logits, target)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("predicted", "dice"), [(0.0, 1.0), (1e-5, 0.5), (1.0, 1e-5)])
def test_an_absent_class_is_right_as_far_as_it_is_not_predicted(predicted: float, dice: float) -> None:
    """Its smooth term is 1e-5 voxels (method section 7.3)."""
    p = torch.full((1, 1, 1, 1), predicted)
    assert soft_dice(p, torch.zeros_like(p), None, batch_dice=False).item() == pytest.approx(dice, rel=1e-4)


def test_regions_hold_their_values_and_none_the_ignored() -> None:
    assert region_table(REGIONS).tolist() == [[0, 0], [1, 0], [1, 1], [0, 0]]


def test_squared_dice_squares_the_prediction_only_where_it_is_no_mask() -> None:
    p = torch.full((1, 1, 2, 2), 0.5)
    g = torch.ones((1, 1, 2, 2))
    dice = soft_dice(p, g, None, batch_dice=False, squared=True).item()
    assert dice == pytest.approx((2 * 2 + 1e-5) / (4 * 0.25 + 4 + 1e-5))


@pytest.mark.parametrize(
    ("heads", "weights"), [(1, [1.0]), (2, [1.0, 0.0]), (5, [0.5333, 0.2667, 0.1333, 0.0667, 0.0])]
)
def test_deep_supervision_weights_are_the_methods(heads: int, weights: list[float]) -> None:
    assert deep_supervision_weights(heads) == pytest.approx(weights, abs=1e-4)  # the method prints four digits


def test_coarse_targets_are_the_nearest_voxels() -> None:
    target = torch.arange(8).reshape(1, 8)
    assert shrink_labels(target, (4,)).tolist() == [[1, 3, 5, 7]]
    assert shrink_labels(target, (2,)).tolist() == [[2, 6]]


def test_heads_are_weighted() -> None:
    logits = [torch.randn(1, 3, 8, 8), torch.randn(1, 3, 4, 4), torch.randn(1, 3, 2, 2)]
    target = torch.randint(0, 3, (1, 8, 8))
    loss = make_loss(Loss(batch_dice=False), TWO)
    parts = [loss(head, shrink_labels(target, head.shape[2:])).item() for head in logits]
    expected = (parts[0] + 0.5 * parts[1]) / 1.5
    assert supervise_deeply(loss, logits, target).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("labels", [TWO, IGNORING, REGIONS, REGIONS.model_copy(update={"ignore": 3})])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize(("voxel", "region"), [("cross_entropy", "dice"), ("focal", "dice"), (None, "squared_dice")])
def test_slabs_give_the_whole_loss_and_its_gradient(monkeypatch, labels, batch_dice, voxel, region) -> None:
    """Of three slices each, the last of one; a whole slab has no valid voxel."""
    logits, target = random_case(labels.num_outputs, 2 if labels.ignore is None else 3)
    if labels.ignore is not None:
        target[:, 3:] = 3
    chosen = Loss(batch_dice=batch_dice, voxel=voxel, region=region)
    whole, slabs = (logits.clone().requires_grad_() for _ in range(2))
    expected = make_loss(chosen, labels)(whole, target)
    monkeypatch.setattr(losses, "SLAB_VALUES", 3 * logits.numel() // 4)
    found = losses.sum_slabs(chosen, labels, slabs, target)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # float32 sums in another order
    (2 * expected).backward()
    (2 * found).backward()
    torch.testing.assert_close(slabs.grad, whole.grad, rtol=1e-4, atol=1e-7)
