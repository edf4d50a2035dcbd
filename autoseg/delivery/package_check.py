"""Opens packages of predictions, and checks them by the rules of a challenge: names, counts, types, values, grids."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import GridTolerances, grid_differences
from autoseg.imaging.readers import ImageHeader, image_ending, is_debris, read_header, read_label_map
from autoseg.issues import AutosegError, Issue, Severity
from autoseg.tracking.progress import Reporter
from autoseg.wording import count_noun, shorten
from datasets_spec import Challenge, Grid, Package

PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compressions of zip members that servers open."""
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)
"""What archives raise whose bytes were changed or lost."""
SECOND_FILES = (".raw", ".zraw")
"""Endings of the voxels of a MetaImage header."""
AFFINE = 1e-3
"""Largest difference, in mm, from an affine that is the same for all cases; files store single precision."""
BLOCK = 1 << 20
COMPRESSED = b"compresseddata = true"
HEADER_BYTES = 4096
WIDE = ("int64", "uint64")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedFile:
    """A file that a package holds or must hold."""

    name: str
    """Its path in the package."""
    place: str = ""
    """Where it was found in the package; a grader may see it as ``name`` anyhow."""
    part: str
    case_id: str
    image: Path | None = None
    """The test image, for its grid; none: it is not known."""
    allowed: tuple[int, ...] | None = None
    """Values that it may hold; none: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a package is checked by."""

    challenge: Challenge
    given: Mapping[str, str] = field(default_factory=dict)
    """Fields of names that were asked for, and ``dataset``."""
    expected: Mapping[str, Sequence[ExpectedFile]] = field(default_factory=dict)
    """By part, all files of the test images; parts that are left out are checked by their names only."""
    is_incomplete: bool = False
    """Whether missing cases are warnings."""

    @property
    def shortage(self) -> Severity:
        return "warning" if self.is_incomplete else "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A package that keeps the rules."""

    cases: Mapping[str, int]
    """Cases of each part."""
    values: tuple[int, ...]
    """Values in all files together, ascending."""
    with_grids: bool
    """Whether every file was compared with its image."""
    issues: tuple[Issue, ...]
    """Warnings."""


@contextmanager
def opened_package(path: Path) -> Iterator[Path]:
    """The folder ``path``, or a temporary one with the files of a zip or tar archive.

    Raises `AutosegError` for what is no archive, and for members that a server would refuse or that lead out of the folder.
    """
    if path.is_dir():
        yield path
        return
    if not path.is_file():
        fix = "pass the archive or folder that would be uploaded"
        raise AutosegError(_issue(path, code="submission.no_package", message="does not exist", fix=fix))
    with TemporaryDirectory() as name:
        _unpack(path, Path(name))
        yield Path(name)


def _unpack(path: Path, folder: Path) -> None:
    try:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
                while archive.fileobj is not None and archive.fileobj.read(BLOCK):
                    pass  # the sum of what is compressed stands at its end
        else:
            with zipfile.ZipFile(path) as archive:
                if issues := _unfit_members(path, archive):
                    raise AutosegError(*issues, headline=f"{path} cannot be submitted:")
                archive.extractall(folder)
    except (*DAMAGED, NotImplementedError, RuntimeError) as error:
        message, fix = f"cannot be opened as an archive ({error})", "pack it again as zip"
        raise AutosegError(_issue(path, code="submission.no_archive", message=message, fix=fix)) from error


def _unfit_members(path: Path, archive: zipfile.ZipFile) -> list[Issue]:
    issues = []
    for info in archive.infolist():
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if info.flag_bits & 1:
            message, fix = "is encrypted", "pack it without a password"
        elif info.compress_type not in PLAIN:
            message, fix = f"has the compression {info.compress_type}, which servers refuse", "pack it with deflate"
        elif name.is_absolute() or ".." in name.parts or (info.external_attr >> 16) & 0o170000 == 0o120000:
            message, fix = "is a link, or points outside the archive", "pack plain files"
        else:
            continue
        issues.append(_issue(f"{path.name}: {name}", code="submission.unfit_member", message=message, fix=fix))
    twice = [name for name, count in Counter(info.filename for info in archive.infolist()).items() if count > 1]
    fix = "pack each file once"
    return issues + [
        _issue(f"{path.name}: {name}", code="submission.duplicate_file", message="is in the archive twice", fix=fix)
        for name in twice
    ]


def check_package(folder: Path, rules: Rules, reporter: Reporter, *, where: str = "") -> Checked:
    """Check the files below ``folder``; ``where`` is the package in messages.

    Raises `AutosegError` with every fault: hidden and other files, cases that are missing, left out or unknown, numbers of
    cases, and of each file what is not as the challenge demands.
    """
    found, issues = _recognised(folder, rules)
    issues += _shortages(found, rules)
    values: set[int] = set()
    with reporter.track("Checking the package", len(found)) as tracker:
        for file in found.values():
            issues += check_file(folder / file.place, file, rules.challenge, values)
            tracker.advance()
    if where:
        issues = [issue.model_copy(update={"where": f"{where}: {issue.where}"}) for issue in issues]
    errors = [issue for issue in issues if issue.severity == "error"]
    if errors:
        name = where or str(folder)
        headline = f"{name} breaks the rules of {rules.challenge.title}, {count_noun(len(errors), 'error')}:"
        raise AutosegError(*errors, headline=headline)
    cases = {part: {file.case_id for file in found.values() if file.part == part} for part in rules.challenge.parts}
    return Checked(
        cases={part: len(each) for part, each in cases.items() if each},
        values=tuple(sorted(values)),
        with_grids=bool(found) and all(file.image is not None for file in found.values()),
        issues=tuple(issues),
    )


# --- names ---


def _recognised(folder: Path, rules: Rules) -> tuple[dict[str, ExpectedFile], list[Issue]]:
    """Files of the package by the name that they should have, and what does not belong there."""
    expected = {file.name: file for files in rules.expected.values() for file in files}
    paths = [path for path in sorted(folder.rglob("*")) if not path.is_dir() and not _is_second_file(path)]
    names = [path.relative_to(folder).as_posix() for path in paths]
    has_one_top = len({name.split("/", 1)[0] for name in names}) == 1
    found: dict[str, ExpectedFile] = {}
    issues: list[Issue] = []
    for name in names:
        if any(is_debris(part) for part in PurePosixPath(name).parts):
            fix = "delete it, and pack again"
            issues.append(_issue(name, code="submission.hidden_file", message="is a system file", fix=fix))
            continue
        readings = _readings(name, rules.challenge, has_one_top=has_one_top)
        known = (expected[reading] for reading in readings if reading in expected)
        file = next(known, None) or _by_form(name, readings, rules)
        if isinstance(file, Issue):
            issues.append(file)
        elif file.name in found:
            message, fix = f"is {file.name}, which the package has already", "keep one of them"
            issues.append(_issue(name, code="submission.duplicate_file", message=message, fix=fix))
        else:
            found[file.name] = replace(file, place=name)
    return found, issues


def _is_second_file(path: Path) -> bool:
    return path.suffix.lower() in SECOND_FILES and path.with_suffix(".mhd").is_file()


def _readings(name: str, challenge: Challenge, *, has_one_top: bool) -> list[str]:
    """The names that a grader may see for a file: with its folders, without the top one, or the last part only."""
    readings, below = [name], name.split("/", 1)[1:] if has_one_top else []
    if challenge.package.strips_top_folder and len(challenge.parts) == 1:
        (part,) = challenge.parts.values()
        if "/" in part.file:
            top = part.file.split("/", 1)[0]
            readings += [f"{top}/{each}" for each in (name, *below)]
        else:
            readings += below
    if challenge.package.any_depth:
        readings.append(name.rsplit("/", 1)[-1])
    return readings


def _by_form(name: str, readings: Sequence[str], rules: Rules) -> ExpectedFile | Issue:
    """The file by the form of its name; an issue where no part of the challenge has such files, or its cases are known."""
    parts = rules.challenge.parts
    for part_name, part in parts.items():
        for reading in readings:
            fields = part.fields_of_name(reading, rules.given)
            if fields is None:
                continue
            case_id = part.case_of(fields) or reading
            if case_id in part.leave_out:
                message, fix = "must not be submitted", "leave it out"
                return _issue(name, code="submission.left_out_case", message=message, fix=fix)
            if part_name in rules.expected:
                message, fix = f"is not of a test image ({case_id})", "leave it out"
                return _issue(name, code="submission.unknown_case", message=message, fix=fix)
            allowed = part.values if "{class}" not in part.file else (0, 1)
            return ExpectedFile(name=reading, part=part_name, case_id=case_id, allowed=allowed)
    last = name.rsplit("/", 1)[-1]
    for part in parts.values():
        flat = part.model_copy(update={"file": part.file.rsplit("/", 1)[-1]})
        if "/" in f"{part.file}{name}" and flat.fields_of_name(last, rules.given) is not None:
            message, fix = f"lies in the wrong folder (expected {part.shown_name(rules.given)})", "move it there"
            return _issue(name, code="submission.wrong_folder", message=message, fix=fix)
    forms = " or ".join(part.shown_name(rules.given) for part in list(parts.values())[:3])
    fix = f"name it {forms}, or leave it out"
    return _issue(name, code="submission.stray_file", message="is not a file of this challenge", fix=fix)


# --- numbers ---


def _shortages(found: Mapping[str, ExpectedFile], rules: Rules) -> list[Issue]:
    """Cases that are missing by name, wrong numbers of cases, and parts without any."""
    issues = []
    many = len(rules.challenge.parts) > 1
    for name, part in rules.challenge.parts.items():
        cases = {file.case_id for file in found.values() if file.part == name}
        place = name if many else ""
        if many and not cases and name not in rules.expected:
            message, fix = f"has no file of {name}", "add the run of this part"
            issues.append(_short(rules, "", code="submission.missing_part", message=message, fix=fix))
            continue
        lacking: dict[str, list[str]] = {}
        for file in rules.expected.get(name, ()):
            if file.name not in found:
                lacking.setdefault(file.case_id, []).append(file.name)
        as_zero = ", which counts as empty" if rules.challenge.package.missing == "zero" else ""
        for case_id, names in lacking.items():
            message = f"case {case_id} has no file {names[0]}{as_zero}"
            if len(names) > 1:
                message = f"case {case_id} lacks {count_noun(len(names), 'file')}: {shorten(names)}{as_zero}"
            issues.append(
                _short(
                    rules,
                    place,
                    code="submission.missing_prediction",
                    message=message,
                    fix="predict it first",
                    case=case_id,
                )
            )
        if part.count is not None and len(cases) + len(lacking) != part.count and not (lacking and not cases):
            message = (
                f"has {count_noun(len(cases) + len(lacking), 'case')}, but {rules.challenge.title} has {part.count}"
            )
            fix = "pack all test images, or pass --incomplete for a rehearsal"
            issues.append(_short(rules, place, code="submission.case_count", message=message, fix=fix))
    return issues


def _short(rules: Rules, where: str, *, code: str, message: str, fix: str, case: str | None = None) -> Issue:
    place = where or rules.challenge.title
    return Issue(code=code, severity=rules.shortage, where=place, message=message, fix=fix, case=case)


# --- single files ---


def check_file(path: Path, file: ExpectedFile, challenge: Challenge, values: set[int]) -> list[Issue]:
    """What is wrong with one file; its values are added to ``values``."""
    part, package, where = challenge.parts[file.part], challenge.package, file.name
    fix = "write it again"
    try:
        header = read_header(path)
        image = None if file.image is None else read_header(file.image).geometry
        if not header.is_integer and package.dtype != "float32":
            message = f"stores {header.pixel_type}, not integers"
            return [_issue(where, code="submission.not_integers", message=message, fix=fix)]
        if header.num_channels > 1:
            message = f"has {header.num_channels} channels or volumes instead of one"
            return [_issue(where, code="submission.several_channels", message=message, fix=fix)]
        own = {int(value) for value in np.unique(read_label_map(path).array)}
    except AutosegError as error:
        return [issue.model_copy(update={"where": where, "case": None}) for issue in error.issues]
    values |= own
    issues = _type_issues(path, header, package, where)
    unknown = sorted(own - {*file.allowed}) if file.allowed is not None else []
    if unknown:
        shown = ", ".join(map(str, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
        whose = f"{challenge.title} has" if challenge.page else "the dataset's are"
        message = f"has the values {shown}, but {whose} {', '.join(map(str, file.allowed or ()))}"
        issues.append(_issue(where, code="submission.unknown_values", message=message, fix=fix))
    grid = part.grid or package.grid
    differences = grid_faults(header.geometry, image, grid, is_slice="{slice" in part.file)
    if differences:
        message = (
            f"is not on the grid of {file.image.name if file.image else challenge.title}: {', '.join(differences)}"
        )
        fix = "predict the case again from that image"
        issues.append(_issue(where, code="submission.grid_mismatch", message=message, fix=fix))
    return issues


def _type_issues(path: Path, header: ImageHeader, package: Package, where: str) -> list[Issue]:
    issues = []
    if package.accepts is not None and header.pixel_type not in package.accepts:
        message, fix = f"stores {header.pixel_type}, not {' or '.join(package.accepts)}", "store it as that"
        issues.append(_issue(where, code="submission.voxel_type", message=message, fix=fix))
    if package.accepts is None and header.pixel_type in WIDE:
        message = f"stores {header.pixel_type}, which many evaluations do not read"
        fix = f"store it as {package.dtype}"
        issues.append(Issue(code="submission.voxel_type", severity="warning", where=where, message=message, fix=fix))
    if package.compressed is not None and image_ending(path) in (".mha", ".mhd"):
        with open(path, "rb") as stream:
            is_compressed = COMPRESSED in stream.read(HEADER_BYTES).lower()
        if is_compressed != package.compressed:
            found, wanted = ("compressed", "uncompressed")[:: 1 if is_compressed else -1]
            message, fix = f"holds {found} voxels, but must hold {wanted} ones", f"write it {wanted}"
            issues.append(_issue(where, code="submission.compression", message=message, fix=fix))
    return issues


def grid_faults(found: Geometry, image: Geometry | None, grid: Grid, *, is_slice: bool = False) -> tuple[str, ...]:
    """How a grid differs from what a challenge demands; empty if it does not."""
    faults: list[str] = []
    if grid.size is not None and found.shape[::-1][: len(grid.size)] != grid.size:
        own, other = ("x".join(map(str, each)) for each in (found.shape[::-1], grid.size))
        faults.append(f"size {own} voxels instead of {other} (x, y, z)")
    affine = found.affine[:, [2, 1, 0, 3]]
    if grid.affine_diagonal is not None:
        faults += _affine_fault("axes", affine[:3, :3], np.diag(grid.affine_diagonal))
    if grid.affine_offset is not None:
        faults += _affine_fault("offset", affine[:3, 3], np.array(grid.affine_offset))
    if image is None or not grid.like_image:
        return tuple(faults)
    if is_slice:
        image = image.model_copy(update={"shape": (1, *image.shape[1:]), "has_orientation": False})
    tolerances = GridTolerances(spacing=grid.spacing, origin=grid.origin, direction=grid.direction)
    if grid.affine_sum is None:
        return (*faults, *grid_differences(found, image, tolerances))
    without_place = image.model_copy(update={"has_orientation": False})
    faults += grid_differences(found, without_place, tolerances)
    difference = float(np.abs(found.affine - image.affine).sum())
    if difference > grid.affine_sum:
        faults.append(f"affines differ by {difference:.3g} in all, more than {grid.affine_sum:g}")
    return tuple(faults)


def _affine_fault(what: str, found: NDArray[np.float64], wanted: NDArray[np.float64]) -> list[str]:
    if np.abs(found - wanted).max() <= AFFINE:
        return []
    own, other = (" ".join(f"{value:g}" for value in each.ravel()) for each in (found, wanted))
    return [f"{what} of the affine {own} instead of {other}"]


def _issue(where: Path | str, *, code: str, message: str, fix: str) -> Issue:
    return Issue(code=code, where=str(where), message=message, fix=fix)
