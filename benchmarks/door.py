"""False alarms and found oddities of what warns of images unlike those of training (`autoseg.preprocessing.looks`), on real data.

Usage: ``python benchmarks/door.py --real-data DIR [FOLDER ...]``. Of each labelled folder every case is left out once: its look is compared with that of
the others, which must raise no alarm. Then the same looks are changed: channels in every other order, intensities turned over, moved by 1024 (a CT without
its offset) or a thousandth of them, voxels of ten times the size, a third of the field of view, a grid tilted by 45 degrees, no orientation. It tells how often that is
found. Schemes that standardise each image do not depend on a factor or an offset, so nothing should be found there. Writes ``results/door.md``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from folders import FOLDERS, SPECS

import autoseg
from autoseg.issues import AutosegError
from autoseg.preprocessing.looks import LEAST_CASES, Usual, channel_distances, unlike
from planners import CaseLook, CaseSize, Fingerprint, Plan

RESULTS = Path(__file__).resolve().parent / "results" / "door.md"
Change = Callable[[CaseLook], CaseLook]


def with_curves(look: CaseLook, change: Callable[[np.ndarray], np.ndarray]) -> CaseLook:
    """A look whose intensities were changed by a monotone function."""
    means, quantiles = change(np.array(look.means)), [np.sort(change(np.array(each))) for each in look.quantiles]
    stds = [abs(float(change(np.array(std)) - change(np.array(0.0)))) for std in look.stds]
    curves = tuple(tuple(each.tolist()) for each in quantiles)
    return look.model_copy(update={"means": tuple(means.tolist()), "stds": tuple(stds), "quantiles": curves})


INTENSITIES: dict[str, Change] = {
    "turned over": lambda look: with_curves(look, lambda values: -values),
    "+1024": lambda look: with_curves(look, lambda values: values + 1024),
    "/1000": lambda look: with_curves(look, lambda values: values / 1000),
}
PLACES: dict[str, dict[str, float]] = {
    "voxels x10": {"spacing": 10.0, "extent": 10.0},
    "third of view": {"spacing": 1.0, "extent": 1 / 3},
}


def others(fingerprint: Fingerprint) -> Iterator[tuple[CaseSize, CaseLook, Fingerprint]]:
    """Each case, its look, and the fingerprint without it."""
    for i, (case, look) in enumerate(zip(fingerprint.cases, fingerprint.looks, strict=True)):
        cases, looks = list(fingerprint.cases), list(fingerprint.looks)
        del cases[i], looks[i]
        yield case, look, fingerprint.model_copy(update={"cases": tuple(cases), "looks": tuple(looks)})


def alarms(
    usual: Usual, case: CaseSize, look: CaseLook, plan: Plan, spacing: float = 1, extent: float = 1
) -> list[str]:
    mm = np.array(case.spacing_mm)
    place = (tuple(spacing * mm), tuple(extent * mm * np.array(case.shape)))
    return unlike(usual, look, plan, place=place)


def reordered(look: CaseLook, order: Sequence[int]) -> CaseLook:
    taken = {name: tuple(getattr(look, name)[i] for i in order) for name in ("means", "stds", "quantiles")}
    return look.model_copy(update=taken)


def row(name: str, fingerprint: Fingerprint, plan: Plan) -> tuple[str, list[str]]:
    """One line of the table, and the false alarms."""
    false, far, gained, wide = [], 0.0, 0.0, 1.0
    found: dict[str, list[bool]] = {"order": [], **{key: [] for key in (*INTENSITIES, *PLACES)}, "45°": [], "none": []}
    number = len(plan.channels)
    for case, look, rest in others(fingerprint):
        usual = Usual.of(rest, plan)
        if usual is None:
            continue
        false += [f"{name}, {case.case_id}: {words}" for words in alarms(usual, case, look, plan)]
        distances = channel_distances(usual, look, plan)
        far, own = max(far, float(np.diag(distances).max())), np.trace(distances)
        orders = list(itertools.permutations(range(number)))[1:] if number < 6 else []
        gained = max([gained, *(own - sum(distances[i, k] for i, k in enumerate(order)) for order in orders)])
        mm = np.array(case.spacing_mm)
        for values, ranges in ((mm, usual.spacing_mm), (mm * np.array(case.shape), usual.extent_mm)):
            wide = max(
                [
                    wide,
                    *(
                        max(v / high, low / v)
                        for v, (low, high), flat in zip(values, ranges, usual.is_flat, strict=True)
                        if not flat
                    ),
                ]
            )
        found["order"] += [
            any("look like" in words for words in alarms(usual, case, reordered(look, order), plan)) for order in orders
        ]
        for key, change in INTENSITIES.items():
            found[key].append(
                any("intensities" in words or "look like" in words for words in alarms(usual, case, change(look), plan))
            )
        for key, changes in PLACES.items():
            found[key].append(bool(alarms(usual, case, look, plan, **changes)))
        tilted = look.model_copy(update={"tilt_deg": 45.0})
        lost = look.model_copy(update={"has_directions": False, "tilt_deg": 0.0})
        found["45°"].append(any("tilted" in words for words in alarms(usual, case, tilted, plan)))
        found["none"].append(any("orientation" in words for words in alarms(usual, case, lost, plan)))
    schemes = ", ".join(dict.fromkeys(each.scheme for each in plan.configurations[0].normalization))
    cells = [f"{np.mean(hits):.0%}" if hits else "-" for hits in found.values()]
    text = f"| `{name}` | {len(fingerprint.cases)} | {number} | {schemes} | {len(false)} | {far:.2f} | {gained:.2f} | {wide:.2f} | "
    return text + " | ".join(cells) + " |", false


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", default=list(FOLDERS))
    parser.add_argument("--real-data", type=Path, required=True)
    given = parser.parse_args()
    lines = [
        "| folder | cases | channels | normalisation | false alarms | farthest | most gained by another order | widest | other order | "
        + " | ".join((*INTENSITIES, *PLACES, "tilted by 45°", "no orientation"))
        + " |",
        "|" + "---|" * (9 + len(INTENSITIES) + len(PLACES) + 2),
    ]
    false: list[str] = []
    for folder in given.folders:
        spec = FOLDERS[folder]
        options = {"spec": str(SPECS / f"{spec}.toml")} if spec else {}
        with TemporaryDirectory() as run:
            try:
                done = autoseg.plan(given.real_data / folder, run, skip_bad=True, workers=1, **options)
            except AutosegError as error:
                sys.stderr.write(f"{folder}: {error.issues[0]}\n")
                continue
            fingerprint, plan = done.fingerprint, done.plan
        if len(fingerprint.looks) <= LEAST_CASES:
            lines.append(
                f"| `{folder}` | {len(fingerprint.looks)} | {len(plan.channels)} | too few cases to leave one out |"
                + " |" * (5 + len(INTENSITIES) + len(PLACES) + 2)
            )
            continue
        text, own = row(folder, fingerprint, plan)
        lines.append(text)
        false += own
        print(text, *own, sep="\n", flush=True)
    RESULTS.write_text(
        "# Images unlike those of training\n\n`python benchmarks/door.py --real-data DIR`; what is compared is in `autoseg/preprocessing/looks.py`. *Farthest*: the "
        "largest distance of a channel of a case that was left out, where 1 is that of the most distant of the others; *widest*: by how much its voxels or field of view are beyond theirs. "
        "Behind it: the share of changed looks that are found.\n\n"
        + "\n".join(lines)
        + "\n\n"
        + "".join(f"False alarm: {each}\n" for each in false)
    )


if __name__ == "__main__":
    main()
