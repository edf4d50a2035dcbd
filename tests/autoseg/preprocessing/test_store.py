"""Stored cases: read in patches, whole or not there at all."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.imaging.image import Geometry
from autoseg.imaging.placement import Placement
from autoseg.issues import AutosegError
from autoseg.preprocessing.store import (
    MAX_BLOCK_BYTES,
    MAX_CHUNK_BYTES,
    Prepared,
    chunk_and_block,
    is_stored,
    open_array,
    open_case,
    pack_array,
    remove_case,
    write_case,
)

SHAPE = (20, 33, 40)


def prepared(shape: tuple[int, int, int] = SHAPE, *, with_labels: bool = True) -> Prepared:
    rng = np.random.default_rng(0)
    whole = tuple((0, size) for size in shape)
    placement = Placement(
        source=Geometry(shape=shape, spacing_mm=(2.0, 1.0, 1.0)),
        permutation=(0, 1, 2),
        flips=(False, True, False),
        transpose_forward=(0, 1, 2),
        shape_before_cropping=shape,
        box=whole,  # type: ignore[arg-type]
        spacing_mm=(2.0, 1.0, 1.0),
        resampled_shape=shape,
        resampled_spacing_mm=(2.0, 1.0, 1.0),
    )
    labels = rng.integers(-1, 3, shape).astype(np.int16) if with_labels else None
    return Prepared(image=rng.normal(size=(2, *shape)).astype(np.float32), labels=labels, placement=placement)


def stored_case_ids(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name.removesuffix(".case.json") for path in folder.glob("*.case.json")))


LOCATIONS = {"liver": np.array([[1, 2, 3]], np.int32), "odd / name": np.zeros((0, 3), np.int32)}


def test_a_stored_case_comes_back(tmp_path: Path) -> None:
    case = prepared()
    write_case(tmp_path / "new", "a", case, LOCATIONS, made_from="digest", patch_shape=(16, 16, 16))
    stored = open_case(tmp_path / "new", "a")
    assert np.array_equal(stored.image[:], case.image)
    assert np.array_equal(stored.image[1:2, 3:9, 10:33, 0:7], case.image[1:2, 3:9, 10:33, 0:7])
    assert case.labels is not None
    assert np.array_equal(stored.labels[5, 2:4], case.labels[5, 2:4])
    assert stored.image.dtype == np.float32
    assert stored.labels.dtype == np.int16
    assert stored.placement == case.placement
    assert {name: array.tolist() for name, array in stored.locations.items()} == {
        "liver": [[1, 2, 3]],
        "odd / name": [],
    }
    assert stored_case_ids(tmp_path / "new") == ("a",)


def test_a_stored_case_travels_between_processes(tmp_path: Path) -> None:
    write_case(tmp_path, "a", prepared(), LOCATIONS, made_from="digest")
    stored = pickle.loads(pickle.dumps(open_case(tmp_path, "a")))
    assert stored.image.shape == (2, *SHAPE)


def test_unlabelled_cases_say_that_they_have_no_labels(tmp_path: Path) -> None:
    write_case(tmp_path, "a", prepared(with_labels=False), {}, made_from="digest")
    stored = open_case(tmp_path, "a")
    assert stored.locations == {}
    with pytest.raises(AutosegError) as caught:
        _ = stored.labels
    assert caught.value.codes == ("store.no_labels",)


def test_flat_patches_and_flat_cases_are_stored(tmp_path: Path) -> None:
    case = prepared((1, 33, 40))
    write_case(tmp_path, "a", case, LOCATIONS, made_from="digest", patch_shape=(32, 32))
    assert np.array_equal(open_case(tmp_path, "a").image[0, 0], case.image[0, 0])


def test_a_case_without_its_record_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def stop_before_the_record(source: Path, target: Path) -> None:
        if target.name == "a.case.json":
            raise KeyboardInterrupt
        replace(source, target)

    write_case(tmp_path, "a", prepared(), LOCATIONS, made_from="old")
    monkeypatch.setattr(os, "replace", stop_before_the_record)
    with pytest.raises(KeyboardInterrupt):
        write_case(tmp_path, "a", prepared(), LOCATIONS, made_from="new")
    assert stored_case_ids(tmp_path) == ()
    assert not is_stored(tmp_path, "a", "old")
    with pytest.raises(AutosegError, match=r"a\.case\.json"):
        open_case(tmp_path, "a")


def test_cases_count_as_stored_only_with_all_files_and_the_same_digest(tmp_path: Path) -> None:
    write_case(tmp_path, "a", prepared(), LOCATIONS, made_from="digest")
    assert is_stored(tmp_path, "a", "digest")
    assert not is_stored(tmp_path, "a", "other")
    (tmp_path / "a.labels.b2nd").unlink()
    assert not is_stored(tmp_path, "a", "digest")


def test_names_of_cases_do_not_meet(tmp_path: Path) -> None:
    for name in ("a", "a.labels", "a.image"):
        write_case(tmp_path, name, prepared(), LOCATIONS, made_from=name)
    assert stored_case_ids(tmp_path) == ("a", "a.image", "a.labels")
    remove_case(tmp_path, "a")
    assert is_stored(tmp_path, "a.labels", "a.labels")
    assert open_case(tmp_path, "a.image").image.shape == (2, *SHAPE)


def test_nothing_but_the_case_is_left_behind(tmp_path: Path) -> None:
    write_case(tmp_path, "a", prepared(), LOCATIONS, made_from="digest")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.image.b2nd", "a.labels.b2nd", "a.locations.npz", "a.case.json"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AutosegError, match="file"):
        write_case(tmp_path / "file", "a", prepared(), LOCATIONS, made_from="digest")


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from autoseg.issues import AutosegError
from autoseg.imaging.placement import Placement
from autoseg.preprocessing.store import Prepared, write_case
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
placement = Placement.model_validate_json(sys.argv[2])
image = np.random.default_rng(0).normal(size=(1, 20, 33, 40)).astype(np.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_case(Path(sys.argv[1]), "a", Prepared(image=image, labels=None, placement=placement), {}, made_from="digest")
except AutosegError as error:
    sys.exit(f"refused {error}")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on file size to be had")
def test_a_full_disk_leaves_nothing_behind_and_is_reported(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path / "out"), prepared().placement.model_dump_json()]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert run.stderr.splitlines()[-1].startswith("refused")
    assert "a.image.b2nd" in run.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_broken_array_is_named(tmp_path: Path) -> None:
    write_case(tmp_path, "a", prepared(), LOCATIONS, made_from="digest")
    (tmp_path / "a.image.b2nd").write_bytes(b"nothing")
    with pytest.raises(AutosegError) as caught:
        _ = open_case(tmp_path, "a").image
    assert caught.value.codes == ("store.damaged",)
    assert caught.value.issues[0].where == str(tmp_path / "a.image.b2nd")


def test_damage_found_while_reading_is_reported(tmp_path: Path) -> None:
    write_case(tmp_path, "a", prepared(), LOCATIONS, made_from="digest", patch_shape=(8, 8, 8))
    for name in ("image", "labels"):
        path = tmp_path / f"a.{name}.b2nd"
        content = bytearray(path.read_bytes())
        third = len(content) // 3
        content[third : 2 * third] = np.random.default_rng(0).bytes(third)
        path.write_bytes(content)
        array = getattr(open_case(tmp_path, "a"), name)
        with pytest.raises(AutosegError) as caught:
            array[:]
        assert caught.value.codes == ("store.damaged",)
        assert caught.value.issues[0].where == str(path)


def test_a_slice_that_is_wrong_is_no_damage(tmp_path: Path) -> None:
    write_case(tmp_path, "a", prepared(), LOCATIONS, made_from="digest")
    with pytest.raises(IndexError):
        open_case(tmp_path, "a").image[0, 0, 0, 0, 0]


def test_a_damaged_key_is_an_issue(tmp_path: Path) -> None:
    path = tmp_path / "a.b2nd"
    path.write_bytes(pack_array(np.zeros(SHAPE, np.int16), SHAPE, made_from="digest"))
    assert open_array(path).made_from == "digest"
    path.write_bytes(path.read_bytes().replace(b"digest", b"\xffigest"))
    with pytest.raises(AutosegError) as caught:
        _ = open_array(path).made_from
    assert caught.value.codes == ("store.damaged",)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 600)] * 3),
    patch=st.tuples(*[st.integers(1, 320)] * 3) | st.tuples(*[st.integers(1, 900)] * 2),
    itemsize=st.sampled_from([2, 4]),
)
def test_chunks_and_blocks_keep_their_limits(
    shape: tuple[int, int, int], patch: tuple[int, ...], itemsize: int
) -> None:
    chunk, block = chunk_and_block(shape, patch, itemsize)
    assert math.prod(block) * itemsize <= MAX_BLOCK_BYTES
    assert math.prod(chunk) * itemsize <= max(MAX_CHUNK_BYTES, math.prod(block) * itemsize)
    for size, of_chunk, of_block in zip(shape, chunk, block, strict=True):
        assert 1 <= of_block <= of_chunk <= size
    if len(patch) == 2:
        assert chunk[0] == 1


def test_chunk_shapes_by_hand() -> None:
    # target 60 x 288 x 288; block: 64 x 256 x 256, each time halved along the axis with the largest share of its target
    # (later axis first), until 4 bytes a voxel fit 128 KiB; chunk: blocks are added to the axis with the smallest share;
    # 48, 256 and 256 would each pass 6 MiB
    chunk, block = chunk_and_block((100, 300, 300), (40, 192, 192), 4)
    assert block == (8, 64, 64)
    assert chunk == (40, 192, 192)


@pytest.mark.parametrize("ending", [".image.b2nd", ".labels.b2nd", ".locations.npz"])
def test_a_cut_file_is_no_stored_case(tmp_path: Path, ending: str) -> None:
    write_case(tmp_path, "a", prepared(), LOCATIONS, made_from="digest")
    path = tmp_path / f"a{ending}"
    path.write_bytes(path.read_bytes()[:-10])
    assert not is_stored(tmp_path, "a", "digest")
    if ending == ".locations.npz":
        with pytest.raises(AutosegError) as caught:
            _ = open_case(tmp_path, "a").locations
        assert caught.value.codes == ("store.damaged",)
