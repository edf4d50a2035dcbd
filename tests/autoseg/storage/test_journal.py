"""A journal tells what files were made from: appended to by several processes, whole after a kill."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autoseg.issues import AutosegError
from autoseg.storage.journal import Entry, Journal, file_names, file_state, named_contents
from planners import Document


class Header(Document):
    """What all items have in common."""

    made_from: str


def journal(folder: Path) -> Journal[Header]:
    return Journal(folder / "journal.jsonl", Header)


def add(journal: Journal[Header], path: Path, content: str, *, item: str = "a", made_from: str = "key") -> Entry:
    path.write_text(content)
    entry = Entry(item=item, made_from=made_from, files=named_contents([path]))
    journal.add(entry)
    return entry


def test_the_first_header_counts(tmp_path: Path) -> None:
    one, two = journal(tmp_path / "new"), journal(tmp_path / "new")
    assert one.header() is None
    assert one.begin(Header(made_from="first")).made_from == "first"
    assert two.begin(Header(made_from="second")).made_from == "first"


def test_lines_of_other_processes_are_read_as_they_appear(tmp_path: Path) -> None:
    one, two = journal(tmp_path), journal(tmp_path)
    first = add(one, tmp_path / "a.txt", "1")
    assert two.of("a") == [first]
    second = add(one, tmp_path / "a.txt", "2")
    assert two.of("a") == [first, second]
    assert two.of("b") == []
    assert file_names(two.of("a")) == {"a.txt"}


def test_truncated_lines_are_skipped_and_a_new_one_begins_behind_them(tmp_path: Path) -> None:
    one = journal(tmp_path)
    entry = add(one, tmp_path / "a.txt", "1")
    with open(one.path, "ab") as file:
        file.write(one.path.read_bytes()[:40])
    later = add(journal(tmp_path), tmp_path / "b.txt", "2", item="b")
    assert one.entries() == {"a": [entry], "b": [later]}


def test_a_journal_that_was_removed_and_recreated_is_read_again(tmp_path: Path) -> None:
    one = journal(tmp_path)
    one.begin(Header(made_from="first"))
    add(one, tmp_path / "a.txt", "1")
    assert one.of("a")
    one.path.unlink()
    assert one.header() is None
    journal(tmp_path).begin(Header(made_from="2"))
    assert one.header() == Header(made_from="2")
    assert one.entries() == {}


def test_the_state_of_a_file_depends_on_its_content(tmp_path: Path) -> None:
    one, path = journal(tmp_path), tmp_path / "a.txt"
    assert file_state([path], one.of("a")) == "missing"
    path.write_text("mine")
    assert file_state([path], one.of("a")) == "missing"  # nothing was made for the item
    add(one, path, "old")
    add(one, path, "new")
    os.utime(path, ns=(1, 1))
    assert file_state([path], one.of("a")) == "current"
    for content, state in (("old", "outdated"), ("corrected", "unknown")):
        path.write_text(content)
        assert file_state([path], one.of("a")) == state
    path.unlink()
    assert file_state([path], one.of("a")) == "missing"


def test_an_output_of_several_files_is_as_its_worst(tmp_path: Path) -> None:
    one, parts = journal(tmp_path), [tmp_path / "a.bin", tmp_path / "a.txt"]
    for content in ("old", "new"):
        for part in parts:
            part.write_text(content)
        one.add(Entry(item="a", made_from="key", files=named_contents(parts)))
    assert file_state(parts, one.of("a")) == "current"
    parts[0].write_text("old")
    assert file_state(parts, one.of("a")) == "outdated"
    parts[0].unlink()
    assert file_state(parts, one.of("a")) == "missing"


def test_content_is_read_again_only_where_size_or_time_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = named_contents([path])
    known = tuple(each.model_copy(update={"sha256": "kept"}) for each in before)
    assert named_contents([path], known) == known
    path.write_text("three")
    assert named_contents([path], known)[0].sha256 not in ("kept", before[0].sha256)


def test_a_journal_that_cannot_be_written_is_an_issue(tmp_path: Path) -> None:
    one = journal(tmp_path)
    one.path.mkdir()
    with pytest.raises(AutosegError) as caught:
        one.begin(Header(made_from="key"))
    assert str(one.path) in caught.value.issues[0].where + caught.value.issues[0].message


@pytest.mark.parametrize("name", ["..", "../mine", "a/b", "a\\b", ""])
def test_lines_whose_names_lead_out_of_the_folder_are_skipped(tmp_path: Path, name: str) -> None:
    one = journal(tmp_path)
    entry = add(one, tmp_path / "a.txt", "1")
    with open(one.path, "a") as file:
        for change in ({"item": name}, {"files": (entry.files[0].model_copy(update={"path": name}),)}):
            file.write(f"{entry.model_copy(update=change).model_dump_json()}\n")
    assert one.entries() == {"a": [entry]}
