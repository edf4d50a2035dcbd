"""What all tests share: a finished run, where the real data is, and how many tests were skipped without it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from builders import CPU, Job, crop_images, make_phantom, write_short_schedule
from hypothesis import settings

from autoseg import api
from autoseg.storage.locks import hold_lock

# Machines differ and are shared: a slow example is no fault, and the same examples everywhere make a failure repeatable.
settings.register_profile("autoseg", deadline=None, derandomize=True)
settings.load_profile("autoseg")

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"
skipped: list[str] = []
without_slurm: list[str] = []
without_namespaces: list[str] = []
without_browser: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real-data", type=Path, default=DEFAULT, help="folder of real labelled volumes")


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """Folder of the real data sets; the test is skipped where it does not exist."""
    folder: Path = request.config.getoption("--real-data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder.name}; give its folder with --real-data")
    return folder.resolve()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished run, made once for all processes of a test session; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    torch.set_num_threads(1)
    with hold_lock(folder.with_suffix(".lock"), what="the finished run", wait=True):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            dataset = make_phantom(folder, test=2, seed=3)
            crop_images(dataset, 32)
            api.run(dataset, folder / "run", schedule=write_short_schedule(dataset, folder), **CPU)
            (folder / "done").touch()
    return Job(dataset=folder / "Task99_Phantom", schedule=folder / "schedule.json", root=folder / "run")


@pytest.fixture
def job(finished: Job, tmp_path: Path) -> Job:
    """The finished run in a folder of its own, which may be changed."""
    shutil.copytree(finished.root, tmp_path / "run")
    return Job(dataset=finished.dataset, schedule=finished.schedule, root=tmp_path / "run")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "--real-data" in str(report.longrepr):
        skipped.append(report.nodeid)
    if report.skipped and "no Slurm" in str(report.longrepr):
        without_slurm.append(report.nodeid)
    if report.skipped and "no namespaces" in str(report.longrepr):
        without_namespaces.append(report.nodeid)
    if report.skipped and "no browser" in str(report.longrepr):
        without_browser.append(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"{len(skipped)} tests skipped for want of real data (--real-data DIR)")
    if without_slurm:
        terminalreporter.write_line(
            f"{len(without_slurm)} test skipped for want of Slurm (a partition that answers sinfo)"
        )
    if without_namespaces:
        terminalreporter.write_line(f"{len(without_namespaces)} tests skipped for want of namespaces (unshare)")
    if without_browser:
        terminalreporter.write_line(f"{len(without_browser)} tests skipped for want of a browser (chromium)")
