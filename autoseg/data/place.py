"""The folder or list that a dataset is given by; loads nothing large, so that wrong paths are answered at once."""

from __future__ import annotations

from pathlib import Path

from autoseg.issues import AutosegError, Issue

LISTS = (".csv", ".tsv", ".json")
"""Endings of lists of cases, which may be given in place of their folder."""


def is_list(path: Path) -> bool:
    """Whether ``path`` is a file with the ending of a list of cases."""
    return path.is_file() and path.suffix.lower() in LISTS


def require_dataset(path: Path) -> None:
    """Raise `AutosegError` where ``path`` can hold no dataset: missing, an empty folder, one that cannot be listed, another file."""
    if is_list(path):
        return
    if not path.exists():
        raise AutosegError(_no_dataset(path, "does not exist", code="dataset.missing"))
    if not path.is_dir():
        raise AutosegError(_no_dataset(path, "is a file, not a folder or a list of cases", code="dataset.not_a_folder"))
    try:
        empty = not any(path.iterdir())
    except OSError as error:
        raise AutosegError(unlisted(path, error)) from error
    if empty:
        raise AutosegError(_no_dataset(path, "is empty", code="dataset.empty_folder"))


def unlisted(folder: Path, error: OSError) -> Issue:
    """The issue about a folder that cannot be listed."""
    message = f"could not be listed ({error.strerror or error})"
    return Issue(code="dataset.unreadable_folder", where=str(folder), message=message, fix="check its permissions")


def _no_dataset(path: Path, message: str, *, code: str) -> Issue:
    fix = "pass the folder of the dataset, or a list of cases as CSV or JSON"
    return Issue(code=code, where=str(path), message=message, fix=fix)
