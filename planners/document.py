"""Documents: frozen values that are read whole, or refused with every issue in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class _Prose:
    """The type of `PROSE`."""


PROSE: Final = _Prose()
"""``Annotated[str, PROSE]`` marks a field that explains and decides nothing: rewording it redoes no work."""


class Document(BaseModel):
    """A frozen value that is stored as JSON.

    Unknown, misspelt, missing and non-finite fields are refused. Reading is strict: no text is
    turned into a number behind the reader's back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


Severity = Literal["error", "warning", "note"]


class Issue(Document):
    """Something that a person should know or fix. Code goes by ``code`` and fields, never by the words."""

    code: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*\.[a-z0-9_.]+$")]
    """Stable name, room first: ``labels.empty``. `docs/reference/issues.md` lists all."""
    severity: Severity = "error"
    where: str
    """File, folder, option or case."""
    message: str
    """What was found, with the values found."""
    fix: str = ""
    """What can be done about it, starting with a verb."""
    case: str | None = None
    """Id of the case that it concerns; none: no single one."""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}; {self.fix}" if self.fix else text


class DocumentError(ValueError):
    """A document that cannot be read; ``problems`` holds one line for each fault, with its place."""

    def __init__(self, where: str, problems: tuple[str, ...]) -> None:
        self.where = where
        self.problems = problems
        super().__init__(f"{where} cannot be read:\n" + "\n".join(f"  - {line}" for line in problems))


D = TypeVar("D", bound=Document)


def read_document(model: type[D], text: str | bytes, *, where: str) -> D:
    """The document of type ``model`` that ``text`` (JSON) holds.

    ``where`` names the text's source in messages, e.g. a path. Raises `DocumentError` with all
    problems, each as ``path.in.document: what is wrong (found ...)``.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise DocumentError(where, describe_problems(error)) from error


def write_document(document: Document) -> str:
    """JSON text of a document: indented, in field order, exact floats, newline at the end."""
    return document.model_dump_json(indent=1) + "\n"


def essence(value: object) -> Any:
    """A document, or a plain value that may hold some, as plain JSON values without the fields marked as `PROSE`."""
    if isinstance(value, Document):
        fields = type(value).model_fields.items()
        return {name: essence(getattr(value, name)) for name, field in fields if PROSE not in field.metadata}
    if isinstance(value, Mapping):
        return {str(key): essence(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [essence(entry) for entry in value]
    return value


def describe_problems(error: ValidationError) -> tuple[str, ...]:
    """One line for each problem of a failed validation: place, what is wrong, what was found."""
    problems = error.errors(include_url=False)
    places = [problem["loc"] for problem in problems]
    lines = []
    for problem in problems:
        # entries with faults of their own do not count, so their list may seem too short: that is no news
        if problem["type"] == "too_short" and any(_lies_inside(place, problem["loc"]) for place in places):
            continue
        place = ".".join(str(part) for part in problem["loc"]) or "(whole document)"
        found = repr(problem["input"])
        found = found if len(found) <= 80 else found[:77] + "..."
        shown = "" if problem["type"] == "missing" else f" (found {found})"
        lines.append(f"{place}: {problem['msg']}{shown}")
    return tuple(lines)


def _lies_inside(place: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


class PlanningError(ValueError):
    """A dataset or an edit that cannot be planned; ``issues`` holds all that is wrong."""

    def __init__(self, headline: str, issues: Sequence[Issue]) -> None:
        self.headline = headline
        self.issues = tuple(issues)
        super().__init__(f"{headline}:\n" + "\n".join(f"  - {issue}" for issue in issues))

    def __reduce__(self) -> tuple[type[PlanningError], tuple[str, tuple[Issue, ...]]]:
        """Errors travel between processes; the default would lose the second argument."""
        return PlanningError, (self.headline, self.issues)
