"""Which files of a case are channels, in which order, and what they are called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from autoseg.data.dataset import Case
from autoseg.data.matching import Match
from autoseg.data.patterns import FoundFile
from autoseg.imaging.readers import image_stem, list_series, read_header, split_part
from autoseg.issues import AutosegError

MODALITIES = frozenset(
    {
        "ct",
        "cbct",
        "pet",
        "t1",
        "t1w",
        "t1c",
        "t1ce",
        "t1gd",
        "t2",
        "t2w",
        "t2star",
        "flair",
        "pd",
        "pdw",
        "dwi",
        "adc",
        "sem",
        "tem",
    }
)
"""Last words of file names that say what was recorded; a channel that is called CT is normalised as CT."""


def channel_texts(match: Match) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Texts of ``{channel}`` in channel order, and the files whose text is no channel, by that text."""
    counts = Counter(text for case_id in match.paired for text in {channel_of(file) for file in match.images[case_id]})
    declared = match.layout.channels
    if declared is not None and set(declared) & set(counts):
        texts = tuple(declared)
    else:
        # a file that most cases lack is no channel: a mask, a raw copy, a note
        texts = tuple(sorted(text for text, count in counts.items() if 2 * count > len(match.paired)))
        texts = texts or tuple(sorted(counts))
    dropped: dict[str, list[str]] = {}
    for files in (*match.images.values(), *match.test.values()):
        for file in files:
            if channel_of(file) not in texts:
                dropped.setdefault(channel_of(file), []).append(file.path)
    return texts, dropped


def channel_of(file: FoundFile) -> str:
    """Text of the file's ``{channel}``; empty where the layout has none."""
    return file.fields.get("channel") or ""


def channel_names(cases: Sequence[Case], texts: Sequence[str]) -> tuple[str, ...]:
    """The texts where they are names; the modality of DICOM series, or that in which all files end (``_ct``, ``_T1w``).

    Else ``channel_0``, ``channel_1`` ... for the channels of the first case whose files can be read.
    """
    if all(re.search("[A-Za-z]", text) for text in texts):
        return tuple(texts)
    count = 1
    for case in cases:
        try:
            count = sum(read_header(path).num_channels for path in case.image_paths)
            break
        except AutosegError:  # the check reports it with the others
            continue
    modalities = {_modality(case) for case in cases} if count == 1 else {""}
    if len(modalities) == 1 and (modality := modalities.pop()):
        return (modality,)
    return tuple(f"channel_{index}" for index in range(count))


def _modality(case: Case) -> str:
    """Of the image of a case, by its DICOM headers or by the last word of its name; empty where neither tells."""
    if len(case.images) > 1:
        return ""
    folder, uid = split_part(case.image_paths[0])
    if not folder.is_dir():
        word = image_stem(case.image_paths[0]).rpartition("_")[2]
        return word.upper() if word.casefold() == "ct" else word if word.casefold() in MODALITIES else ""
    try:
        return next((name.modality for name in list_series(folder) if uid in (None, name.uid)), "")
    except AutosegError:
        return ""
