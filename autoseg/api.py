"""Every command as a function, with the same defaults; the command line calls them, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import require_place_for_predictions
from autoseg.settings import make_settings, parse_duration, parse_part
from autoseg.stages.begin import begin_run, described_folder, find_run
from autoseg.stages.run import Run
from autoseg.tracking.progress import Reporter, SilentReporter
from autoseg.wording import as_line

if TYPE_CHECKING:
    from autoseg.data.checks.report import CheckReport
    from autoseg.data.discovery.inputs import Inputs
    from autoseg.data.tables import GroupsTable
    from autoseg.delivery.container.verdict import Rehearsal
    from autoseg.delivery.submission import Submission
    from autoseg.evaluation.comparison import Comparison
    from autoseg.evaluation.table import Summary
    from autoseg.imaging.readers import Imagelike
    from autoseg.stages.cluster import UnitStatus

Place = Path | str
OF_A_CALL = ("redo", "replan", "reporter", "callbacks")
"""Options that are not stored in the run."""


def run(
    dataset: Place, out: Place | None = None, *, cluster: str | None = None, slurm_options: str = "", **options: Any
) -> Run:
    """Do everything: check, plan, train, cross-validate, select, predict the test images, report.

    ``dataset`` is a folder of labelled volumes, or a run folder, which is resumed; ``out`` is the run folder (default
    ``run``). ``options`` are fields of `Settings` (``budget="2h"``, ``device="cpu"``; others keep the values stored in the
    run) and those of this call: ``redo=True``, trained networks may be replaced; ``replan=True``, edits of ``plan.json`` and
    ``schedule.json`` are discarded; ``callbacks``, called at stages, steps, epochs and folds; ``reporter``, shows progress.
    With ``cluster`` (``dask://HOST:PORT``, ``dask-local:4``, ``slurm``; ``slurm_options`` are sbatch's) the work is sent there
    and waited for; ``callbacks`` stay here, so they are refused. Raises `AutosegError` with all issues.
    """
    from autoseg.pipeline import run_all

    if cluster is not None:
        return _run_there(dataset, out, options, cluster=cluster, slurm_options=slurm_options, until="report")
    return _lead(run_all, dataset, out, options)


def fingerprint(dataset: Place, out: Place | None = None, *, cluster: str | None = None, **options: Any) -> Run:
    """Measure sizes, spacings and intensities of a dataset; arguments as of `run`. The result has ``.fingerprint``."""
    return _spread("fingerprint", dataset, out, options, cluster)


def plan(dataset: Place, out: Place | None = None, **options: Any) -> Run:
    """Decide what to do with a dataset; trains nothing. Arguments as of `run`. The result has ``.plan``."""
    return _until("plan", _begin(dataset, out, options))


def preprocess(dataset: Place, out: Place | None = None, *, cluster: str | None = None, **options: Any) -> Run:
    """Crop, normalise and resample every case for the configurations that may be trained. Arguments as of `run`."""
    return _spread("preprocess", dataset, out, options, cluster)


def _spread(
    stage: str, dataset: Place, out: Place | None, options: dict[str, Any], cluster: str | None, **context: Any
) -> Run:
    """The stages of a run up to ``stage``, in this process; the cases are done by the workers of a Dask cluster, if one is given."""
    with ExitStack() as stack:
        _refuse_slurm(cluster)
        begun = _begin(dataset, out, options, **context)
        _spread_cases(stack, cluster, begun.folder.root)
        return _until(stage, begun)


def _refuse_slurm(cluster: str | None) -> None:
    """Raise `AutosegError` for a cluster that takes no cases."""
    from autoseg.compute.cluster import parse_cluster

    if cluster is not None and parse_cluster(cluster).kind == "slurm":
        message, fix = (
            "Slurm takes whole commands, not cases",
            "use autoseg run or train, or submit this command with sbatch",
        )
        raise AutosegError(Issue(code="settings.contradiction", where="--cluster slurm", message=message, fix=fix))


def _spread_cases(stack: ExitStack, cluster: str | None, folder: Path) -> None:
    """Until ``stack`` ends, cases are done by the workers of a Dask cluster, if one is given."""
    if cluster is None:
        return
    from autoseg.compute.cluster import open_dask, parse_cluster
    from autoseg.compute.executor import spread_over

    _refuse_slurm(cluster)
    workers = stack.enter_context(open_dask(parse_cluster(cluster), folder=folder.absolute()))
    stack.enter_context(spread_over(workers))


def train(
    dataset: Place,
    out: Place | None = None,
    *,
    configuration: str | None = None,
    fold: int | None = None,
    wait: bool = False,
    within: str | float | None = None,
    cluster: str | None = None,
    slurm_options: str = "",
    **options: Any,
) -> Run:
    """Train and validate all that is scheduled, or one ``configuration`` or ``fold``. Other arguments as of `run`.

    Where another process trains what is asked for, that is an error, or, with ``wait``, waited for. ``within`` a time (``"20m"``, or
    seconds) a ``fold`` of a ``configuration`` is trained and validated, if a budget decides how long: its steps follow the pace.
    """
    only: dict[str, Any] = {"configuration": configuration, "fold": fold}
    if cluster is not None:
        return _run_there(dataset, out, options, cluster=cluster, slurm_options=slurm_options, until="train", **only)
    if within is not None and (configuration is None or fold is None):
        message, fix = "is the time of one training", "add --configuration and --fold, or omit it"
        raise AutosegError(Issue(code="settings.contradiction", where="--within", message=message, fix=fix))
    within_s = None if within is None else _seconds("--within", within)
    return _lead(partial(_until, "validate"), dataset, out, options, waits=wait, within_s=within_s, **only)


def _lead(
    work: Callable[[Run], Run], dataset: Place, out: Place | None, options: dict[str, Any], **context: Any
) -> Run:
    """Do the work of a run; of several processes that torchrun started only the first does, and the others train with it."""
    reporter: Reporter = options.get("reporter") or SilentReporter()
    with reporter.phase("Starting"):  # torch is loaded
        from autoseg.stages.together import under_torchrun

    with under_torchrun() as ranks:
        if ranks is not None and ranks.rank:
            _, root = find_run(_path("dataset", dataset), None if out is None else _path("out", out))
            return replace(Run.open(root), ranks=ranks)
        return work(_begin(dataset, out, options, needs_device=True, ranks=ranks, **context))


def job_scripts(
    dataset: Place, out: Place | None = None, *, until: Literal["train", "report"] = "report", **options: Any
) -> list[Path]:
    """Write the job scripts that `run` (or, ``until="train"``, `train`) would submit to Slurm, and submit nothing."""
    from autoseg.compute.cluster import parse_cluster
    from autoseg.stages.cluster import write_scripts

    address, slurm_options = parse_cluster(options.pop("cluster", "slurm")), options.pop("slurm_options", "")
    only = {name: options.pop(name, None) for name in ("configuration", "fold")}
    begun, given = _begin_there(dataset, out, options, **only)
    return write_scripts(begun, address, given, until=until, slurm_options=slurm_options)


def _run_there(
    dataset: Place,
    out: Place | None,
    options: dict[str, Any],
    *,
    cluster: str,
    slurm_options: str,
    until: Literal["train", "report"],
    **only: Any,
) -> Run:
    from autoseg.compute.cluster import parse_cluster
    from autoseg.stages.cluster import run_there

    address = parse_cluster(cluster)
    begun, given = _begin_there(dataset, out, options, **only)
    return run_there(begun, address, given, until=until, slurm_options=slurm_options)


def _begin_there(dataset: Place, out: Place | None, options: dict[str, Any], **only: Any) -> tuple[Run, dict[str, Any]]:
    """A run whose work is done elsewhere, and the settings that were given."""
    if options.get("callbacks"):
        message, fix = "callbacks are called where the work is done", "omit them, or the cluster"
        raise AutosegError(Issue(code="settings.contradiction", where="callbacks", message=message, fix=fix))
    given = {name: value for name, value in options.items() if name not in OF_A_CALL}
    return _begin(dataset, out, options, **only), given


def status(run_folder: Place) -> list[UnitStatus]:
    """The parts of a run that are done, running (and where), waiting or failed (with the log)."""
    from autoseg.stages.cluster import status as status_of

    return status_of(Run.open(_path("run_folder", run_folder)))


def schedule(dataset: Place, out: Place | None = None, *, cluster: str | None = None, **options: Any) -> Run:
    """All before training: the last step times the machine and decides what is trained for how long. Arguments as of `run`.

    A Dask ``cluster`` gets the cases. The result has ``.schedule``.
    """
    return _spread("schedule", dataset, out, options, cluster, needs_device=True)


def select(dataset: Place, out: Place | None = None, *, cluster: str | None = None, **options: Any) -> Run:
    """Choose the best configuration or ensemble by cross-validation. Arguments as of `run`; the result has ``.selection``.

    A Dask ``cluster`` gets the cases.

    Where a model is finished nothing is trained for it: if the dataset, the options or unfinished trainings ask for another
    one, the selection is that of the finished model.
    """
    from autoseg.pipeline import show

    with ExitStack() as stack:
        begun = _begin(dataset, out, options, needs_device=True)
        _spread_cases(stack, cluster, begun.folder.root)
        return show(begun, "select")


def report(dataset: Place, out: Place | None = None, **options: Any) -> Run:
    """Write the report page, and predict the test images. Arguments as of `run`; the result has ``.report``.

    Where a model is finished nothing is trained for it, as with `select`: the page is that of the finished model.
    """
    from autoseg.pipeline import show

    return show(_begin(dataset, out, options, needs_device=True), "report")


def _path(name: str, given: object) -> Path:
    """A path that was passed as the argument ``name``. Raises `AutosegError` for anything else."""
    if isinstance(given, str | PathLike):
        return Path(given)
    issue = Issue(
        code="settings.no_path", where=name, message=f"{given!r:.60} is not a path", fix="pass a path as text or Path"
    )
    raise AutosegError(issue)


def _begin(dataset: Place, out: Place | None, options: dict[str, Any], **context: Any) -> Run:
    context |= {name: value for name in OF_A_CALL if (value := options.pop(name, None)) is not None}
    context["callbacks"] = tuple(context.get("callbacks", ()))
    target, folder = _path("dataset", dataset), None if out is None else _path("out", out)
    with context.setdefault("reporter", SilentReporter()).phase("Starting"):  # torch is loaded
        return begin_run(target, folder, options, **context)


def _until(stage: str, run: Run) -> Run:
    from autoseg.pipeline import run_stages

    return run_stages(run, stage)


def check(dataset: Place, *, reporter: Reporter | None = None, **options: Any) -> CheckReport:
    """What is in a folder and what is wrong with it; writes nothing. The result has ``.issues``.

    ``options`` are the fields of `Settings` that say how a folder is read: ``layout``, ``spec``, ``skip_bad``, ``exclude``,
    ``workers``; others change nothing here.
    """
    from autoseg.compute.executor import available_cores
    from autoseg.data.checks.report import report_on_folder

    settings = make_settings({"dataset": dataset, **options})
    return report_on_folder(
        described_folder(_path("dataset", dataset)),
        layout=settings.layout,
        spec=settings.spec,
        exclude=settings.exclude,
        skip_bad=settings.skip_bad,
        num_workers=settings.workers or available_cores(),
        reporter=reporter or SilentReporter(),
    )


def predict(
    model: Place,
    source: Place | Sequence[Place] | Imagelike | None = None,
    output: Place | None = None,
    *,
    affine: Any = None,
    spacing_mm: Sequence[float] | None = None,
    axes: str | None = None,
    layout: str | None = None,
    spec: Place | None = None,
    part: str | None = None,
    skip_bad: bool = False,
    probabilities: bool = False,
    doubt: bool = False,
    fast: bool = False,
    mirroring: bool = True,
    step: float | None = None,
    folds: int | None = None,
    engine: str | None = None,
    every_window: bool = False,
    memory_gb: float | None = None,
    strict: bool = False,
    device: str = "auto",
    threads: int | None = None,
    kind: str | None = None,
    terms: Place | None = None,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Segment the images in ``source`` (files, folders, DICOM series, trees of them) into the folder ``output``.

    ``model`` is a run folder or a bundle file; without ``source`` and ``output``, a run whose own test images are segmented. Returns the label maps,
    folders of masks, or DICOM objects of a ``kind`` (see ``--as``); an ``output`` with the ending of an image file is that of one image, which may be
    a list with a file for each channel, in order, or in memory, with its place (`Predictor.predict_image`). A second call skips images that are done,
    unless they changed; ``part`` ``"2/8"`` takes every eighth case, from the second on; ``layout`` and ``spec`` say how ``source`` is laid out.
    ``probabilities`` and ``doubt`` write maps, too, and the latter what to expect of each case. ``fast``: one fold, no mirror images, ``step`` 0.75. ``engine`` computes
    exported models. ``memory_gb``: main memory at most; ``every_window``: compute those of one value each time; ``strict``: refuse images unlike those of training. Issues are raised at the end, unless ``skip_bad``. Without
    a ``reporter`` warnings are Python's.
    """
    reporter, model = reporter or SilentReporter(), _path("model", model)
    with reporter.phase("Starting"):  # torch is loaded
        from autoseg.inference.ways import way_of
        from autoseg.stages.predict_images import predict_images, predict_own_images
    if source is None and output is None:
        return predict_own_images(model, device, threads=threads, reporter=reporter)
    spec, terms = _maybe_path("spec", spec), _maybe_path("terms", terms)
    require_place_for_predictions(out := _path("output", output))
    asked: Any = {"skip_bad": skip_bad, "device": device, "threads": threads, "kind": kind, "terms": terms}
    asked |= {"probabilities": probabilities, "doubt": doubt, "engine": engine}
    return predict_images(
        model,
        source,
        out,
        place={"affine": affine, "spacing_mm": spacing_mm, "axes": axes},
        search={"layout": layout, "spec": spec, "part": None if part is None else parse_part(part)},
        limits={"every_window": every_window, "memory_gb": memory_gb, "strict": strict},
        way=way_of(fast=fast, mirroring=mirroring, step=step, num_folds=folds),
        reporter=reporter,
        **asked,
    )


def _maybe_path(name: str, given: object) -> Path | None:
    return None if given is None else _path(name, given)


def predict_parts(
    model: Place,
    source: Place,
    output: Place,
    *,
    cluster: str,
    slurm_options: str = "",
    reporter: Reporter | None = None,
    **options: Any,
) -> list[Path]:
    """`predict` on a cluster, in equal parts, one for each Dask worker, or for each of the N tasks of ``slurm:N`` (4)."""
    from autoseg.compute.cluster import parse_cluster
    from autoseg.imaging.readers import image_ending
    from autoseg.inference.ways import way_of
    from autoseg.stages.cluster import predict_there
    from autoseg.stages.predict_images import predict_words

    out = _path("output", output)
    require_place_for_predictions(out)
    if options.pop("part", None) is not None or (image_ending(out) and not out.is_dir()):
        message, fix = "divides a folder of images into parts itself", "pass folders, and omit --part"
        raise AutosegError(Issue(code="settings.contradiction", where="--cluster", message=message, fix=fix))
    options |= {name: _maybe_path(name, options.get(name)) for name in ("spec", "terms")}
    options["as"] = options.pop("kind", None)
    way = way_of(
        fast=options.pop("fast", False),
        mirroring=options.pop("mirroring", True),
        step=options.pop("step", None),
        num_folds=options.pop("folds", None),
    )
    words = predict_words(_path("model", model), _path("source", source), out, options, way)
    return predict_there(
        words,
        out,
        parse_cluster(cluster),
        slurm_options=slurm_options,
        reporter=reporter or SilentReporter(),
    )


def evaluate(
    predictions: Place,
    references: Place,
    *,
    challenge: str | None = None,
    metrics: Sequence[str] = (),
    tolerance_mm: float | None = None,
    groups_table: Place | None = None,
    strict: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    reporter: Reporter | None = None,
) -> Summary:
    """Score label maps, or folders of masks, against references of the same cases: Dice, surface distances, volumes, rates.

    ``references`` is a folder of the same form, or a dataset; two label map files are one case. Names may differ by words such as ``_mask``, ``_pred`` or
    ``_0000``. ``tolerance_mm`` is that of the surface Dice (default 1). With ``challenge``, a name or a TOML file, classes, tolerances and
    ways with lesions are those of its record (`autoseg.evaluation.challenge.challenge_scores` makes its table). ``metrics``: ``lesions``
    scores single lesions, ``detection`` a detection curve, which needs the probabilities. ``groups_table`` is a CSV file with a column
    ``case`` or ``patient`` and others, such as site or age: scores are compared between their groups. What has no counterpart is in ``not_scored`` of the
    summary, or with ``strict`` an error. A Dask ``cluster`` gets the cases. Raises `AutosegError` with all issues of both folders.
    """
    from autoseg.compute.executor import available_cores
    from autoseg.data.tables import read_groups_table
    from autoseg.evaluation.challenge import find_challenge, lesion_rule, scored_classes, tolerance_of
    from autoseg.evaluation.detection import detection_curves
    from autoseg.evaluation.folders import case_names, evaluate_folder
    from autoseg.evaluation.lesions import PLAIN
    from autoseg.evaluation.metrics import DEFAULT_TOLERANCE_MM
    from autoseg.inference.predictions import read_predictions_header

    _require_metrics(metrics)
    table = None if groups_table is None else read_groups_table(_path("groups_table", groups_table))
    predictions, references = _path("predictions", predictions), _path("references", references)
    scoring = None if challenge is None else find_challenge(challenge, case_names(predictions)).scoring
    lesions = PLAIN if "lesions" in metrics else None
    if scoring is not None:
        lesions = lesion_rule(scoring) or lesions
        tolerance_mm = tolerance_of(scoring) if tolerance_mm is None else tolerance_mm
    header = read_predictions_header(predictions.parent if predictions.is_file() else predictions)
    how: dict[str, Any] = {"num_workers": workers or available_cores(), "reporter": reporter or SilentReporter()}
    with ExitStack() as stack:
        _spread_cases(stack, cluster, predictions if predictions.is_dir() else predictions.parent)
        summary = evaluate_folder(
            predictions,
            references,
            classes=() if header is None else header.classes,
            ignore=None if header is None else header.ignore_value,
            threshold=None if header is None else header.threshold,
            tolerance_mm=DEFAULT_TOLERANCE_MM if tolerance_mm is None else tolerance_mm,
            lesions=lesions,
            challenge_classes=() if scoring is None else scored_classes(scoring),
            detection="detection" in metrics,
            strict=strict,
            **how,
        )
        curves = detection_curves(summary) if "detection" in metrics else {}
    summary = summary if table is None else _by_group(summary, table, how["reporter"])
    return summary.model_copy(update={"challenge": challenge, "detection": curves})


def _by_group(summary: Summary, table: GroupsTable, reporter: Reporter) -> Summary:
    """With scores by the groups of a table; what of it makes none is said."""
    from autoseg.data.tables import groupings_of
    from autoseg.evaluation.table import patients_in, with_groups

    groupings, notes = groupings_of(table, patients_in(summary))
    for note in notes:
        reporter.say(f"Note: {note}")
    return with_groups(summary, groupings)


MORE_METRICS = ("lesions", "detection")
"""Metrics that take long, or need more than label maps: only where asked for."""


def _require_metrics(metrics: Sequence[str]) -> None:
    unknown = [name for name in metrics if name not in MORE_METRICS]
    if unknown:
        message, fix = f"{', '.join(unknown)} does not exist", f"choose from {', '.join(MORE_METRICS)}"
        raise AutosegError(Issue(code="settings.metrics", where="--metrics", message=message, fix=fix))


def compare(
    *results: Place, public: tuple[str, Place] | None = None, challenge: str | None = None
) -> tuple[Comparison, dict[str, tuple[int, float]]]:
    """The first result against all others, by Dice of the same cases: run folders, summaries, or tables of `evaluate`.

    ``public`` is the name of a published table (``nnunet-v1-hippocampus``) and the file of it that you have. With ``challenge``, for
    which the results were evaluated, also the ranks that it would give them: place, and the mean that it comes from.
    """
    from autoseg.evaluation.challenge import challenge_scores, find_challenge, rank_teams
    from autoseg.evaluation.comparison import compare_results, read_public, read_result

    paths = [_path("results", each) for each in results]
    by_name = {path: path.absolute().name for path in paths}
    names = [name if [*by_name.values()].count(name) == 1 else str(path) for path, name in by_name.items()]
    found = [read_result(path, name) for path, name in zip(by_name, names, strict=True)]
    if public is not None:
        found.append(read_public(public[0], _path("public", public[1])))
    if len(found) < 2:
        fix = "pass two or more results, or one and a public table"
        raise AutosegError(
            Issue(code="compare.too_few", where="results", message="there is nothing to compare with", fix=fix)
        )
    if challenge is None:
        return compare_results(found), {}
    record = find_challenge(challenge, [*found[0].summary.dice_by_case()] if found[0].summary is not None else ())
    others = [each for each in found if each.summary is None or each.summary.challenge != challenge]
    if others or record.scoring is None or record.scoring.ranking is None:
        fix = f"evaluate with --as {challenge}, and pass the summary.json that this wrote"
        issues = [
            Issue(code="compare.no_challenge", where=each.name, message=f"was not scored as {challenge}", fix=fix)
            for each in others
        ]
        message, fix = "its ranking is not recorded", "compare without --as"
        raise AutosegError(
            *issues or [Issue(code="compare.no_challenge", where=f"--as {challenge}", message=message, fix=fix)]
        )
    teams = {each.name: challenge_scores(each.summary, record) for each in found if each.summary is not None}
    return compare_results(found), rank_teams(teams, record.scoring)


def submit(
    run_folder: Place | Sequence[Place],
    *,
    kind: str = "zip",
    spec: Place | None = None,
    images: Place | None = None,
    predictions: Place | None = None,
    out: Place | None = None,
    fill: Mapping[str, str] | None = None,
    incomplete: bool = False,
    device: str = "auto",
    threads: int | None = None,
    reporter: Reporter | None = None,
) -> Submission:
    """Pack a run's test predictions as a challenge wants them, and check the package by its rules.

    ``kind`` names a challenge (``autoseg submit --list``), ``spec`` is a file of your own; ``folder`` and ``zip`` are no
    challenge. Several runs are the parts of one package. ``images`` is a folder of test images that the dataset lacks: they are
    predicted; ``predictions`` one of label maps that were made elsewhere. ``fill`` gives fields of names, such as ``team``. With
    ``incomplete`` missing cases are warnings. Raises `AutosegError` with every fault.
    """
    from autoseg.data.challenges import challenge_named
    from autoseg.stages.submit import submit as submit_runs

    reporter = reporter or SilentReporter()
    several = run_folder if isinstance(run_folder, list | tuple) else [run_folder]

    def predict(model: Path, inputs: Inputs, folder: Path) -> None:
        with reporter.phase("Starting"):  # torch is loaded
            from autoseg.inference.predict import predict_cases
            from autoseg.inference.ways import Way
            from autoseg.stages.predict_images import load_predictor
        predictor = load_predictor(model, device, Way(), threads=threads, say=reporter.say)
        predict_cases(predictor, inputs, folder, probabilities=False, reporter=reporter, is_own=True)

    return submit_runs(
        [_path("run_folder", each) for each in several],
        challenge_named(kind, None if spec is None else _path("spec", spec)),
        images=None if images is None else _path("images", images),
        predictions=None if predictions is None else _path("predictions", predictions),
        out=None if out is None else _path("out", out),
        given=dict(fill or {}),
        is_incomplete=incomplete,
        predict=predict,
        reporter=reporter,
    )


def check_submission(
    file: Place,
    *,
    kind: str,
    spec: Place | None = None,
    images: Place | None = None,
    fill: Mapping[str, str] | None = None,
    incomplete: bool = False,
    reporter: Reporter | None = None,
) -> Submission:
    """Check a package that was made elsewhere by the rules of a challenge; with the test ``images`` also names and grids.

    Other arguments as of `submit`. Raises `AutosegError` with every fault.
    """
    from autoseg.data.challenges import challenge_named
    from autoseg.stages.submit import check_submission as check

    return check(
        _path("file", file),
        challenge_named(kind, None if spec is None else _path("spec", spec)),
        images=None if images is None else _path("images", images),
        given=dict(fill or {}),
        is_incomplete=incomplete,
        reporter=reporter or SilentReporter(),
    )


def export(
    model: Place,
    out: Place,
    *,
    format: Literal["onnx"] = "onnx",
    quantise: Literal["int8"] | None = None,
    num_folds: int | None = None,
    most_cases: int | None = None,
    threads: int | None = None,
    reporter: Reporter | None = None,
) -> list[str]:
    """Write the model of a run folder or bundle as the new folder ``out``: a graph for each network, and ``model.json``.

    With ``quantise`` convolutions compute in 8 bits, and ``model`` is a run folder: its training cases calibrate them, and validation cases
    (``most_cases`` of them) tell what that costs, as a table that is returned. Raises `AutosegError` for what is no model, where ``out`` exists, and
    without the extra ``onnx``.
    """
    from autoseg.compute.device import set_threads
    from autoseg.compute.executor import available_cores
    from autoseg.delivery.export import export_model

    source, folder, told = _path("model", model), _path("out", out), reporter or SilentReporter()
    set_threads(threads or available_cores())
    if quantise is None:
        export_model(source, folder, num_folds=num_folds, reporter=told)
        return []
    from autoseg.inference.ways import table_of
    from autoseg.stages.export import export_quantised, require_run
    from autoseg.stages.run import Run

    require_run(source)
    run = replace(Run.open(source), reporter=told)
    return table_of(export_quantised(run, folder, num_folds=num_folds, most_cases=most_cases))


def measure(
    run_folder: Place, *, device: str = "auto", threads: int | None = None, reporter: Reporter | None = None
) -> list[str]:
    """What mirroring and the distance of windows gain and cost on a run's cross-validated cases, as a table; kept in its model.

    Each case is predicted by the networks that did not see it. Raises `AutosegError` for a run without a model or preprocessed cases.
    """
    reporter = reporter or SilentReporter()
    with reporter.phase("Starting"):  # torch is loaded
        from autoseg.compute.device import choose_device, set_threads
        from autoseg.compute.executor import available_cores
        from autoseg.inference.ways import table_of
        from autoseg.stages.measure import measure_ways
        from autoseg.stages.run import Run
    set_threads(threads or available_cores())
    run = replace(Run.open(_path("run_folder", run_folder)), reporter=reporter)
    chosen = choose_device(device.partition(",")[0], lambda issue: run.say(as_line(issue)))
    return table_of(measure_ways(replace(run, device_name=str(chosen))))


def container(
    model: Place,
    out: Place,
    *,
    kind: Literal["grand-challenge", "flare", "brats25"] = "grand-challenge",
    interface: str | None = None,
    channels: Mapping[str, str] | None = None,
    num_folds: int | None = None,
    mirroring: bool = True,
    empty_if_failing: bool = False,
    tag: str | None = None,
    base: Place | None = None,
    method: Literal["invoke", "exec"] = "invoke",
    reporter: Reporter | None = None,
) -> list[str]:
    """Write a container for a challenge into the new folder ``out``; returns lines that say what was written, and what to do.

    ``interface`` is the name of a known challenge or a file with the sockets of a phase; ``channels`` gives the slug of the
    input of a channel where names do not tell. With ``base``, a tar of a root file system or of ``docker save``, the image is
    written, too, without Docker. Raises `AutosegError` with all that does not fit.
    """
    from autoseg.delivery.container.context import ContainerWishes, build_context, notes_on, tag_of
    from autoseg.delivery.container.image import write_image

    reporter, folder = reporter or SilentReporter(), _path("out", out)
    wishes = ContainerWishes(
        kind=kind, interface=interface, channels=channels or {}, num_folds=num_folds, mirroring=mirroring,
        empty_if_failing=empty_if_failing, tag=tag,
    )  # fmt: skip
    program = build_context(_path("model", model), folder, wishes, reporter)
    lines = [f"Container: {folder}", *(f"Note: {note}" for note in notes_on(program))]
    if base is None:
        return [*lines, f"Next: {folder / 'do_build.sh'}, or: autoseg rehearse {folder} --cases FOLDER"]
    name = tag_of(program, tag)
    image = folder / f"{name}.tar.gz"
    write_image(folder, program, _path("base", base), image, method=method, tag=name, reporter=reporter)
    beside = f" --model {folder / 'model.tar.gz'}" if (folder / "model.tar.gz").exists() else ""
    size = f"{image.stat().st_size / 1e9:.2f} GB"
    return [*lines, f"Image: {image} ({size})", f"Next: autoseg rehearse {image}{beside} --cases FOLDER"]


def rehearse(
    container: Place,
    cases: Place,
    *,
    memory: str | None = None,
    shm: str | None = None,
    time: str | float | None = None,
    method: Literal["invoke", "exec"] = "invoke",
    model: Place | None = None,
    reporter: Reporter | None = None,
) -> tuple[Rehearsal, list[str]]:
    """Run a container as its platform does; returns the report, and the same as lines of text, the verdict last.

    ``container`` is a folder of `container`, an image file, or the name of an image that Docker has. Limits that are not
    given are those of the challenge. Raises `AutosegError` where it cannot be run at all.
    """
    from autoseg.delivery.container.rehearse import Wishes, parse_size
    from autoseg.delivery.container.rehearse import rehearse as rehearse_container
    from autoseg.delivery.container.verdict import lines_of

    seconds = None if time is None else _seconds("--time", time)
    weights = None if model is None else _path("model", model)
    sizes = parse_size(memory, "--memory"), parse_size(shm, "--shm")
    wishes = Wishes(memory_bytes=sizes[0], shm_bytes=sizes[1], seconds=seconds, method=method, model=weights)
    found = rehearse_container(str(container), _path("cases", cases), wishes, reporter=reporter or SilentReporter())
    return found, list(lines_of(found))


def serve(
    models: Place | Sequence[Place],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    threads: int | None = None,
    mirroring: bool = True,
    memory_gb: float | None = None,
    state: Place = "service",
    queue: int = 16,
    max_upload_mb: float = 1000.0,
    timeout: str | float = "30m",
    keep: str | float = "24h",
    keep_gb: float = 20.0,
    token_file: Place | None = None,
    reporter: Reporter | None = None,
) -> None:
    """Serve models over HTTP until Ctrl-C or SIGTERM: volumes in, segmentations out, with a web page; needs the extra ``serve``.

    ``models`` are run folders or bundle files, which stay loaded on each ``device``; one job at a time runs on each. At most ``queue``
    jobs wait, of at most ``max_upload_mb``; an upload and a job each take at most ``timeout``. Answers are kept in the folder
    ``state`` until they are older than ``keep``, or all together larger than ``keep_gb``. With ``token_file`` requests need the token that is in
    it. Raises `AutosegError` with all that cannot be used.
    """
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        message, fix = "needs fastapi and uvicorn", "install the extra: pip install autoseg[serve]"
        raise AutosegError(Issue(code="serve.no_extra", where="serve", message=message, fix=fix))
    from autoseg.serving.rules import Limits
    from autoseg.serving.server import ServiceSettings
    from autoseg.serving.server import serve as serve_models

    several = models if isinstance(models, list | tuple) else [models]
    settings = ServiceSettings(
        models=tuple(_path("models", each) for each in several),
        host=host,
        port=port,
        device=device,
        threads=threads,
        mirroring=mirroring,
        memory_bytes=None if memory_gb is None else round(memory_gb * 1e9),
        state=_path("state", state),
        limits=Limits(
            queue=queue,
            upload_bytes=round(max_upload_mb * 1e6),
            timeout_s=_seconds("--timeout", timeout),
            keep_s=_seconds("--keep", keep),
            keep_bytes=round(keep_gb * 1e9),
        ),
        token_file=_maybe_path("token_file", token_file),
    )
    serve_models(settings, reporter or SilentReporter())


def _seconds(where: str, given: str | float) -> float:
    """A duration that is longer than nothing. Raises `AutosegError` for others."""
    try:
        seconds = float(str(parse_duration(given)))
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        message, fix = f"{given!r} is not a duration", "write for example 90s, 10m or 1h"
        raise AutosegError(Issue(code="settings.duration", where=where, message=message, fix=fix))
    return seconds


def clean(run_folder: Place, *, dry_run: bool = False) -> dict[Path, int]:
    """Remove models that were selected before, and what plan and schedule of a run no longer use; returns paths and bytes.

    With ``dry_run`` nothing is removed. The model of the run stays, and so does all that its next call needs.
    """
    from autoseg.stages.clean import clean as clean_run

    return clean_run(Run.open(_path("run_folder", run_folder)), dry_run=dry_run)
