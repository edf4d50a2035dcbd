"""Names that are no text are refused before a library ends the process for them; all that are text are taken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import (
    printable,
    read_header,
    read_image,
    read_label_map,
    require_text,
    write_label_map,
)
from autoseg.issues import AutosegError

ENDINGS = [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".png", ".bmp"]
GRID = Geometry(shape=(1, 4, 5), spacing_mm=(1.0, 1.0, 1.0), dimensions=2, has_orientation=False)
VALUES = np.resize([0, 1, 2], GRID.shape).astype(np.uint8)
MISNAMED = os.fsdecode(b"M\xfcller")
READ = """
import sys
from autoseg.issues import AutosegError
from autoseg.imaging.readers import read_header, read_label_map, read_image
for read in (read_header, read_label_map, lambda path: read_image([path])):
    try:
        read(sys.argv[1])
    except AutosegError as error:
        print(error)
"""


@pytest.fixture
def misnamed(tmp_path: Path) -> Path:
    """A folder whose name is no UTF-8."""
    folder = tmp_path / MISNAMED
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes text only for names")
    return folder


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".png", ".tif"])
def test_a_file_whose_name_is_not_text_is_refused_and_ends_nothing(misnamed: Path, ending: str) -> None:
    path = misnamed.parent / f"a{ending}"
    write_label_map(path, VALUES, GRID)
    path = path.rename(path.with_name(f"{MISNAMED}{ending}"))
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True)
    line = rf"{path.parent}/M\xfcller{ending}: its name is not valid UTF-8; rename it"
    assert [text.strip(" -") for text in done.stdout.splitlines()] == [line] * 3
    shutil.copy(path, misnamed / f"a{ending}")
    with pytest.raises(AutosegError) as caught:
        read_header(misnamed / f"a{ending}")
    assert caught.value.codes == ("reader.name_not_text",)
    with pytest.raises(AutosegError) as caught:
        write_label_map(misnamed / f"b{ending}", VALUES, GRID)
    assert caught.value.codes == ("reader.name_not_text",)


def test_slices_whose_names_are_no_text_are_named_all(misnamed: Path, real_data: Path) -> None:
    folder = misnamed.parent / "scan"
    shutil.copytree(real_data / "dicom_series" / "mr_prostatex_adc", folder)
    (folder / f"{MISNAMED}.txt").write_text("no slice, so nobody minds its name")
    read_header(folder)
    for path in sorted(folder.glob("*.dcm"))[:2]:
        path.rename(path.with_name(f"{MISNAMED}{path.name}"))
    with pytest.raises(AutosegError) as caught:
        read_image([folder])
    assert [Path(problem.where).name for problem in caught.value.issues] == [
        r"M\xfcller1-01.dcm",
        r"M\xfcller1-02.dcm",
    ]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", ["é", "漢字", "Ångström à ß", "🫀", "e\u0301"])
def test_names_in_any_script_are_read_and_written(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"{name}{ending}"
    write_label_map(path, VALUES, GRID)
    assert np.array_equal(read_label_map(path).array, VALUES)
    require_text([path])


def test_a_faulty_folder_is_reported_once() -> None:
    paths = [f"/data/{MISNAMED}/a", f"/data/{MISNAMED}/b/{MISNAMED}", f"/data/c/{MISNAMED}", "/data/ü"]
    with pytest.raises(AutosegError) as caught:
        require_text(paths)
    assert caught.value.codes == ("reader.name_not_text",) * 2
    assert [problem.where for problem in caught.value.issues] == [r"/data/M\xfcller", r"/data/c/M\xfcller"]
    require_text([])


@pytest.mark.parametrize(
    ("text", "shown"), [(MISNAMED, r"M\xfcller"), ("ü 漢", "ü 漢"), ("\ud800\udc80", r"\ud800\x80"), ("", "")]
)
def test_every_text_can_be_printed(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode("utf-8")
