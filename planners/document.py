"""Documents: frozen values that are read whole, or refused with every issue in its place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class _Prose:
    """The type of `PROSE`."""


PROSE: Final = _Prose()
"""``Annotated[str, PROSE]`` marks a field that explains and decides nothing: rewording it redoes no work."""


class _Added:
    """The type of `ADDED`."""


ADDED: Final = _Added()
"""``Annotated[float, ADDED] = 0.0`` marks a field that older documents lack: at its default it changes no key and redoes no work."""


class Document(BaseModel):
    """A frozen value that is stored as JSON.

    Unknown, misspelt, missing and non-finite fields are refused. Reading is strict: no text is
    turned into a number behind the reader's back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True, defer_build=True)


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
    """A document that cannot be read; ``where`` names it, ``issues`` everything wrong with it by place in the document."""

    def __init__(self, where: str, issues: Sequence[Issue]) -> None:
        self.where = where
        self.issues = tuple(issues)
        super().__init__(f"{where} cannot be read:\n" + "\n".join(f"  - {issue}" for issue in issues))

    def __reduce__(self) -> tuple[type[DocumentError], tuple[str, tuple[Issue, ...]]]:
        """Errors travel between processes; the default would lose the second argument."""
        return DocumentError, (self.where, self.issues)


class InvalidError(ValueError):
    """What a validator raises where it knows what can be done about the fault."""

    def __init__(self, message: str, *, fix: str) -> None:
        self.message, self.fix = message, fix
        super().__init__(f"{message}; {fix}")


D = TypeVar("D", bound=Document)


def read_document(model: type[D], text: str | bytes, *, where: str) -> D:
    """The document of type ``model`` that ``text`` (JSON) holds.

    ``where`` names the text's source in messages, e.g. a path. Raises `DocumentError` with all
    issues, each with its place in the document.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise DocumentError(where, issues_of(error, document=text)) from error


def write_document(document: Document) -> str:
    """JSON text of a document: indented, in field order, exact floats, newline at the end."""
    return document.model_dump_json(indent=1) + "\n"


def essence(value: object) -> Any:
    """A document, or a plain value that may hold some, as plain JSON values without the fields marked as `PROSE`, or `ADDED` and at
    their default."""
    if isinstance(value, Document):
        kept = {
            name: getattr(value, name)
            for name, field in type(value).model_fields.items()
            if PROSE not in field.metadata and not (ADDED in field.metadata and getattr(value, name) == field.default)
        }
        return {name: essence(entry) for name, entry in kept.items()}
    if isinstance(value, Mapping):
        return {str(key): essence(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [essence(entry) for entry in value]
    return value


MOST_SHOWN = 80
"""Characters of a faulty value in a message; a longer list or object, which has its own text, is left out."""
_NAMED_BY = {"configurations": "name", "trainings": "configuration"}
"""Lists whose entries go by a name of their own, and the field that holds it."""


def _named(place: Sequence[int | str], document: Any) -> str:
    """A place as ``path.in.document``, with ``3d_fullres.network`` for ``configurations.1.network``."""
    words = list(map(str, place))
    if len(place) > 1 and place[0] in _NAMED_BY:
        with suppress(LookupError, TypeError):  # no list, or an entry without a name
            words[:2] = [str(document[place[0]][place[1]][_NAMED_BY[words[0]]])]
    return ".".join(words) or "(whole document)"


def issues_of(error: ValidationError, *, document: str | bytes | Mapping[str, Any] = b"") -> tuple[Issue, ...]:
    """One issue for each fault of a failed validation: place in the document, what is wrong, what was found.

    ``document``: the whole of it, as JSON or plain values, for the names of its configurations, trainings and cases.
    """
    values: Any = document
    if not isinstance(document, Mapping):
        try:
            values = json.loads(document)
        except ValueError:
            values = None
    faults = error.errors(include_url=False)
    places = [fault["loc"] for fault in faults]
    issues = []
    for fault in faults:
        # entries with faults of their own do not count, so their list may seem too short: that is not worth saying
        if fault["type"] == "too_short" and any(_lies_inside(place, fault["loc"]) for place in places):
            continue
        found = repr(fault["input"])
        is_shown = fault["type"] != "missing" and (len(found) <= MOST_SHOWN or isinstance(fault["input"], str))
        found = found if len(found) <= MOST_SHOWN else found[: MOST_SHOWN - 3] + "..."
        cause = fault.get("ctx", {}).get("error")
        message = str(cause) if isinstance(cause, ValueError) else fault["msg"]
        message = "there is no such field" if fault["type"] == "extra_forbidden" else message
        message, fix = (cause.message, cause.fix) if isinstance(cause, InvalidError) else (message, "")
        issues.append(
            Issue(
                code="document.invalid",
                where=_named(fault["loc"], values),
                message=f"{message} (found {found})" if is_shown else message,
                fix=fix,
            )
        )
    return tuple(issues)


def within(place: str, issues: Iterable[Issue]) -> list[Issue]:
    """The same issues with ``place`` before theirs, e.g. the name of one of two files."""
    return [issue.model_copy(update={"where": f"{place}: {issue.where}"}) for issue in issues]


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
