"""A service that answers on a port of this machine, with the finished run as its model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import Job as FinishedJob
from builders import Listening
from live_service import LIMITS, Live, answering

from autoseg.serving.server import ServiceSettings, open_service


@pytest.fixture(scope="session")
def live(finished: FinishedJob, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    state = tmp_path_factory.mktemp("service") / "state"
    settings = ServiceSettings(
        models=(finished.root,), port=0, device="cpu", threads=1, mirroring=False, state=state, limits=LIMITS
    )
    with open_service(settings, Listening()) as running, answering(running) as client:
        yield Live(running=running, client=client, state=state)


@pytest.fixture
def image(finished: FinishedJob) -> Path:
    """A test image of the finished run."""
    return sorted((finished.dataset / "imagesTs").glob("*.nii.gz"))[0]
