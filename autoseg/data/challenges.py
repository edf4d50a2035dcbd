"""A challenge by its name, or in a file of the user's own."""

from __future__ import annotations

from pathlib import Path

from autoseg.issues import AutosegError, Issue
from autoseg.wording import suggest
from datasets_spec import Challenge, challenge_names, load_challenge, read_challenge_file
from planners import DocumentError


def challenge_named(name: str, spec: Path | None = None) -> Challenge:
    """The challenge called ``name``; that of the TOML file ``spec``, or of ``name`` where it ends in ``.toml``.

    Raises `AutosegError` for unknown names (``challenge.unknown``), and with all faults of a file.
    """
    file = Path(name) if spec is None and name.endswith(".toml") else spec
    where = f"--as {name}" if spec is None else f"--spec {spec}"
    try:
        return load_challenge(name) if file is None else read_challenge_file(file)
    except LookupError:
        fix = (
            f"{suggest(name, challenge_names())}; autoseg submit --list shows all, and a TOML file can describe another"
        )
        raise AutosegError(Issue(code="challenge.unknown", where=where, message="is not known", fix=fix)) from None
    except OSError as error:
        message = error.strerror or "cannot be read"
        fix = "check the path"
        raise AutosegError(Issue(code="challenge.unknown", where=where, message=message, fix=fix)) from error
    except DocumentError as error:
        raise AutosegError(*error.issues) from error
