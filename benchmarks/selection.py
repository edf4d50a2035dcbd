"""What selection tries on real runs, with intervals; what it takes of the run, and what RankSEG adds to the export of a case.

    python benchmarks/selection.py WORK DATASET [DATASET …] [--steps 300] [--features 12] [--folds 5] [--configurations NAME]

Runs in WORK that are finished are not done again. The tables go to ``results/selection.md``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path

import torch

from autoseg.data.dataset import DatasetDescription
from autoseg.evaluation.scoring import score_cases
from autoseg.evaluation.selection import Selection
from autoseg.imaging.readers import write_label_map
from autoseg.inference.member_output import How, MemberOutput, run_member
from autoseg.inference.model import Member, load_model, open_model
from autoseg.inference.predictions import prediction_path
from autoseg.inference.predictor import StoredImage
from autoseg.inference.slabs import decide_together
from autoseg.pipeline import RunRecord
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, write_text
from planners import Plan

RESULTS = Path(__file__).resolve().parent / "results" / "selection.md"
TIMED_CASES = 5


def run(dataset: Path, folder: Path, arguments: argparse.Namespace) -> RunFolder:
    """A finished run."""
    command = [sys.executable, "-c", "from autoseg.cli import main; main()", "run", str(dataset), "--out", str(folder)]
    wishes = ["--device", "cpu", "--workers", "1", "--folds", str(arguments.folds)]
    for name, value in (("num_steps", arguments.steps), ("base_features", arguments.features)):
        wishes += ["--set", f"schedule.{name}={value}"]
    if arguments.configurations:
        wishes += ["--configurations", arguments.configurations]
    finished = RunFolder(folder)
    if not finished.selection.is_file():
        subprocess.run([*command, *wishes], check=True)
    return finished


def trials(name: str, selection: Selection) -> Iterator[str]:
    """A line of the table for each trial."""
    for each in selection.trials:
        interval = "" if each.low is None else f"[{each.low:+.4f}, {each.high:+.4f}]"
        gain = "" if each.gain is None else f"{each.gain:+.4f}"
        answer = "accepted" if each.accepted else f"no: {each.reason}"
        yield f"| {name} | {each.what} | {gain} | {interval} | {each.num_cases or ''} | {answer} |"


def scores(name: str, selection: Selection, record: RunRecord) -> str:
    """Both scores of the chosen model, and what the selection took."""
    numbers = (
        selection.dice_before_postprocessing,
        selection.dice_after_postprocessing,
        selection.dice_corrected,
    )
    shown = " | ".join("–" if number is None else f"{number:.4f}" for number in numbers)
    seconds = record.stages_s.get("select", 0.0)
    return f"| {name} | {selection.name} | {shown} | {selection.correction} | {seconds:.1f} | {record.seconds:.0f} |"


def export(name: str, folder: RunFolder) -> str:
    """Milliseconds of processor time to bring logits to a label map, to write and to score it, without and with RankSEG."""
    dataset = load_document(DatasetDescription, folder.dataset)
    cases = dataset.training[:TIMED_CASES]
    files = open_model(folder.root)
    member = load_model(files.path, device=torch.device("cpu")).members[0]
    timed = [time_export(dataset, folder, member, case.case_id) for case in cases]
    plain, ranked, rest, differing, voxels = (sum(each) / len(cases) for each in zip(*timed, strict=True))
    whole, added = plain + rest, ranked - plain
    return (
        f"| {name} | {voxels / 1e6:.3g} | {1000 * whole:.1f} | {1000 * added:.1f} | {100 * added / whole:.0f} % "
        f"| {100 * differing / voxels:.2f} % |"
    )


def time_export(
    dataset: DatasetDescription, folder: RunFolder, member: Member, case_id: str
) -> tuple[float, float, float, int, int]:
    """Seconds by argmax, by both decoders, and to write and score; voxels that differ, and all."""
    image = StoredImage(folder=folder.preprocessed(member.configuration.data), case_id=case_id)
    labels = load_document(Plan, folder.plan).labels
    computed = run_member(member, image, labels, How(device=torch.device("cpu")))
    output = MemberOutput(
        logits=computed.logits[:, :], placement=computed.placement, configuration=member.configuration
    )
    plain, ranked = decide_together([output], labels, (), ranks=True)
    assert ranked is not None

    def write_and_score() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            path = prediction_path(Path(temporary), case_id, dataset)
            write_label_map(path, plain, image.geometry)
            score_cases(dataset, [(case_id, path)])

    plain_s = processor_s(partial(output.label_map, labels))
    ranked_s = processor_s(partial(decide_together, [output], labels, (), ranks=True))
    return plain_s, ranked_s, processor_s(write_and_score), int((plain != ranked).sum()), plain.size


def processor_s(action: Callable[[], object]) -> float:
    """Processor time of the best of three calls."""
    times = []
    for _ in range(3):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return min(times)


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--features", type=int, default=12)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--configurations", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tried: list[str] = []
    results, exports = [], []
    for dataset in arguments.datasets:
        folder = run(dataset, arguments.work / dataset.name, arguments)
        selection, record = load_document(Selection, folder.selection), load_document(RunRecord, folder.record)
        tried += trials(dataset.name, selection)
        results.append(scores(dataset.name, selection, record))
        exports.append(export(dataset.name, folder))
    lines = [
        "# Selection by out-of-fold evidence",
        "",
        f"`python benchmarks/selection.py WORK {' '.join(each.name for each in arguments.datasets)} --steps {arguments.steps} "
        f"--features {arguments.features} --folds {arguments.folds}`, {date.today().isoformat()}, CPU. Each trial is on top of those "
        "accepted before it.",
        "",
        "| dataset | tried | gain in Dice | 95 % interval | cases | answer |",
        "|---|---|---|---|---|---|",
        *tried,
        "",
        "| dataset | model | Dice by argmax | with all choices | corrected | how | select, s | whole run, s |",
        "|---|---|---|---|---|---|---|---|",
        *results,
        "",
        f"Export of a case, mean of at most {TIMED_CASES}, processor time: to bring logits to a label map, to write and to score it.",
        "",
        "| dataset | million voxels | export, ms | RankSEG beside argmax, ms | share | voxels that differ |",
        "|---|---|---|---|---|---|",
        *exports,
    ]
    write_text(RESULTS, "\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
