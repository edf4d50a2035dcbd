"""A folder of predictions on the second call: what is skipped, made again, kept and refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest
from builders import Job as FinishedJob
from builders import Listening, crop_images

from autoseg.data.discovery.inputs import Inputs
from autoseg.evaluation.metrics import evaluated_classes
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import read_image, write_image, write_label_map
from autoseg.inference.input_cases import find_input_cases
from autoseg.inference.predict import predict_cases, predict_file, predict_stored
from autoseg.inference.predictions import JOURNAL, prediction_path, volumes_ml
from autoseg.inference.predictor import UNLIKE, Predictor, StoredImage
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.tracking.progress import SilentReporter, Tracker
from planners import LabelClass, Labels

LABELS = Labels(classes=(LabelClass(name="liver", values=(1,)),))


@dataclass(frozen=True)
class Job:
    predictor: Predictor
    images: Path
    out: Path
    reporter: Listening = field(default_factory=Listening)

    def predict(self, *, probabilities: bool = False) -> list[Path]:
        return predict_cases(
            self.predictor, self.inputs(), self.out, probabilities=probabilities, reporter=self.reporter
        )

    def inputs(self) -> Inputs:
        return find_input_cases(self.images, self.predictor.model.dataset)

    def image(self, number: int) -> Path:
        return sorted(self.images.iterdir())[number]

    def times(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in self.out.glob("*.nii.gz")}


@pytest.fixture(scope="module")
def predictor(finished: FinishedJob) -> Predictor:
    return Predictor.load(finished.root, device="cpu")


@pytest.fixture
def job(finished: FinishedJob, predictor: Predictor, tmp_path: Path) -> Job:
    """Two small images, both predicted."""
    images = Path(shutil.copytree(finished.dataset / "imagesTs", tmp_path / "Task99_Phantom" / "imagesTs"))
    crop_images(images.parent, 16)
    job = Job(predictor, images, tmp_path / "out")
    job.predict()
    return job


def test_a_folder_whose_name_is_not_text_is_refused_before_anything_is_predicted(job: Job, tmp_path: Path) -> None:
    elsewhere = replace(job, out=tmp_path / "M\udcfcller")
    with pytest.raises(AutosegError) as caught:
        elsewhere.predict()
    assert caught.value.codes == ("reader.name_not_text",)
    assert not elsewhere.out.exists()


def test_a_changed_image_is_predicted_again_and_the_other_is_not(job: Job) -> None:
    before = job.times()
    assert job.predict() == sorted(job.out.glob("*.nii.gz"))
    assert job.times() == before
    first, second = sorted(before)
    os.utime(job.image(0))
    job.predict()
    assert job.times() == before  # touched, but the same
    shutil.copy(job.image(1), job.image(0))
    job.predict()
    assert job.times()[second] == before[second]
    assert (job.out / first).read_bytes() == (job.out / second).read_bytes()


def test_lost_and_cut_label_maps_are_redone(job: Job) -> None:
    first, second = sorted(job.out.glob("*.nii.gz"))
    whole = first.read_bytes(), second.read_bytes()
    first.write_bytes(whole[0][:-20])  # its header is whole
    second.unlink()
    job.predict()
    assert (first.read_bytes(), second.read_bytes()) == whole


def test_corrected_label_maps_are_kept(job: Job) -> None:
    label_map = min(job.out.glob("*.nii.gz"))
    volume = read_image([label_map])
    write_label_map(label_map, np.zeros_like(volume.array[0], dtype=np.uint8), volume.geometry)
    corrected = label_map.read_bytes()
    job.predict()
    assert f"Kept {label_map}: it was changed after prediction" in job.reporter.lines
    shutil.copy(job.image(1), job.image(0))
    for probabilities in (False, True):
        with pytest.raises(AutosegError) as caught:
            job.predict(probabilities=probabilities)
        assert [(issue.code, issue.where) for issue in caught.value.issues] == [("predict.corrected", str(label_map))]
    assert label_map.read_bytes() == corrected


def test_files_of_others_are_refused_all_at_once_and_nothing_is_written(job: Job, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for label_map in job.out.glob("*.nii.gz"):
        shutil.copy(label_map, theirs)
    with pytest.raises(AutosegError) as caught:
        replace(job, out=theirs).predict()
    assert caught.value.codes == ("predict.foreign_file", "predict.foreign_file")
    assert len(list(theirs.iterdir())) == 2


def test_a_call_that_was_killed_is_completed(job: Job) -> None:
    label_map = min(job.out.glob("*.nii.gz"))
    first = label_map.read_bytes()
    shutil.copy(job.image(1), job.image(0))
    job.predict()
    assert f"Predicting {label_map} again: its image has changed" in job.reporter.lines
    second = label_map.read_bytes()
    label_map.write_bytes(first)  # as if killed when it was noted, but had not got its name
    left = job.out / f".{label_map.name}.0123abcd.part"
    left.mkdir()
    os.utime(left, (1, 1))
    job.predict()
    assert label_map.read_bytes() == second != first
    assert not left.exists()


def test_lines_that_a_full_disk_has_cut_are_skipped(job: Job) -> None:
    record = job.out / "predictions.jsonl"
    lines = [line for line in record.read_text().split("\n") if line]
    assert len(lines) == 3  # what made them, and one for each
    before = job.times()
    record.write_text(f"{lines[1][:50]}\n" + "\n".join(lines) + f"\n{lines[2][:50]}")
    job.predict()
    assert job.times() == before


def test_corrections_after_a_call_that_failed_are_kept(job: Job) -> None:
    """Wishing for probabilities makes everything again, but what fails replaces nothing."""
    image, label_map = job.image(0), min(job.out.glob("*.nii.gz"))
    whole = image.read_bytes()
    image.write_bytes(whole[:-20])
    with pytest.raises(AutosegError) as caught:
        job.predict(probabilities=True)
    assert {issue.case for issue in caught.value.issues} == {image.name.split("_0000")[0].split(".")[0]}
    image.write_bytes(whole)
    volume = read_image([label_map])
    write_label_map(label_map, np.zeros_like(volume.array[0], dtype=np.uint8), volume.geometry)
    corrected = label_map.read_bytes()
    job.predict()
    assert label_map.read_bytes() == corrected


def test_a_label_map_drawn_where_a_prediction_failed_is_kept(job: Job) -> None:
    shutil.rmtree(job.out)
    whole = job.image(0).read_bytes()
    job.image(0).write_bytes(whole[:-20])
    with pytest.raises(AutosegError):
        job.predict()
    (done,) = job.out.glob("*.nii.gz")
    job.image(0).write_bytes(whole)
    drawn = job.out / job.image(0).name.replace("_0000", "")
    assert drawn != done
    shutil.copy(done, drawn)
    with pytest.raises(AutosegError) as caught:
        job.predict()
    assert caught.value.codes == ("predict.foreign_file",)
    assert drawn.read_bytes() == done.read_bytes()


def test_an_image_of_the_same_name_in_another_folder_is_another_image(job: Job, tmp_path: Path) -> None:
    before = job.times()
    moved = replace(job, images=Path(shutil.copytree(job.images, tmp_path / "moved")))
    assert len(moved.predict()) == 2  # the same images, wherever they lie
    shutil.copy(moved.image(1), moved.image(0))
    with pytest.raises(AutosegError) as caught:
        moved.predict()
    assert caught.value.codes == ("predict.other_image",)
    assert job.times() == before


def test_what_another_process_has_predicted_meanwhile_is_skipped(job: Job) -> None:
    shutil.rmtree(job.out)
    for name in ("y.nii.gz", "z.nii.gz"):  # while the second one is computed, the third is read
        shutil.copy(job.image(0), job.images / name)
    inputs = job.inputs()
    first, *_, last = inputs.cases
    times = {}

    @dataclass(frozen=True)
    class Meanwhile(SilentReporter):
        """Another call does the last image when the first one is done."""

        @contextmanager
        def track(self, title: str, total: float) -> Iterator[Tracker]:
            class Other:
                def advance(self, amount: float = 1.0, *, note: str = "") -> None:
                    if note == first.case_id:
                        predict_cases(
                            job.predictor,
                            Inputs(cases=(last,)),
                            job.out,
                            probabilities=False,
                            reporter=SilentReporter(),
                        )
                        times.update(
                            {name: time for name, time in job.times().items() if name.startswith(f"{last.case_id}.")}
                        )

            yield Other()

    predict_cases(job.predictor, inputs, job.out, probabilities=False, reporter=Meanwhile())
    assert len(times) == 1
    assert len(job.times()) == 4
    assert job.times().items() >= times.items()


def test_predictions_among_the_images_are_no_images(job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "patients"
    for number in range(2):
        (folder / f"p{number}").mkdir(parents=True)
        shutil.copy(job.image(number), folder / f"p{number}" / "ct.nii.gz")
    inside = replace(job, images=folder, out=folder / "segmented")
    assert [path.name for path in inside.predict()] == ["p0_ct.nii.gz", "p1_ct.nii.gz"]
    before = inside.times()
    assert len(inside.predict()) == 2
    assert inside.times() == before
    numbered = tmp_path / "numbered"
    numbered.mkdir()
    shutil.copy(job.image(0), numbered / "a_0000.nii.gz")
    beside = replace(job, images=numbered, out=numbered)
    assert beside.predict() == beside.predict() == [numbered / "a.nii.gz"]


def test_a_file_cannot_be_the_output_folder(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AutosegError) as caught:
        replace(job, out=tmp_path / "file").predict()
    assert caught.value.codes == ("predict.not_a_folder",)
    with pytest.raises(AutosegError) as caught:
        replace(job, out=Path("/proc/out")).predict()
    assert caught.value.codes == ("file.not_written",)


def test_probabilities_belong_to_the_image_that_was_predicted(job: Job) -> None:
    job.predict(probabilities=True)
    scores = sorted(job.out.glob("*.npz"))
    assert len(scores) == 2
    scores[1].write_bytes(scores[1].read_bytes()[:-20])
    shutil.copy(job.image(1), job.image(0))
    job.predict()
    assert not scores[0].exists()
    job.predict(probabilities=True)
    with np.load(scores[0]) as first, np.load(scores[1]) as second:
        np.testing.assert_array_equal(first["probabilities"], second["probabilities"])


def test_predictions_of_another_model_are_refused_or_replaced_in_a_run(job: Job) -> None:
    unmirrored = replace(job, predictor=replace(job.predictor, mirroring=False))
    with pytest.raises(AutosegError) as caught:
        unmirrored.predict()
    assert caught.value.codes == ("predict.other_model",)
    before = job.times()
    cases = Inputs(cases=job.inputs().cases[:1])
    (path,) = predict_cases(
        unmirrored.predictor, cases, job.out, probabilities=False, reporter=SilentReporter(), is_own=True
    )
    assert list(job.times()) == [path.name]  # that of the other case is gone
    assert job.times()[path.name] != before[path.name]


def test_a_bad_image_stops_no_other_and_is_named(job: Job) -> None:
    shutil.rmtree(job.out)
    job.image(0).write_bytes(b"")
    with pytest.raises(AutosegError) as caught:
        job.predict()
    (issue,) = caught.value.issues
    assert issue.where == str(job.image(0))
    (done,) = job.out.glob("*.nii.gz")
    assert job.reporter.lines[-1] == f"1 predicted, 1 skipped: {issue.case}"
    written = predict_cases(
        job.predictor, job.inputs(), job.out, probabilities=False, reporter=job.reporter, skip_bad=True
    )
    assert written == [done]
    assert job.reporter.lines[-1] == f"0 predicted, 1 already there, 1 skipped: {issue.case}"


def test_volumes_are_listed_for_every_case_and_follow_corrections(job: Job) -> None:
    path = job.out / "volumes.csv"
    table = pandas.read_csv(path, index_col="case")
    classes = job.predictor.model.dataset.labels.classes
    assert list(table.columns) == [f"{each.name} (ml)" for each in classes]
    for label_map in job.out.glob("*.nii.gz"):
        volume = read_image([label_map])
        for each in classes:
            number = np.isin(volume.array, each.values).sum()
            expected = number * np.prod(volume.spacing_mm) / 1000
            assert table.loc[label_map.name.removesuffix(".nii.gz"), f"{each.name} (ml)"] == pytest.approx(
                expected, rel=1e-5
            )
    label_map = min(job.out.glob("*.nii.gz"))
    volume = read_image([label_map])
    write_label_map(label_map, np.full(volume.array[0].shape, classes[0].values[0], np.uint8), volume.geometry)
    job.predict()
    whole = volume.array.size * np.prod(volume.spacing_mm) / 1000
    assert pandas.read_csv(path, index_col="case").iloc[0, 0] == pytest.approx(whole, rel=1e-5)
    others = Inputs(cases=job.inputs().cases[1:])  # a call without the corrected case
    predict_cases(job.predictor, others, job.out, probabilities=False, reporter=job.reporter)
    assert pandas.read_csv(path, index_col="case").iloc[0, 0] == pytest.approx(whole, rel=1e-5)
    path.write_text("mine")
    job.predict()
    assert path.read_text() == "mine"


def test_slices_without_thickness_have_no_volume(tmp_path: Path) -> None:
    labels, classes = np.ones((1, 4, 5), np.uint8), evaluated_classes(LABELS, (0, 1))
    grid = Geometry(shape=labels.shape, spacing_mm=(999.0, 1.0, 1.0))
    assert volumes_ml(labels, grid, classes) == {"liver": pytest.approx(20 * 0.999)}
    assert volumes_ml(labels, grid.model_copy(update={"dimensions": 2}), classes) == {}


def test_predictions_of_stored_cases_carry_the_transforms_of_their_images(
    finished: FinishedJob, predictor: Predictor, tmp_path: Path
) -> None:
    model = predictor.model
    case, configuration = model.dataset.training[0], model.plan.configuration(model.plan.configurations[0].name)
    image = nibabel.load(case.images[0])
    moved = image.affine.copy()
    moved[0, 3] += 0.2
    image.header.set_qform(image.affine, 1)
    image.header.set_sform(moved, 2)
    nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), tmp_path / "a.nii.gz")
    case = case.model_copy(update={"images": (str(tmp_path / "a.nii.gz"),)})
    dataset = model.dataset.model_copy(update={"training": (case,)})
    stored = StoredImage(folder=RunFolder(finished.root).preprocessed(configuration.data), case_id=case.case_id)
    out, reporter = tmp_path / "out", SilentReporter()
    with reporter.track("", 1) as tracker:
        predict_stored(
            replace(model, dataset=dataset), [stored], out, keep_probabilities=False, tracker=tracker, say=reporter.say
        )
    written = nibabel.load(prediction_path(out, case.case_id, dataset)).header
    assert (int(written["qform_code"]), int(written["sform_code"])) == (1, 2)
    np.testing.assert_allclose(written.get_sform(), moved, atol=1e-4)


def test_what_another_process_is_predicting_is_waited_for_and_not_done_twice(job: Job) -> None:
    shutil.rmtree(job.out)
    name = job.inputs().cases[0].case_id
    program = (
        "import sys, time; from pathlib import Path; from autoseg.storage.atomic import claimed_folder\n"
        "with claimed_folder(Path(sys.argv[1])) as folder: print(folder, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, job.out / name], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        claimed = Path(other.stdout.readline().strip())

        class Waiting(Listening):
            def say(self, text: str) -> None:
                if text.startswith("Waiting"):
                    (claimed / "half").write_text("")
                    other.kill()
                    other.wait()
                super().say(text)

        reporter = Waiting()
        written = predict_cases(job.predictor, job.inputs(), job.out, probabilities=False, reporter=reporter)
    assert len(written) == 2
    assert "Waiting for 1 image that another process is predicting" in reporter.lines
    assert sorted(path.name for path in job.out.iterdir() if path.name.startswith(".")) == []


def test_a_label_map_beside_images_is_skipped_by_its_content(job: Job) -> None:
    shutil.rmtree(job.out)
    volume = read_image([job.image(0)])
    drawn = (volume.array[0] > np.median(volume.array)).astype(np.uint8)
    write_label_map(job.images / "drawn.nii.gz", drawn, volume.geometry)
    assert len(job.predict()) == 2
    assert job.reporter.lines[-1] == "2 predicted, 1 skipped: drawn"
    part = find_input_cases(job.images, job.predictor.model.dataset, part=(1, 3))  # it alone
    assert [case.case_id for case in part.cases] == ["drawn"]
    assert predict_cases(job.predictor, part, job.out, probabilities=False, reporter=job.reporter) == []
    (job.images / "deeper").mkdir()
    (job.images / "drawn.nii.gz").rename(job.images / "deeper" / "drawn.nii.gz")
    assert len(job.predict()) == 2
    assert job.reporter.lines[-1] == "0 predicted, 2 already there, 1 skipped: deeper_drawn"
    (path,) = replace(job, images=job.images / "deeper" / "drawn.nii.gz", out=job.out / "alone").predict()
    assert path.name == "drawn.nii.gz"


def test_what_was_noted_in_headers_is_said_once_and_one_file_keeps_both_transforms(job: Job, tmp_path: Path) -> None:
    shutil.rmtree(job.out)
    for file in job.images.iterdir():
        image = nibabel.load(file)
        image.set_qform(image.affine + np.array([[0, 0, 0, 9]] + [[0] * 4] * 3), 1)
        nibabel.save(image, file)
    job.predict()
    (line,) = [line for line in job.reporter.lines if line.startswith("Note: ")]
    assert line.endswith("(1 other image with a note like this)")
    out = tmp_path / "a.nii.gz"
    predict_file(
        job.predictor, Inputs(cases=job.inputs().cases[:1]), out, probabilities=False, reporter=SilentReporter()
    )
    for name in ("get_qform", "get_sform"):
        np.testing.assert_array_equal(*(getattr(nibabel.load(path), name)() for path in (out, job.image(0))))


def test_an_image_that_is_named_twice_is_predicted_once(job: Job) -> None:
    found = find_input_cases([job.images, job.image(0), job.images.parent / "imagesTs"], job.predictor.model.dataset)
    assert len(found.cases) == 2
    assert found.issues == ()


def test_one_image_is_written_to_the_file_that_is_named(job: Job, tmp_path: Path) -> None:
    image, out = job.inputs().cases[0], tmp_path / "new" / "mine.nii.gz"
    one = Inputs(cases=(image,))
    (path,) = predict_file(job.predictor, one, out, probabilities=True, reporter=SilentReporter())
    assert path == out
    assert sorted(each.name for each in out.parent.iterdir()) == ["_maps", "mine.nii.gz", "mine.npz"]
    assert sorted(each.name for each in (out.parent / "_maps").iterdir()) == ["maps.json", "mine_probabilities.nii.gz"]
    assert out.read_bytes() == min(job.out.glob("*.nii.gz")).read_bytes()
    again = tmp_path / "again.nii.gz"
    predict_file(job.predictor, read_image(image.images), again, probabilities=False, reporter=SilentReporter())
    np.testing.assert_array_equal(read_image([again]).array, read_image([out]).array)
    for inputs in (one, job.inputs()):
        with pytest.raises(AutosegError) as caught:
            predict_file(job.predictor, inputs, out, probabilities=False, reporter=SilentReporter())
        assert caught.value.codes[-1] == "predict.exists"
    assert caught.value.codes[0] == "predict.one_file"
    with pytest.raises(AutosegError) as caught:
        predict_file(job.predictor, one, out / "below.nii.gz", probabilities=False, reporter=SilentReporter())
    assert caught.value.codes == ("file.not_written",)
    around = out.parent / "absent" / ".." / out.name
    with pytest.raises(AutosegError) as caught:
        predict_file(job.predictor, one, around, probabilities=False, reporter=SilentReporter())
    assert caught.value.codes == ("predict.exists",)


def test_an_image_unlike_training_gets_a_warning_or_is_refused(job: Job) -> None:
    """Its grid is tilted by 40 degrees; the other image is like those of training."""
    shutil.rmtree(job.out)
    image = read_image([job.image(0)])
    c, s = np.cos(np.radians(40)), np.sin(np.radians(40))
    tilted = image.geometry.model_copy(update={"direction": ((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0))})
    write_image(job.image(0), image.array[0], tilted)
    strict = replace(job.predictor, strict=True)
    with pytest.raises(AutosegError) as caught:
        predict_cases(strict, job.inputs(), job.out, probabilities=False, reporter=job.reporter)
    (issue,) = caught.value.issues
    assert (issue.code, "tilted by 40°" in issue.message, issue.where) == (UNLIKE, True, str(job.image(0)))
    assert len(list(job.out.glob("*.nii.gz"))) == 1
    job.predict()
    entries = [json.loads(line) for line in (job.out / JOURNAL).read_text().splitlines() if '"item"' in line]
    assert [entry["provenance"]["flags"] for entry in entries] == [[], [UNLIKE]]
