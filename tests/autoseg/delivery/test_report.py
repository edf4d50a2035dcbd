"""The report page: whole, self-contained, escaped, honest about what was not validated."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from builders import short_schedule
from made_folds import make_plan

from autoseg.data.dataset import Case, DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.data.phantom import make_phantom_dataset
from autoseg.delivery.figures import (
    _epochs,
    _view,
    best_slice,
    case_scores,
    configuration_curves,
    fold_curves,
    overlay,
)
from autoseg.delivery.report import (
    FoldLog,
    RankedCase,
    ReportContent,
    rank_cases,
    read_report,
    read_trainings,
    render_report,
    write_report,
)
from autoseg.evaluation.label_maps import KeepLargestComponent
from autoseg.evaluation.metrics import EvaluatedClass, compare
from autoseg.evaluation.scoring import score_cases
from autoseg.evaluation.selection import Candidate, Selection, Trial
from autoseg.evaluation.table import CaseResult, Summary, summarize, write_summary
from autoseg.issues import Issue
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import save_document
from autoseg.tracking.callbacks import EpochRecord, history_text, save_issues
from planners import DecisionRecord, Edit, LabelClass, Labels, Revision

VOID = {"meta", "img", "br", "hr", "link", "input"}
CLASSES = (EvaluatedClass(name="head <b>", values=(1,)), EvaluatedClass(name="tail", values=(2,)))


LOST = Issue(
    code="training.class_lost",
    severity="warning",
    where="tail <t>",
    message="is not found on any validation patch after 250 steps",
    fix="look at its labels",
)
DATASET = DatasetDescription(
    name="Balls & <script>alert(1)</script>",
    root="balls",
    layout="pairs",
    channels=("MRI",),
    labels=Labels(classes=(LabelClass(name="head <b>", values=(1,)), LabelClass(name="tail", values=(2,)))),
    file_values=(0, 1, 2),
    file_ending=".nii.gz",
    training=tuple(Case(case_id=f"case_{i}", images=(f"{i}.nii",), label=f"{i}_seg.nii") for i in range(5)),
    test=tuple(Case(case_id=f"case_{i}", images=(f"{i}.nii",)) for i in (5, 6)),
    issues=(
        Issue(code="dataset.remark", severity="note", where="root", message="a <note>", fix="nothing to do"),
        Issue(
            code="dataset.no_image",
            severity="error",
            case="case_9",
            where="labels/case_9.nii.gz",
            message="has no image",
            fix="add the image",
        ),
    ),
    left_out=("case_9",),
)


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects ids, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def label_map(seed: int, *, noise: float = 0.0) -> np.ndarray:
    """Two neighbouring balls in (12, 40, 50), their border shaken by ``noise``."""
    z, y, x = np.ogrid[:12, :40, :50]
    wave = noise * np.random.default_rng(seed).standard_normal((12, 40, 50))
    labels = np.zeros((12, 40, 50), dtype=np.uint8)
    labels[np.sqrt(4 * (z - 6) ** 2 + (y - 18) ** 2 + (x - 18) ** 2) + wave < 9] = 1
    labels[np.sqrt(4 * (z - 6) ** 2 + (y - 22) ** 2 + (x - 32) ** 2) + wave < 7] = 2
    return labels


def case(name: str, prediction: np.ndarray) -> CaseResult:
    scores = compare(prediction, label_map(0), classes=CLASSES, spacing_mm=(2.0, 1.0, 1.0))
    return CaseResult(
        case_id=name, metrics={each.key: scores[each.name] for each in CLASSES}, prediction_file="p", reference_file="r"
    )


@pytest.fixture(scope="module")
def summary() -> Summary:
    cases = [case(f"case_{i}", label_map(i, noise=noise)) for i, noise in enumerate((0.5, 4.0, 1.0, 0.0))]
    return summarize([*cases, case("case_missed", np.zeros((12, 40, 50), dtype=np.uint8))], CLASSES)


def epoch(number: int, **fields: object) -> EpochRecord:
    values: dict[str, object] = {
        "epoch": number,
        "step": 50 * (number + 1),
        "loss": -0.8 + math.exp(-number / 4),
        "pseudo_dice": {"head <b>": 0.9 - 0.9 * math.exp(-number / 3), "tail": None if number < 3 else 0.5},
        "moving_average": 0.85 - 0.8 * math.exp(-number / 5),
        "learning_rate": 0.01 * (1 - number / 20) ** 0.9,
        "seconds": 10.0,
        "wait_share": 0.01,
        "validation_loss": -0.7 + math.exp(-number / 5),
    }
    return EpochRecord(**(values | fields))  # type: ignore[arg-type]


def history(fold: int) -> list[EpochRecord]:
    return [epoch(i, moving_average=0.85 - 0.8 * math.exp(-i / 5) - 0.01 * fold) for i in range(20)]


@pytest.fixture(scope="module")
def selection(summary: Summary) -> Selection:
    step = KeepLargestComponent(classes=("head <b>", "tail"))
    kept = Trial(what=str(step), accepted=True, gain=0.021, low=0.004, high=0.038, num_cases=12)
    refused = Trial(
        what="RankSEG",
        accepted=False,
        gain=0.001,
        low=-0.002,
        high=0.004,
        num_cases=12,
        reason="does not lie above zero",
    )
    dices = {"2d": 0.5, "3d_fullres": summary.mean_dice}
    return Selection(
        members=("3d_fullres",),
        folds=(0, 1, 2, 3, 4),
        postprocessing=(step,),
        cross_validated=True,
        reason="3d_fullres is the best single configuration",
        candidates=tuple(
            Candidate(name=name, members=(name,), mean_dice=dice, dice_per_class={"head <b>": dice}, num_cases=12)
            for name, dice in dices.items()
        ),
        dice_before_postprocessing=0.7,
        dice_after_postprocessing=0.8,
        dice_corrected=0.7912,
        correction="choices were made on the other folds",
        trials=(refused, kept),
    )


@pytest.fixture(scope="module")
def content(summary: Summary, selection: Selection) -> ReportContent:
    image = np.random.default_rng(0).standard_normal((12, 40, 50)) + 4 * label_map(0)
    png = overlay(
        image, label_map(0), label_map(1, noise=2.0), names={1: "head <b>", 2: "tail"}, spacing_mm=(2.0, 1.0, 1.0)
    )
    return ReportContent(
        dataset=DATASET,
        selection=selection,
        summary=summary,
        trainings=[
            FoldLog(
                configuration=name, fold=fold, history=history(fold), issues=[LOST] if (name, fold) == ("2d", 1) else ()
            )
            for name in ("2d", "3d_fullres")
            for fold in range(2)
        ],
        decisions=(
            DecisionRecord(
                rule="spacing.target",
                configuration="3d_fullres",
                value=[2.0, 1.0, 1.0],
                reason="the median is <2, 1, 1> mm",
                source="method 3.2",
                change="a coarser median would give a coarser target",
            ),
            DecisionRecord(
                rule="cascade.low_resolution",
                configuration=None,
                value=False,
                reason="patches see 60% of a case",
                source="method 3.10",
            ),
        ),
        pictures=[(RankedCase(rank="best", case_id="case_3", dice=1.0), png)],
        settings={"--budget": "2h", "--layout": "a <layout>"},
        edits=[Edit(path="3d_fullres.patch_shape", own=[128, 128, 128], value=[64, 160, 160])],
        commands={"Segment new images": "autoseg predict RUN IMAGES OUT && echo 'done'"},
        environment={"autoseg": "0.1.0", "torch": "2.13.0", "processor": "2 cores <fast>"},
        durations_s={"fingerprint": 12.0, "train": 3723.0},
    )


@pytest.fixture(scope="module")
def page(content: ReportContent) -> Page:
    return Page(render_report(content))


def test_page_is_written_as_it_is_rendered(content: ReportContent, tmp_path: Path) -> None:
    small = dataclasses.replace(content, trainings=content.trainings[:1])

    path = write_report(tmp_path / "report", small)

    assert path == tmp_path / "report" / "index.html"
    # twice the same, although its pictures are drawn twice
    assert path.read_text(encoding="utf-8") == render_report(small)


def test_page_is_whole_html(page: Page) -> None:
    assert page.open == []
    assert [page.tags.count(tag) for tag in ("html", "head", "body", "main", "h1", "title")] == [1] * 6
    assert len(page.values("id")) == len(set(page.values("id")))
    assert all(alt for tag, name, alt in page.attributes if (tag, name) == ("img", "alt"))
    assert page.tags.count("img") == sum((tag, name) == ("img", "alt") for tag, name, _ in page.attributes)


def test_page_needs_nothing_from_outside(page: Page) -> None:
    assert all(link.startswith("#") and link[1:] in page.values("id") for link in page.values("href"))
    assert all(source.startswith("data:image/") for source in page.values("src"))
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "width=device-width" in " ".join(page.values("content"))


def test_all_text_of_the_dataset_is_escaped(page: Page) -> None:
    assert "Balls & <script>alert(1)</script>" in page.text
    assert page.tags.count("b") == 5  # the tiles, none from the class called head <b>
    assert "the median is <2, 1, 1> mm" in page.text
    assert "autoseg predict RUN IMAGES OUT && echo 'done'" in page.text


def test_page_shows_the_scores(page: Page, summary: Summary) -> None:
    text = page.text

    assert "cross-validated mean Dice 0.791" in text
    assert "over 5 cases" in text
    for each in CLASSES:
        assert f"{each.name} {summary.mean[each.key]['Dice']:.3f}" in text
    assert "1 missed" in text
    assert "case_missed 0.000" in text
    assert "3d_fullres (chosen)" in text
    assert "Mean Dice with all choices 0.8000; corrected for having chosen on these cases 0.7912 (choices" in text
    gained = "largest component of head <b>, tail together: +0.0210 [+0.0040, +0.0380] over 12 cases"
    assert text.count(gained) == 2  # among what was accepted, and what was tried
    assert "RankSEG: +0.0010 [-0.0020, +0.0040] over 12 cases: not accepted, does not lie above zero" in text


def test_cases_come_worst_first(page: Page) -> None:
    text = page.text.split("the worst first")[1]

    places = [text.index(name) for name in ("case_missed", "case_1", "case_2", "case_0", "case_3")]
    assert places == sorted(places)


def test_page_shows_decisions_issues_and_times(page: Page) -> None:
    text = page.text

    assert "cascade: low resolution no patches see 60% of a case" in text
    assert "spacing: target 2, 1, 1" in text
    assert "Would change: a coarser median" in text
    assert text.index("labels/case_9.nii.gz") < text.index("a <note>")  # errors before notes
    assert "train 1 h 02 min" in text
    assert "total 1 h 02 min" in text
    assert "dataset.no_image" in text
    assert "Left out of the dataset: case_9." in text
    assert "processor 2 cores <fast>" in text


def test_without_cross_validation_no_score_is_shown(content: ReportContent) -> None:
    selection = Selection(
        members=("3d_fullres",),
        folds=(0,),
        postprocessing=(),
        cross_validated=False,
        reason="nothing was validated",
        candidates=(),
        dice_before_postprocessing=None,
        dice_after_postprocessing=None,
    )

    text = Page(render_report(dataclasses.replace(content, summary=None, selection=selection, trainings=()))).text

    assert "cross-validated mean Dice none nothing was cross-validated" in text
    assert "model 3d_fullres 1 fold each" in text
    assert "Hausdorff" not in text


def test_scores_without_cross_validation_are_refused(content: ReportContent, selection: Selection) -> None:
    unvalidated = selection.model_copy(update={"cross_validated": False})

    with pytest.raises(ValueError, match="must not be reported"):
        dataclasses.replace(content, selection=unvalidated)


def test_page_names_options_and_edits(content: ReportContent, page: Page) -> None:
    assert "--budget 2h --layout a <layout>" in page.text
    assert "3d_fullres.patch_shape 64, 160, 160 128, 128, 128" in page.text
    plain = Page(render_report(dataclasses.replace(content, settings={}, edits=(), trainings=())))
    assert not {"settings", "edits"} & set(plain.values("id"))


def test_unfinished_run_has_a_page_too() -> None:
    early = DATASET.model_copy(update={"issues": (), "left_out": ()})

    page = Page(render_report(ReportContent(dataset=early)))

    assert page.open == []
    assert page.values("id") == ["issues"]
    assert "training or selection is not finished" in page.text
    assert "No issues found." in page.text


def test_scores_that_are_too_high_have_a_caveat(content: ReportContent) -> None:
    known = Issue(code="scores.known_to_pretrained", severity="warning", where="", message="4 of 5 cases were known")

    text = Page(render_report(dataclasses.replace(content, caveats=[known], trainings=()))).text

    assert "Caution: 4 of 5 cases were known scores.known_to_pretrained" in text
    assert "network that did not see it" not in text


def test_trainings_are_read_with_what_went_wrong(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    whole = short_schedule(make_plan(), num_folds=4)
    left_out = Revision(
        configuration="2d",
        fold=3,
        step=0,
        num_steps=0,
        planned_steps=whole.trainings[0].num_steps,
        step_s=1.0,
        reason="the test",
    )
    schedule = whole.model_copy(update={"revisions": (left_out,)})
    for fold in (0, 1):
        folder.fold("2d", fold).mkdir(parents=True)
        (folder.fold("2d", fold) / "history.jsonl").write_text(history_text(history(fold)))
    save_issues(folder.fold("2d", 0), [LOST], key="0")
    with open(folder.fold("2d", 1) / "history.jsonl", "a") as file:
        file.write("{")

    first, damaged, missing = read_trainings(folder, schedule)

    assert (first.history, first.issues) == (history(0), (LOST,))
    assert damaged.history == history(1)
    assert [issue.code for issue in damaged.issues] == ["history.damaged"]
    assert (missing.configuration, missing.fold, missing.history, missing.issues) == ("2d", 2, [], ())


def test_content_is_read_from_the_run_folder(tmp_path: Path, selection: Selection) -> None:
    """A phantom whose predictions are its references: its three pictures are drawn."""
    make_phantom_dataset(tmp_path / "data", num_training=3, num_test=0)
    dataset, folder = discover_dataset(tmp_path / "data"), RunFolder(tmp_path / "run")
    references = [(case.case_id, Path(case.label_files[0])) for case in dataset.training]
    save_document(folder.dataset, dataset)
    rest: dict[str, Mapping[str, str]] = {"settings": {"--seed": "1"}, "commands": {}, "environment": {}}
    early = read_report(folder, durations_s={}, **rest)
    for _, path in references:
        folder.cross_validation.mkdir(exist_ok=True)
        shutil.copy(path, folder.cross_validation)
    write_summary(folder.cross_validation / "summary.json", score_cases(dataset, references))
    unscored = read_report(folder, durations_s={}, **rest)
    save_document(folder.selection, selection)

    content = read_report(folder, durations_s={}, **rest)

    assert (early.dataset, early.decisions, early.selection, early.pictures) == (dataset, [], None, [])
    assert unscored.summary is None  # nothing says that it was cross-validated
    assert content.summary is not None
    assert content.summary.mean_dice == 1.0
    assert [ranked.rank for ranked, _ in content.pictures] == ["best", "median", "worst"]
    assert all(coloured(png) for _, png in content.pictures)
    assert Page(render_report(content)).open == []


def test_cases_are_ranked(summary: Summary) -> None:
    got = rank_cases(summary)

    assert [(each.rank, each.case_id) for each in got] == [
        ("best", "case_3"),
        ("median", "case_2"),
        ("worst", "case_missed"),
    ]
    assert (got[0].dice, got[2].dice) == (1.0, 0.0)


@pytest.mark.parametrize(("number", "ranks"), [(0, ()), (1, ("best",)), (2, ("best", "worst"))])
def test_few_cases_are_ranked_once_each(summary: Summary, number: int, ranks: tuple[str, ...]) -> None:
    few = summarize(summary.metric_per_case[:number], CLASSES)

    assert tuple(each.rank for each in rank_cases(few)) == ranks


def test_slice_with_most_of_the_reference_is_shown() -> None:
    reference, prediction = np.zeros((2, 5, 4, 4), dtype=np.uint8)
    reference[1, 0, :2] = 1
    reference[3, 0, :3] = 1
    reference[4] = 7  # not among the values
    prediction[2] = 1

    assert best_slice(reference, prediction, (1,)) == 3
    assert best_slice(None, prediction, (1,)) == 2
    assert best_slice(reference, prediction, (9,)) == 2  # the middle


def picture(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")


def coloured(png: bytes) -> int:
    """Number of pixels that are not grey."""
    pixels = picture(png)[..., :3]
    return int(np.count_nonzero(np.ptp(pixels, axis=-1) > 0.2))


def test_overlay_draws_both_outlines() -> None:
    image, labels = np.zeros((12, 40, 50)), label_map(0)
    names = {1: "head", 2: "tail"}

    both = overlay(image, labels, labels, names=names)
    one = overlay(image, None, labels, names=names)
    none = overlay(image, None, np.zeros_like(labels), names=names)

    assert coloured(both) > coloured(one) > 0
    assert coloured(none) == 0


@pytest.mark.parametrize(
    "image",
    [np.full((1, 6, 5), 3.0), np.full((1, 6, 5), np.nan), np.arange(30).reshape(1, 6, 5), np.full((1, 6, 5), np.inf)],
)
def test_overlay_takes_any_image(image: np.ndarray) -> None:
    """Constant, whole numbers, without a finite voxel; a class that fills the slice."""
    labels = np.ones((1, 6, 5), dtype=np.uint8)

    assert picture(overlay(image, labels, labels, names={1: "$all_"})).shape[-1] == 4


@pytest.mark.parametrize(
    ("extent", "shown"),
    [
        (10, slice(68, 132)),  # never less than 64 pixels
        (60, slice(40, 160)),  # half the extent around it
        (150, slice(0, 200)),  # all there is
    ],
)
def test_structures_are_shown_with_a_margin(extent: int, shown: slice) -> None:
    mask = np.zeros((200, 200), dtype=bool)
    inside = slice(100 - extent // 2, 100 + extent // 2)
    mask[inside, inside] = True

    assert _view(mask) == (shown, shown)


@pytest.mark.parametrize(("number", "entries"), [(10, 11), (11, 12), (12, 12)])
def test_legends_stop_at_twelve_entries(number: int, entries: int) -> None:
    names = [f"class {i}" for i in range(number)]
    records = [epoch(i, pseudo_dice=dict.fromkeys(names, 0.5)) for i in (0, 1)]

    svg = fold_curves(records).decode()

    shown = sum(f"<!-- {name} -->" in svg for name in names)
    assert shown + ("<!-- moving average -->" in svg) == entries


def test_overlay_keeps_the_proportions_of_voxels() -> None:
    """Slices 3 mm high and 1 mm wide are shown three times as high."""
    image = np.arange(64 * 64, dtype=float).reshape(1, 64, 64)
    empty = np.zeros((1, 64, 64), dtype=np.uint8)

    shown = picture(overlay(image, None, empty, names={1: "a"}, spacing_mm=(1.0, 3.0, 1.0)))

    dark = np.argwhere(shown[..., :3].mean(axis=-1) < 0.9)
    upper = dark[dark[:, 0] < 0.85 * shown.shape[0]]  # without the legend
    height, width = np.ptp(upper, axis=0)
    assert height / width == pytest.approx(3, rel=0.15)  # the picture's upper, white rows are cut off


@pytest.mark.parametrize("records", [[], [epoch(0, loss=None, pseudo_dice={}, moving_average=None)]])
def test_curves_take_histories_with_gaps(records: list[EpochRecord]) -> None:
    for svg in (fold_curves(records), configuration_curves({0: records, 3: records})):
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_training_issues_are_shown(content: ReportContent, page: Page) -> None:
    quiet = dataclasses.replace(content, trainings=content.trainings[:1])

    assert "fold 1: tail <t>: is not found on any validation patch after 250 steps" in page.text
    assert "is not found" not in Page(render_report(quiet)).text


def test_gaps_in_a_history_are_gaps_in_the_curves() -> None:
    epochs = _epochs(
        [
            epoch(0, loss=None, wait_share=0.25, pseudo_dice={"a.b": None}),
            epoch(1, loss=0.5, seconds=4.0, wait_share=0.5, pseudo_dice={"a.b": 0.75}),
        ]
    )

    assert epochs["loss"].dropna().to_dict() == {100: 0.5}
    assert (epochs["seconds"] * epochs["wait_share"]).to_dict() == {50: 2.5, 100: 2.0}
    assert epochs["pseudo_dice.a.b"].dropna().to_dict() == {100: 0.75}


def test_figures_leave_settings_as_they_were(summary: Summary) -> None:
    before = dict(matplotlib.rcParams)

    case_scores(summary)
    fold_curves(history(0))

    assert dict(matplotlib.rcParams) == before


def test_embedded_pictures_are_whole(page: Page) -> None:
    sources = page.values("src")

    assert len(sources) == 1 + 1 + 2 + 4  # scores, overlay, one for each configuration, one for each training
    for source in sources:
        kind, data = source.removeprefix("data:image/").split(";base64,")
        raw = base64.b64decode(data, validate=True)
        assert ElementTree.fromstring(raw).tag.endswith("svg") if kind == "svg+xml" else picture(raw).size


@pytest.mark.parametrize(
    ("mm", "bar_mm"), [(1.0, 20), (0.5, 10), (0.9375, 20), (0.93, 10)]
)  # a third is 20 mm from 0.9375 mm on
def test_axial_slices_have_sides_and_a_scale(mm: float, bar_mm: float) -> None:
    """In a black slice of 64 x 64 pixels, so that what is white is what was written."""
    image, empty = np.zeros((5, 64, 64)), np.zeros((5, 64, 64), dtype=np.uint8)

    def shown(is_axial: bool) -> np.ndarray:
        png = overlay(image, None, empty, names={1: "a"}, spacing_mm=(2.0, mm, mm), is_axial=is_axial)
        pixels = picture(png)[..., :3].mean(axis=-1)
        rows, columns = (np.flatnonzero((pixels < 0.1).mean(axis=axis) > 0.5) for axis in (1, 0))
        return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] > 0.9

    assert not shown(False).any()
    white = shown(True)
    height, width = white.shape
    sides = white[:, : width // 8], white[:, -width // 8 :], white[: height // 8], white[-height // 8 :]
    assert all(side.any() for side in sides)
    rows = ["".join("x" if each else " " for each in row) for row in white[-height // 8 :]]
    longest = max(len(run) for row in rows for run in row.split())
    assert longest / width == pytest.approx(bar_mm / (64 * mm), abs=0.02)  # ends of the line, and rounding to pixels


def test_what_was_never_validated_has_no_empty_axes() -> None:
    bare = [epoch(i, moving_average=None, pseudo_dice={}) for i in range(3)]
    alone, both = (configuration_curves({0: records}).decode() for records in (bare, history(0)))
    assert "pseudo-Dice" not in alone
    assert "pseudo-Dice" in both


def test_photographs_are_measured_in_pixels(content: ReportContent) -> None:
    assert content.summary is not None
    cases = tuple(
        each.model_copy(update={"reference_file": f"{each.case_id}.png"}) for each in content.summary.metric_per_case
    )
    photographs = content.summary.model_copy(update={"metric_per_case": cases})
    text = Page(render_report(dataclasses.replace(content, summary=photographs))).text
    assert "95 % Hausdorff, px" in text
    assert "predicted, thousands of px" in text
    assert "Hausdorff, mm" not in text
