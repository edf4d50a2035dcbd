"""What all tests share: where the real data lies, and how many tests were skipped without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# Machines differ and are shared: a slow example is no fault, and the same examples everywhere make a failure repeatable.
settings.register_profile("autoseg", deadline=None, derandomize=True)
settings.load_profile("autoseg")

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"
skipped: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real-data", type=Path, default=DEFAULT, help="folder of real labelled volumes")


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """Folder of the real data sets; the test is skipped where it does not exist."""
    folder: Path = request.config.getoption("--real-data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder.name}; give its folder with --real-data")
    return folder.resolve()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "--real-data" in str(report.longrepr):
        skipped.append(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"{len(skipped)} tests skipped for want of real data (--real-data DIR)")
