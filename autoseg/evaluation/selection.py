"""Which configurations are the model, and what is done with their probabilities, by out-of-fold evidence.

Each choice beyond the best single configuration (ensembles, the decoder, postprocessing) is made only where the paired 95 % interval of
what it gains lies above zero. Method sections 9.3 to 9.5 are the starting point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Annotated, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from autoseg.evaluation.intervals import Difference, format_p, paired_difference, unit_codes
from autoseg.evaluation.label_maps import (
    Counts,
    Decoder,
    KeepLargestComponent,
    RemoveSmallComponents,
    Step,
    trial_steps,
)
from autoseg.wording import count_noun
from planners import PROSE, Document, Labels

Dices = NDArray[np.float64]
"""(N, C): of each case and class, NaN where undefined."""

FALLBACK = ("3d_fullres", "3d_lowres", "2d")
"""Used where nothing was validated: in the nnU-Net paper full resolution in 3D is best most often."""
LEAST_CASES = 10
"""Cases, or patients, from which an interval is trusted: the fewer, the less it covers."""
QUARTERS = 4
"""Weights of ensembles are multiples of one over this: finer ones fit the cases at hand and no others."""

Members = Annotated[tuple[str, ...], Field(min_length=1)]
Weights = tuple[Annotated[float, Field(gt=0, le=1)], ...]


# --- documents ---


class Recipe(Document):
    """How label maps are made from trained configurations."""

    members: Members
    weights: Weights = ()
    decoder: Decoder = "argmax"
    postprocessing: tuple[Step, ...] = ()

    @property
    def name(self) -> str:
        """Of the members, with their weights."""
        return candidate_name(self.members, self.weights)


class Candidate(Document):
    """One configuration or ensemble, scored over the validated cases."""

    name: str
    """``2d``, ``2d + 3d_fullres``, ``0.25 2d + 0.75 3d_fullres``."""
    members: Members
    weights: Weights = ()
    mean_dice: float | None
    """Mean foreground Dice: over cases for each class, then over classes. None: nothing to compare."""
    dice_per_class: dict[str, float | None]
    num_cases: int
    """Compared cases."""
    low: float | None = None
    """The 95 % interval of ``mean_dice`` (`intervals.mean_interval`); none below three patients, or not recorded."""
    high: float | None = None


class Trial(Document):
    """A choice that was tried: what it gains in Dice over going without, and whether it was made."""

    what: str
    accepted: bool
    gain: float | None = None
    """Mean paired difference over cases, of the mean Dice of the classes that it is about. None: undefined, or not recorded."""
    low: float | None = None
    """The 95 % interval of the gain, by Student's t over cases, or over patients where they have several; none below three."""
    high: float | None = None
    num_cases: int | None = None
    wilcoxon_p: float | None = None
    """Of the signed-rank test over the same units, which decides nothing; none below six that differ, or not recorded."""
    reason: Annotated[str, PROSE] = ""

    def __str__(self) -> str:
        if self.gain is None or self.num_cases is None:
            return self.what
        interval = "" if self.low is None else f" [{self.low:+.4f}, {self.high:+.4f}]"
        p = "" if self.wilcoxon_p is None else f", Wilcoxon p {format_p(self.wilcoxon_p)}"
        return f"{self.what}: {self.gain:+.4f}{interval} over {count_noun(self.num_cases, 'case')}{p}"


class EarlierTrial(Document):
    """A postprocessing trial of version 0.2, which has no interval."""

    step: KeepLargestComponent
    accepted: bool
    dice_before: float | None
    dice_after: float | None
    reason: str

    def __str__(self) -> str:
        return str(self.step)


class Selection(Document):
    """``selection.json``: what predicts, and what cross-validation says of it."""

    schema_version: Literal[1] = 1
    members: Members
    """Configuration names; the probabilities of several are averaged."""
    weights: Weights = ()
    """Of the members, adding up to one; none: the plain mean."""
    decoder: Decoder = "argmax"
    folds: Annotated[tuple[int, ...], Field(min_length=1)]
    """Folds of each member whose logits are averaged."""
    postprocessing: tuple[Step, ...]
    """In the order in which they are applied."""
    cross_validated: bool
    reason: Annotated[str, PROSE]
    candidates: tuple[Candidate, ...]
    dice_before_postprocessing: float | None
    """Cross-validated mean foreground Dice of the members, by the largest probability."""
    dice_after_postprocessing: float | None
    """The same by the decoder and after postprocessing, on the very cases that the choices were made on."""
    dice_corrected: float | None = None
    """The same, with the choices for each fold made on the cases of the other folds. None: not corrected."""
    corrected_interval: tuple[float, float] | None = None
    """The 95 % interval of ``dice_corrected``; none below three patients, or not recorded."""
    correction: Annotated[str, PROSE] = ""
    """How that was done, or why not."""
    trials: tuple[Trial, ...] = ()
    """In the order in which they were made, each on top of those accepted before."""
    postprocessing_trials: tuple[EarlierTrial, ...] = ()
    """Those of version 0.2, which are read and no longer made."""
    made_from: str | None = None
    """Hash of plan, trainings and weights that it belongs to; none: written before there was one, or elsewhere."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        scores = self.dice_before_postprocessing, self.dice_after_postprocessing, self.dice_corrected
        if any(score is not None for score in scores) and not self.cross_validated:
            raise ValueError("a score is given although nothing was cross-validated")
        if self.weights and (len(self.weights) != len(self.members) or abs(sum(self.weights) - 1) > 1e-6):
            raise ValueError(f"{len(self.members)} members need as many weights that add up to 1")
        return self

    @property
    def name(self) -> str:
        """Name of the chosen candidate."""
        return candidate_name(self.members, self.weights)

    @property
    def is_hold_out(self) -> bool:
        """Whether one fold was trained, and scores are those of the cases that it left out."""
        return self.cross_validated and len(self.folds) == 1

    @property
    def scored_how(self) -> str:
        """What the scores are from, as words."""
        return "in a hold-out" if self.is_hold_out else "in cross-validation"


# --- candidates ---


def candidate_name(members: Sequence[str], weights: Sequence[float] = ()) -> str:
    """``2d + 3d_fullres`` for two configurations, with weights before them, the name itself for one."""
    parts = zip(members, weights, strict=True) if weights else ()
    return " + ".join(f"{weight:g} {name}" for name, weight in parts) or " + ".join(members)


def candidate_recipes(names: Sequence[str]) -> tuple[Recipe, ...]:
    """Each configuration alone, pairs and all of them with equal weights, then all weights in steps of a quarter."""
    plain = [*combinations(names, 1), *combinations(names, 2), *([tuple(names)] if len(names) > 2 else [])]
    recipes = [Recipe(members=members) for members in plain]
    for parts in _splits(QUARTERS, len(names)):
        weighted = {name: part / QUARTERS for name, part in zip(names, parts, strict=True) if part}
        if len(set(weighted.values())) > 1 or (len(weighted) > 2 and len(weighted) != len(names)):
            recipes.append(Recipe(members=tuple(weighted), weights=tuple(weighted.values())))
    return tuple(recipes)


def _splits(total: int, number: int) -> Iterator[tuple[int, ...]]:
    """All ways to write ``total`` as a sum of ``number`` integers from 0 on."""
    if number == 1:
        yield (total,)
        return
    for first in range(total + 1):
        yield from ((first, *rest) for rest in _splits(total - first, number - 1))


def without_comparison(names: Sequence[str], validated: bool) -> tuple[str, str]:
    """The configuration to use where nothing has a score, the first of `FALLBACK` that there is, and why."""
    name = next((each for each in FALLBACK if each in names), names[0])
    why = "no validated case has a class to score" if validated else "no fold validates on any case"
    return name, f"{name} is used without comparison: {why}, so nothing was cross-validated"


# --- gains ---


def dice_of(counts: Counts) -> Dices:
    """Dice from counts (..., C, 3), NaN where a class is in neither label map."""
    total = counts[..., 1] + counts[..., 2]
    return np.where(total > 0, 2 * counts[..., 0] / np.maximum(total, 1), np.nan)


def class_means(dices: Dices) -> NDArray[np.float64]:
    """Mean over cases of each class, of those in which it is defined; NaN where there are none."""
    defined = np.isfinite(dices)
    number = defined.sum(axis=0)
    return np.where(number > 0, np.where(defined, dices, 0).sum(axis=0) / np.maximum(number, 1), np.nan)


def mean_dice(dices: Dices) -> float | None:
    """Mean over cases for each class, then over the classes that have one; none where no class has."""
    means = class_means(dices)
    defined = means[np.isfinite(means)]
    return float(defined.mean()) if len(defined) else None


def paired_gain(before: Dices, after: Dices, units: Sequence[str]) -> Difference | None:
    """Mean gain with its 95 % interval and Wilcoxon test; none where no Dice is defined.

    Cases of one unit, a patient, count as one. A class that only one of both finds in a case without it goes from 0 to 1 or
    back: nothing was there to find, and one found nothing.
    """
    defined = np.isfinite(before) | np.isfinite(after)
    differences = np.where(defined, np.nan_to_num(after, nan=1.0) - np.nan_to_num(before, nan=1.0), 0)
    number = defined.sum(axis=1)
    gains = np.where(number > 0, differences.sum(axis=1) / np.maximum(number, 1), np.nan)
    return paired_difference(np.zeros(len(gains)), gains, unit_codes(units))


def judge(
    what: object, before: Dices, after: Dices, units: Sequence[str], about: Sequence[int], names: Sequence[str] = ()
) -> Trial:
    """Whether a choice is worth making: the interval of its gain over the classes ``about`` lies above zero.

    With ``names`` of all classes, no class's mean Dice may fall either (method section 9.3).
    """
    found = paired_gain(before[:, about], after[:, about], units)
    if found is None:
        return Trial(what=str(what), accepted=False, reason="no case has a score")
    means = class_means(before), class_means(after)
    fallen = [name for name, old, new in zip(names, *means, strict=True) if new < old] if names else []
    reason = ""
    if np.array_equal(before, after, equal_nan=True):
        reason = "changes no score"
    elif found.units < LEAST_CASES:
        reason = f"fewer than {LEAST_CASES} {'cases' if found.units == found.cases else 'patients'}"
    elif found.low is None or found.low <= 0:
        reason = "the interval does not lie above zero"
    elif fallen:
        reason = f"the mean Dice of {', '.join(fallen)} falls"
    return Trial(
        what=str(what),
        accepted=not reason,
        gain=found.mean,
        low=found.low,
        high=found.high,
        wilcoxon_p=found.wilcoxon_p,
        num_cases=found.cases,
        reason=reason,
    )


# --- choosing ---


class Evidence(Protocol):
    """What recipes score on validated cases, counted when asked for."""

    @property
    def candidates(self) -> tuple[Recipe, ...]:
        """What may be chosen from: single configurations first."""

    @property
    def has_ranked(self) -> bool:
        """Whether RankSEG can be tried."""

    @property
    def labels(self) -> Labels:
        """The classes."""

    def of_candidates(self, cases: Sequence[str]) -> Counts:
        """(cases, candidates, C, 3)."""

    def of_steps(self, recipe: Recipe, trials: Sequence[Step], cases: Sequence[str]) -> Counts:
        """(cases, 1 + trials, C, 3): of a recipe, and of each further step on top of it alone."""


def choose(evidence: Evidence, cases: Sequence[str], units: Sequence[str]) -> tuple[Recipe, tuple[Trial, ...]]:
    """The recipe for a model, and what was tried, on ``cases`` of ``units`` (patients).

    The single configuration with the highest mean Dice, of equals the first, is the start. Then, each kept where `judge` accepts
    it: the best of plain ensembles, the best of weighted ones, RankSEG, and postprocessing.
    """
    everything = range(len(evidence.labels.classes))
    dices = dice_of(evidence.of_candidates(cases))
    found = [mean_dice(dices[:, i]) for i in range(len(evidence.candidates))]
    means = [-1.0 if mean is None else mean for mean in found]
    singles, plain, weighted = _kinds(evidence.candidates)
    best = max(singles, key=lambda i: means[i])
    trials = []
    for group in filter(None, (plain, weighted)):
        i = max(group, key=lambda i: means[i])
        what = f"{evidence.candidates[i].name} instead of {evidence.candidates[best].name}"
        trials.append(judge(what, dices[:, best], dices[:, i], units, everything))
        best = i if trials[-1].accepted else best
    recipe = evidence.candidates[best]
    if evidence.has_ranked:
        ranked = recipe.model_copy(update={"decoder": "rankseg"})
        after = dice_of(evidence.of_steps(ranked, (), cases))[:, 0]
        trials.append(judge("RankSEG", dices[:, best], after, units, everything))
        recipe = ranked if trials[-1].accepted else recipe
    steps, tried = _choose_steps(evidence, recipe, cases, units)
    return recipe.model_copy(update={"postprocessing": steps}), (*trials, *tried)


def _kinds(candidates: Sequence[Recipe]) -> tuple[list[int], list[int], list[int]]:
    """Which are single configurations, ensembles with equal weights, and others."""
    singles = [i for i, each in enumerate(candidates) if len(each.members) == 1]
    plain = [i for i, each in enumerate(candidates) if len(each.members) > 1 and not each.weights]
    return singles, plain, [i for i, each in enumerate(candidates) if each.weights]


def _choose_steps(
    evidence: Evidence, recipe: Recipe, cases: Sequence[str], units: Sequence[str]
) -> tuple[tuple[Step, ...], list[Trial]]:
    """The postprocessing that helps: of all classes together; then for each its largest component or those that are
    large enough, whichever gains more; and filling of holes."""
    names = [each.name for each in evidence.labels.classes]
    steps, trials = trial_steps(evidence.labels), []
    accepted: tuple[Step, ...] = ()
    dices = dice_of(evidence.of_steps(recipe, steps, cases))

    def try_out(step: Step) -> Trial:
        about = [names.index(name) for name in step.classes]
        return judge(step, dices[:, 0], dices[:, 1 + steps.index(step)], units, about, names)

    if len(names) > 1:
        trials.append(try_out(steps[0]))
        if trials[0].accepted:
            accepted, steps = steps[:1], steps[1:]
            dices = dice_of(evidence.of_steps(recipe.model_copy(update={"postprocessing": accepted}), steps, cases))
    holes: tuple[Step, ...] = ()
    for name in names:
        own = [step for step in steps if step.classes == (name,)]
        small = [(try_out(step), step) for step in own if isinstance(step, RemoveSmallComponents)]
        first = (try_out(own[0]), own[0])
        last = (try_out(own[-1]), own[-1])
        best = max(
            small, key=lambda pair: -1.0 if pair[0].gain is None else pair[0].gain
        )  # of equals the smallest volume
        trials += [first[0], best[0], last[0]]
        kept = [pair for pair in (first, best) if pair[0].accepted]
        if kept:
            accepted += (max(kept, key=lambda pair: pair[0].gain or 0)[1],)
        holes += (last[1],) if last[0].accepted else ()
    return (*accepted, *holes), trials


def corrected_dices(
    evidence: Evidence,
    parts: Sequence[Sequence[str]],
    units: Sequence[str],
    chosen: Recipe,
    dices: Dices,
) -> tuple[Dices, int]:
    """Dice of all cases where the choices for each part are made on the others, and for how many parts they are those of ``chosen``.

    ``parts`` are the cases of each fold, one after the other as in ``units``; ``dices`` has their Dice by the recipe ``chosen``.
    """
    result, same, start = dices.copy(), 0, 0
    cases = [case for part in parts for case in part]
    for part in parts:
        own = slice(start, start + len(part))
        start = own.stop
        others = [i for i in range(len(cases)) if not own.start <= i < own.stop]
        recipe, _ = choose(evidence, [cases[i] for i in others], [units[i] for i in others])
        if recipe == chosen:
            same += 1
        else:
            result[own] = dice_of(evidence.of_steps(recipe, (), part))[:, 0]
    return result, same
