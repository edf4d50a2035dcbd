"""Which files of a folder are the labels of images beside them, as far as names tell."""

from __future__ import annotations

from pathlib import Path

from autoseg.data.candidate_layouts import candidate_layouts
from autoseg.data.matching import best_match, match_layouts
from autoseg.issues import AutosegError


def labels_beside_images(folder: Path) -> frozenset[Path]:
    """Label files of the cases that the best fitting layout finds, symbolic links resolved; no file is read.

    Nothing where no image has a label, and where the folder cannot be listed: whoever reads its images says so.
    """
    try:
        root, layouts = candidate_layouts(folder, None, None)
        match = best_match(match_layouts(root, layouts))
    except AutosegError:
        return frozenset()
    return frozenset((root / path).resolve() for path in match.label_files)
