"""Pictures of a report: training curves, scores of cases, outlines on image slices.

Every function returns the bytes of one picture and leaves matplotlib's settings as they are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from autoseg.evaluation.table import Summary, scores_by_case
from autoseg.tracking.callbacks import EpochRecord

NUMBERS = ("loss", "validation_loss", "moving_average", "learning_rate", "seconds", "wait_share")
PSEUDO_DICE = "pseudo_dice."
"""Before the name of a class in the table of epochs."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f3c8d")
"""Told apart by colour-blind readers too (Okabe and Ito), dark enough for thin lines on white."""
OUTLINE_COLOURS = ("#35b6ff", "#ff8a1f", "#3be08c", "#ff7ac0", "#ffe14d", "#b79bff", "#ff6b5e", "#7ff0e6")
"""Bright enough for thin lines on grey images, dark ones too."""
STYLE: Any = {  # matplotlib types every key on its own
    "svg.hashsalt": "autoseg",  # the same numbers give the same bytes
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a0",
    "axes.labelcolor": "#3c4650",
    "xtick.color": "#5b6570",
    "ytick.color": "#5b6570",
    "axes.grid": True,
    "grid.color": "#e6eaee",
    "legend.frameon": False,
}
MAX_LEGEND = 12
"""More entries would hide the picture."""
LEGEND_POINTS, LEGEND_LINE_POINTS = 4.6, 34
"""Width of a letter, and of a line with its gaps, in the legend of a picture."""
BARS_MM = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
"""Lengths of a bar that shows the scale; the longest that takes at most a third of a picture."""
MARGIN = 0.5
"""Share of the structures' extent that is shown around them."""
MIN_VIEW = 64
"""Pixels shown along each side at least, where the image has them."""


def configuration_curves(histories: Mapping[int, Sequence[EpochRecord]]) -> bytes:
    """SVG of all folds of one configuration: loss, and moving average of the pseudo-Dice, over steps; the loss alone where nothing was validated."""
    epochs = {fold: _epochs(history) for fold, history in sorted(histories.items())}
    is_validated = any(each["moving_average"].notna().any() for each in epochs.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2 if is_validated else 3.6, 2.6), layout="constrained")
        loss, *others = figure.subplots(1, 2 if is_validated else 1, squeeze=False)[0]
        for number, (fold, of_fold) in enumerate(epochs.items()):
            colour = COLOURS[number % len(COLOURS)]
            _plot(loss, of_fold["loss"], color=colour, linewidth=1.1, label=f"fold {fold}")
            for dice in others:
                _plot(dice, of_fold["moving_average"], color=colour, linewidth=1.4, label=f"fold {fold}")
        _label(loss, "training loss")
        for dice in others:
            _label(dice, "pseudo-Dice, moving average")
            _limit_to_shares(dice)
        _legend(loss)
        return _bytes(figure, "svg")


def fold_curves(history: Sequence[EpochRecord]) -> bytes:
    """SVG of one training over steps: losses, pseudo-Dice of each class with the moving average, learning rate, and seconds of
    each epoch with those that went into waiting for patches.
    """
    epochs = _epochs(history)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        (loss, dice), (rate, time) = figure.subplots(2, 2)
        _plot(loss, epochs["loss"], color=COLOURS[0], linewidth=1.1, label="training")
        _plot(loss, epochs["validation_loss"], color=COLOURS[1], linewidth=1.1, label="validation, finest head")
        for number, column in enumerate(epochs.columns[len(NUMBERS) :]):
            colour, name = COLOURS[number % len(COLOURS)], _plain(column.removeprefix(PSEUDO_DICE))
            _plot(dice, epochs[column], color=colour, linewidth=0.9, label=name)
        _plot(dice, epochs["moving_average"], color="#20262c", linewidth=1.5, label="moving average")
        _plot(rate, epochs["learning_rate"], color=COLOURS[2], linewidth=1.1)
        _plot(time, epochs["seconds"], color=COLOURS[0], linewidth=1.1, label="all")
        _plot(
            time, epochs["seconds"] * epochs["wait_share"], color=COLOURS[1], linewidth=1.1, label="waiting for patches"
        )
        time.set_ylim(bottom=0)
        titles = ((loss, "loss"), (dice, "pseudo-Dice"), (rate, "learning rate"), (time, "seconds an epoch"))
        for axes, title in titles:
            _label(axes, title)
        _limit_to_shares(dice)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        for axes in (loss, dice, time):
            _legend(axes)
        return _bytes(figure, "svg")


def case_scores(summary: Summary) -> bytes:
    """SVG with one row for each class: a dot for the Dice of each case, a bar at their mean. Undefined scores are absent."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.36 * len(summary.classes)), layout="constrained")
        axes = figure.subplots()
        dice = scores_by_case(summary)
        for row, each in enumerate(summary.classes):
            known = dice[each.name].dropna().to_numpy()
            spread = 0.22 * np.cos(np.arange(len(known)) * 2.4)  # spreads equal values without chance
            axes.scatter(known, row + spread, s=11, color=COLOURS[row % len(COLOURS)], alpha=0.65, linewidths=0)
            if len(known):
                axes.plot([known.mean()] * 2, [row - 0.36, row + 0.36], color="#20262c", linewidth=1.8)
        axes.set_yticks(range(len(summary.classes)), [_plain(each.name) for each in summary.classes])
        axes.set_ylim(len(summary.classes) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("Dice of each case; the bar is the mean")
        axes.grid(visible=False, axis="y")
        return _bytes(figure, "svg")


def overlay(
    image: NDArray[np.floating] | NDArray[np.integer],
    reference: NDArray[np.integer] | None,
    prediction: NDArray[np.integer],
    *,
    names: Mapping[int, str],
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    is_axial: bool = False,
) -> bytes:
    """PNG of one slice with the outlines of the reference (solid) and the prediction (dashed).

    All arrays are (Z, Y, X) of one shape; ``image`` is one channel, ``names`` maps label values to the names in the legend
    (others are not drawn), ``spacing_mm`` is (z, y, x). Shown is the slice along the first axis with the largest reference,
    else with the largest prediction, else the middle one; rows run downwards, cut to the structures with some margin. Grey
    values run from the 0.5 to the 99.5 percentile of what is shown; voxels that are not finite are black. ``is_axial``: axes run to the
    patient's head, back and left, as canonical ones do; then the sides, the slice and a scale are written on it.
    """
    slice_index = best_slice(reference, prediction, tuple(names))
    maps = [array[slice_index] for array in (reference, prediction) if array is not None]
    view = _view(np.logical_or.reduce([np.isin(each, list(names)) for each in maps]))
    styles: tuple[Literal["solid", "dashed"], ...] = ("dashed",) if reference is None else ("solid", "dashed")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        axes = figure.subplots()
        _show_grey(axes, np.asarray(image[slice_index][view], dtype=np.float64))
        drawn: set[int] = set()
        for each, style in zip(maps, styles, strict=True):
            drawn |= _outline(axes, each[view], names, style)
        axes.set_aspect(spacing_mm[1] / spacing_mm[2])
        axes.set_axis_off()
        if is_axial:
            _write_sides(axes, f"axial, slice {slice_index + 1} of {len(prediction)}", mm_per_pixel=spacing_mm[2])
        _overlay_legend(figure, drawn, names, has_reference=reference is not None)
        return _bytes(figure, "png")


def best_slice(reference: NDArray[np.integer] | None, prediction: NDArray[np.integer], values: Sequence[int]) -> int:
    """Index along the first axis of (Z, Y, X) at which most of the structures is seen; the first of equals."""
    for array in (reference, prediction):
        if array is not None:
            areas: NDArray[np.intp] = np.isin(array, values).sum(axis=(1, 2))
            if areas.any():
                return int(areas.argmax())
    return len(prediction) // 2


def _view(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The part of a slice (Y, X) that holds the structures, with a margin; all of it where there are none."""
    if not mask.any():
        return slice(None), slice(None)
    views = []
    for axis, size in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=1 - axis))
        extent = inside[-1] - inside[0] + 1
        wanted = max(MIN_VIEW, math.ceil(extent * (1 + 2 * MARGIN)))
        start = max(0, min(int(inside[0] - (wanted - extent) // 2), size - wanted))
        views.append(slice(start, min(size, start + wanted)))
    return views[0], views[1]


def _show_grey(axes: Axes, pixels: NDArray[np.float64]) -> None:
    finite = pixels[np.isfinite(pixels)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    shown = np.where(np.isfinite(pixels), pixels, low)
    axes.imshow(shown, cmap="gray", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")


def _outline(
    axes: Axes, labels: NDArray[np.integer], names: Mapping[int, str], style: Literal["solid", "dashed"]
) -> set[int]:
    """Draw the outline of each named value that occurs; a border of background closes those at the edge."""
    drawn = set()
    rows, columns = (np.arange(-1, size + 1) for size in labels.shape)
    for number, value in enumerate(names):
        mask = np.pad(labels == value, 1)
        if mask.any():
            colour = OUTLINE_COLOURS[number % len(OUTLINE_COLOURS)]
            axes.contour(
                columns, rows, mask.astype(float), levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.5
            )
            drawn.add(value)
    axes.set_xlim(-0.5, labels.shape[1] - 0.5)
    axes.set_ylim(labels.shape[0] - 0.5, -0.5)
    return drawn


def _write_sides(axes: Axes, title: str, *, mm_per_pixel: float) -> None:
    """The patient's sides at the edges, ``title`` above, and a bar of so many mm."""
    style: Any = {"color": "white", "fontsize": 8, "bbox": {"facecolor": "#00000080", "edgecolor": "none", "pad": 1.5}}
    for x, y, side in ((0.03, 0.5, "R"), (0.97, 0.5, "L"), (0.5, 0.97, "A"), (0.5, 0.03, "P")):
        axes.text(x, y, side, transform=axes.transAxes, ha="center", va="center", **style)
    axes.set_title(title, fontsize=8, loc="left")
    low, high = axes.get_xlim()
    width_mm = (high - low) * mm_per_pixel
    bar_mm = max((each for each in BARS_MM if each <= width_mm / 3), default=BARS_MM[0])
    share = bar_mm / width_mm
    axes.plot([0.03, 0.03 + share], [0.04, 0.04], transform=axes.transAxes, color="white", linewidth=2)
    axes.text(0.03, 0.06, f"{bar_mm:g} mm", transform=axes.transAxes, ha="left", va="bottom", **style)


def _overlay_legend(figure: Figure, drawn: set[int], names: Mapping[int, str], *, has_reference: bool) -> None:
    handles = [
        Line2D([], [], color=OUTLINE_COLOURS[number % len(OUTLINE_COLOURS)], label=_plain(name))
        for number, (value, name) in enumerate(names.items())
        if value in drawn
    ][:MAX_LEGEND]
    if has_reference:
        handles.append(Line2D([], [], color="#3c4650", linestyle="solid", label="reference"))
    handles.append(Line2D([], [], color="#3c4650", linestyle="dashed", label="prediction"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = int(figure.get_figwidth() * 72 / (longest * LEGEND_POINTS + LEGEND_LINE_POINTS))
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, min(4, len(handles), columns)), fontsize=8)


def _epochs(history: Sequence[EpochRecord]) -> pd.DataFrame:
    """Numbers of each epoch by step: the columns `NUMBERS`, and one for each class; NaN where a record has none."""
    found = pd.json_normalize([asdict(record) for record in history])
    classes = [name for name in found.columns if name.startswith(PSEUDO_DICE)]
    return found.reindex(columns=["step", *NUMBERS, *classes]).astype(float).set_index("step")


def _plot(axes: Axes, values: pd.Series[Any], **style: Any) -> None:
    """A line over steps; a single epoch is a dot."""
    known = values.dropna()
    axes.plot(known.index, known, marker="." if len(known) == 1 else "", **style)


def _plain(name: str) -> str:
    """A name as it is: dollar signs would start a formula, and a leading underscore hides a legend entry."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left", color="#20262c")
    axes.set_xlabel("step")


def _limit_to_shares(axes: Axes) -> None:
    axes.set_ylim(0, 1)


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        shown = slice(-MAX_LEGEND, None)
        axes.legend(handles[shown], labels[shown], fontsize=7)


def _bytes(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    buffer = io.BytesIO()
    nameless: dict[str, str | None] = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=150, metadata=nameless)
    return buffer.getvalue()
