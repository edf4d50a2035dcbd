"""What a folder declares about its channels and classes: ``dataset.json``, a spec file, tables of BIDS."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from autoseg.imaging.readers import image_stem
from autoseg.issues import AutosegError, Issue
from autoseg.wording import count_noun
from datasets_spec import Layout
from planners import LabelClass, Labels

BACKGROUND = "background"
IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelValues:
    """Labels by internal values, and the value in the files of each internal value (index 0: background)."""

    labels: Labels
    file_values: tuple[int, ...]
    dropped: tuple[int, ...] = ()
    """Values in the files that count as background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """Names and values that were declared; None or empty: none were."""

    name: str | None = None
    channels: tuple[str, ...] | None = None
    label_values: LabelValues | None = None
    training_files: tuple[str, ...] = ()
    """Images listed for training, relative to the dataset's folder."""
    test_files: tuple[str, ...] = ()
    annotated_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Classes that were annotated, by case id; all of them in other cases."""


class _Entry(NamedTuple):
    name: str
    values: tuple[int, ...]


def read_decathlon(path: Path) -> Declaration:
    """What ``dataset.json`` declares (method section 1.2 and 1.4).

    Channels are ``channel_names`` or ``modality``: an object of index -> name, taken in the order of its indices, or a
    list. Labels are ``{"0": "background", ...}`` or ``{"background": 0, ...}``; there a list of values is a region, and
    an entry named ``ignore`` marks voxels that were not annotated. ``annotated_classes`` (case id -> names) says that in
    some cases only some classes were annotated. Other keys are ignored. Raises `AutosegError` with all faulty entries, or
    with line and column for a file that is not JSON.
    """
    content = _read_json(path)
    issues: list[Issue] = []
    name = content.get("name")
    declaration = Declaration(
        name=name if isinstance(name, str) and name.strip() else None,
        channels=_channels(content, path, issues),
        label_values=_label_values(content, path, issues),
        training_files=_listed(content, "training", path, issues),
        test_files=_listed(content, "test", path, issues),
        annotated_classes=_annotated(content, path, issues),
    )
    if issues:
        raise AutosegError(*issues, headline=f"{path} has {count_noun(len(issues), 'error')}:")
    return declaration


def declared_by_layout(layout: Layout) -> Declaration:
    """What a spec file or the description of a public dataset says of channels and labels.

    Regions without an order are written in turn, each with a value that no later one has. Raises `AutosegError` where
    entries contradict each other.
    """
    channels = layout.channels
    names = None if channels is None else tuple(channels.values() if isinstance(channels, dict) else channels)
    if layout.labels is None or layout.has_class_masks:
        return Declaration(channels=names)
    entries = [_Entry(k, v if isinstance(v, tuple) else (v,)) for k, v in layout.labels.items()]
    issues: list[Issue] = []
    order = list(layout.region_order or ())
    if layout.region_order is None:  # for each region a value that no later one has, if there is one
        regions = [entry.values for entry in entries if entry.name.lower() not in (BACKGROUND, IGNORE)]
        for number, values in enumerate(regions, 1):
            later = {value for other in regions[number:] for value in other}
            order.append(next((value for value in values if value not in later), values[0]))
    label_values = _arrange(entries, order, Path(f"{layout.name}.toml"), issues)
    if issues:
        raise AutosegError(*issues, headline=f"the labels of {layout.name} cannot be used:")
    return Declaration(channels=names, label_values=label_values)


def labels_named_by_value(file_values: Iterable[int], names: Mapping[int, str] | None = None) -> LabelValues:
    """Labels of a dataset that declares none: 0 is the background, every other value v the class ``label_v``.

    ``names`` gives some values other names; where several share one, the value is added to it.
    """
    foreground = sorted(set(file_values) - {0})
    named = {value: (names or {}).get(value, f"label_{value}") for value in foreground}
    while len(set(named.values())) < len(named):  # a name with its value may be another one's name
        count = Counter(named.values())
        named = {value: name if count[name] == 1 else f"{name}_{value}" for value, name in named.items()}
    classes = tuple(LabelClass(name=name, values=(i,)) for i, name in enumerate(named.values(), 1))
    return LabelValues(labels=Labels(classes=classes), file_values=(0, *foreground))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise _unusable(path, f"could not be read ({error.strerror or error})", "check its permissions") from error
    except UnicodeDecodeError as error:
        raise _unusable(path, f"not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    except json.JSONDecodeError as error:
        found = f"not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        raise _unusable(path, found, "correct it, or remove the file: labels are then named by their values") from error
    except RecursionError as error:
        raise _unusable(path, "nested too deeply", "correct it, or remove the file") from error
    if not isinstance(content, dict):
        raise _unusable(path, f"holds {_shown(content)}", "write one JSON object with modality and labels")
    return content


def _unusable(path: Path, message: str, fix: str) -> AutosegError:
    return AutosegError(Issue(code="description.unreadable", where=str(path), message=message, fix=fix))


def _channels(content: Mapping[str, Any], path: Path, issues: list[Issue]) -> tuple[str, ...] | None:
    key = "channel_names" if "channel_names" in content else "modality"
    declared = content.get(key)
    if declared is None:
        return None
    named = dict(enumerate(declared)) if isinstance(declared, list) else declared
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        issues.append(_fault(path, key, declared, 'write {"0": "MRI"}, with one entry a channel'))
        return None
    if all(_is_whole(index) for index in named):
        return tuple(named[index] for index in sorted(named, key=int))
    return tuple(named.values())


def _listed(content: Mapping[str, Any], key: str, path: Path, issues: list[Issue]) -> tuple[str, ...]:
    entries = content.get(key)
    if entries is None:
        return ()
    if not isinstance(entries, list):
        issues.append(_fault(path, key, entries, "write a list of files, or leave it out"))
        return ()
    files = []
    for number, entry in enumerate(entries):
        file = entry.get("image") if isinstance(entry, dict) else entry
        if isinstance(file, str):
            files.append(file)
        else:
            issues.append(_fault(path, f"{key}[{number}]", entry, 'write "imagesTs/name.nii.gz" or {"image": ...}'))
    return tuple(files)


def _annotated(content: Mapping[str, Any], path: Path, issues: list[Issue]) -> dict[str, tuple[str, ...]]:
    declared = content.get("annotated_classes")
    if declared is None:
        return {}
    if not isinstance(declared, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in declared.values()
    ):
        issues.append(_fault(path, "annotated_classes", declared, 'write {"case": ["name of a class", ...]}'))
        return {}
    return {case: tuple(names) for case, names in declared.items()}


def _label_values(content: Mapping[str, Any], path: Path, issues: list[Issue]) -> LabelValues | None:
    declared = content.get("labels")
    if declared is None:
        return None
    if not isinstance(declared, dict) or not declared:
        issues.append(_fault(path, "labels", declared, 'write {"0": "background", "1": "name of the structure"}'))
        return None
    entries = [_entry(key, value) for key, value in declared.items()]
    faulty = [key for key, entry in zip(declared, entries, strict=True) if entry is None]
    for key in faulty:
        issues.append(_fault(path, f"labels.{key}", declared[key], 'write "1": "name" or "name": 1'))
    if faulty:
        return None
    return _arrange([entry for entry in entries if entry is not None], content.get("regions_class_order"), path, issues)


def _entry(key: str, value: object) -> _Entry | None:
    if isinstance(value, str) and _is_whole(key):
        return _Entry(value.strip() or f"label_{int(key)}", (int(key),))
    if _is_whole(value):
        return _Entry(key, (int(value),))  # type: ignore[call-overload]
    if isinstance(value, list) and value and all(_is_whole(item) for item in value):
        return _Entry(key, tuple(sorted({int(item) for item in value})))
    return None


def _arrange(entries: Sequence[_Entry], order: Any, path: Path, issues: list[Issue]) -> LabelValues | None:
    """Internal values 1, 2, 3 ... for the foreground in ascending order of file values, and the ignore value above."""
    background, *dropped = next((e.values for e in entries if e.name.lower() == BACKGROUND), (0,))
    ignore = next((e.values[0] for e in entries if e.name.lower() == IGNORE and len(e.values) == 1), None)
    classes = [e for e in entries if e.name.lower() not in (IGNORE, BACKGROUND) and e.values != (background,)]
    foreground = sorted({value for entry in classes for value in entry.values})
    has_regions = any(len(entry.values) > 1 for entry in classes)
    found = _clashes(entries, classes, (background, *dropped), ignore, has_regions)
    is_order = isinstance(order, list) and all(_is_whole(value) and value in foreground for value in order)
    if has_regions and not (is_order and len(order) == len(classes)):
        found.append(
            f"regions_class_order is {_shown(order)}, not one of the values {foreground} for each of the "
            f"{len(classes)} regions, in the order in which they are written"
        )
    if found:
        issues += [
            Issue(code="description.labels", where=f"{path}, labels", message=text, fix="correct the file")
            for text in found
        ]
        return None
    internal = {value: number for number, value in enumerate(foreground, 1)}
    if not has_regions:
        classes.sort(key=lambda entry: entry.values)
    labels = Labels(
        classes=tuple(LabelClass(name=e.name, values=tuple(internal[v] for v in e.values)) for e in classes),
        ignore=None if ignore is None else len(foreground) + 1,
        region_order=tuple(internal[value] for value in order) if has_regions else None,
    )
    file_values = (background, *foreground, *(() if ignore is None else (ignore,)))
    return LabelValues(labels=labels, file_values=file_values, dropped=tuple(dropped))


def _clashes(
    entries: Sequence[_Entry],
    classes: Sequence[_Entry],
    background: Sequence[int],
    ignore: int | None,
    has_regions: bool,
) -> list[str]:
    """Contradictions between label entries, as text."""
    found = []
    names = [entry.name for entry in entries]
    found += [
        f"name {name!r} occurs {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    single = [entry.values for entry in classes]
    if not has_regions:
        twice = [values[0] for values in dict.fromkeys(single) if single.count(values) > 1]
        found += [f"value {value} has {single.count((value,))} names" for value in twice]
    found += [
        f"{e.name!r} holds the background value {value}" for e in classes for value in background if value in e.values
    ]
    found += [f"{e.name!r} holds the ignore value {ignore}" for e in classes if ignore in e.values]
    if ignore in background:
        found.append(f"background and ignore both have the value {ignore}")
    if not classes:
        found.append("declares only the background")
    return found


def _is_whole(value: object) -> bool:
    """Whether ``value`` is an integer, or text that is one."""
    if isinstance(value, str):
        digits = value.strip().removeprefix("-")
        return digits.isascii() and digits.isdigit()
    return isinstance(value, int) and not isinstance(value, bool)


def _fault(path: Path, place: str, found: object, fix: str) -> Issue:
    return Issue(code="description.entry", where=f"{path}, {place}", message=f"found {_shown(found)}", fix=fix)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_declaration(root: Path, layout: Layout) -> tuple[Declaration, list[Issue]]:
    """What the folder's own description (``dataset.json``) declares, and warnings about what it lacks."""
    description = layout.description
    if description is None:
        return Declaration(), []
    path = root / description.file
    if not path.is_file():
        found = f"{description.file} does not exist: channels are numbered, classes named by their values"
        missing = description.required and (layout.labels is None or layout.channels is None)
        return Declaration(), [_unnamed(path, found, code="description.missing")] if missing else []
    declaration = read_decathlon(path)
    issues = []
    if declaration.channels is None and layout.channels is None:
        found = "declares neither modality nor channel_names: channels are numbered"
        issues.append(_unnamed(path, found, code="description.channels_missing"))
    if declaration.label_values is None and layout.labels is None:
        found = "declares no labels: classes are named by their values"
        issues.append(_unnamed(path, found, code="description.labels_missing"))
    return declaration, issues


def with_defaults(declaration: Declaration, layout: Layout) -> Declaration:
    """Names from a spec file take precedence over those of the folder, and those over what is known of the dataset."""
    own = declared_by_layout(layout)
    first, second = (declaration, own) if layout.known is not None else (own, declaration)
    channels = first.channels or second.channels
    if layout.known is not None and any(" or " in name for name in own.channels or ()):
        channels = own.channels  # the folder names only one of the modalities that its cases have
    return replace(declaration, channels=channels, label_values=first.label_values or second.label_values)


def _unnamed(path: Path, message: str, *, code: str) -> Issue:
    return Issue(
        code=code,
        severity="warning",
        where=str(path),
        message=message,
        fix='write {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "name": 1}}; a channel named CT is planned '
        "as CT",
    )


SUFFIX = "dseg"
"""Last word of the name of a discrete segmentation, and of the table that belongs to it."""


def find_label_names(root: Path, label_files: Iterable[Path]) -> tuple[dict[int, str], list[Issue]]:
    """Names of label values from the BIDS tables (``dseg.tsv``) of ``label_files``, and issues with these tables.

    As everywhere in BIDS, a table applies to the label maps in its folder and below whose names contain all its words; the
    nearest one counts, then the one with the most words. A table that cannot be used is a warning, two names for one value
    are an error.
    """
    names: dict[int, str] = {}
    origin: dict[int, Path] = {}
    issues: list[Issue] = []
    tables = {_table_of(root, file) for file in label_files}
    for path in sorted(table for table in tables if table is not None):
        try:
            named = _read_table(path)
        except (OSError, ValueError, csv.Error) as error:
            issues.append(
                Issue(
                    code="description.label_table",
                    severity="warning",
                    where=str(path),
                    message=f"not a table of label names ({error}): labels are named by their values",
                    fix="write columns index and name, separated by tabs",
                )
            )
            continue
        for value, name in named.items():
            if names.setdefault(value, name) != name:
                issues.append(
                    Issue(
                        code="description.label_names_differ",
                        where=str(path),
                        message=f"value {value} is {name}, but {names[value]} in {origin[value]}",
                        fix="correct the tables, or use the same value for the same structure in all label maps",
                    )
                )
            origin.setdefault(value, path)
    return names, issues


def _table_of(root: Path, file: Path) -> Path | None:
    words = image_stem(file).split("_")
    folders = [folder for folder in file.parents if folder.is_relative_to(root)] if words[-1] == SUFFIX else []
    for folder in folders:
        named = [(path.stem.split("_"), path) for path in sorted(folder.glob(f"*{SUFFIX}.tsv"))]
        fitting = [(len(own), path) for own, path in named if own[-1] == SUFFIX and set(own) <= set(words)]
        if fitting:
            return max(fitting, key=lambda each: each[0])[1]
    return None


def _read_table(path: Path) -> Mapping[int, str]:
    """Names of the values above 0. Raises `ValueError` where that is no such table."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        missing = [column for column in ("index", "name") if column not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"no column {' and no column '.join(missing)}")
        names = {}
        for row in rows:
            if not _is_whole(row["index"]):
                raise ValueError(f"line {rows.line_num} has the index {row['index']!r}, not a whole number")
            names[int(row["index"])] = (row["name"] or "").strip()
    return {value: name for value, name in names.items() if value != 0 and name not in ("", "n/a")}
