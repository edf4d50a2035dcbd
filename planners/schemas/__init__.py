"""JSON schemas of the planner's documents, for programs that read them without this one."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from planners.document import Document
from planners.fingerprint import Fingerprint
from planners.plan import Plan
from planners.schedule.documents import Schedule

DOCUMENTS: dict[str, type[Document]] = {"fingerprint": Fingerprint, "plan": Plan, "schedule": Schedule}
"""By the name of the file in a run folder, without its ending."""


def schema_text(name: str) -> str:
    """The JSON schema of a document as its model defines it; ``name`` is a key of `DOCUMENTS`."""
    return json.dumps(DOCUMENTS[name].model_json_schema(), indent=1) + "\n"


def stored_schema_text(name: str) -> str:
    """The JSON schema that is shipped for a document; ``name`` is a key of `DOCUMENTS`."""
    return resources.files(__name__).joinpath(f"{name}.schema.json").read_text(encoding="utf-8")


def renew(folder: Path) -> None:
    """Write all schemas into ``folder``; call it with this package's own folder after a model has changed."""
    for name in DOCUMENTS:
        (folder / f"{name}.schema.json").write_text(schema_text(name), encoding="utf-8")
