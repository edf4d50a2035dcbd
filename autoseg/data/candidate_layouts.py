"""Where to look for a dataset, and which layouts to look for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoseg.imaging.readers import require_text
from autoseg.issues import AutosegError
from datasets_spec import Layout, load_known, load_layouts, read_spec
from planners import DocumentError

LISTS = (".csv", ".tsv", ".json")
"""Endings of lists of cases, which may be given in place of their folder."""


def candidate_layouts(
    folder: Path, layouts: Sequence[Layout] | None, name: str | None
) -> tuple[Path, Sequence[Layout]]:
    """The folder to look into and the layouts to look for."""
    known = load_layouts() if layouts is None else layouts
    if folder.is_file() and folder.suffix.lower() in LISTS:
        lists = [each for each in known if each.listing is not None]
        return folder.parent.resolve(), [
            each.model_copy(update={"listing": each.listing.model_copy(update={"files": (folder.name,)})})
            for each in lists
            if each.listing is not None
        ]
    root = _existing_folder(folder)
    if layouts is None:
        known = (*known, *(each for each in load_known() if each.training is not None))
    if name is None:
        return root, known
    chosen = [each for each in known if each.name == name]
    if not chosen:
        names = ", ".join(each.name for each in known)
        raise AutosegError(
            f"there is no layout {name!r}; choose one of {names}, or describe the folder in a spec file (--spec)"
        )
    return root, chosen


def read_layout(path: Path) -> Layout:
    """The layout that a spec file describes."""
    try:
        return read_spec(path)
    except (DocumentError, OSError) as error:
        raise AutosegError(
            f"{path} is no spec file that can be used: {error}; docs/guides/spec-files.md shows how to write one"
        ) from error


def _existing_folder(folder: Path) -> Path:
    if not folder.exists():
        raise AutosegError(f"{folder} does not exist; give the folder that holds the dataset")
    if not folder.is_dir():
        raise AutosegError(
            f"{folder} is a file, not a folder; give the folder that holds the dataset, or a list of cases as "
            "CSV or JSON"
        )
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        raise AutosegError(f"{folder} could not be listed ({error.strerror or error}); make it readable") from error
    if empty:
        raise AutosegError(f"{folder} is empty; give the folder that holds the dataset")
    require_text([folder.resolve()])
    return folder.resolve()
