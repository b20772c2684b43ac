"""What every test is held to: no thread, no child process left behind, no unexpected skip, no limit of time a case."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

PUBLIC_DATA = Path(os.environ.get("PUBLIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Public data sets for measuring; never part of the project."""

SKIPS_EXPECTED = ("public data is not here", "a power cut needs", "node is not installed", "no other Keras backend")
"""Beginnings of the reasons that `--no-unexpected-skips` accepts."""

# How long a case takes says how busy the machine is, not whether the code is right.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-unexpected-skips", action="store_true", help="fail when a test is skipped for want of a program"
    )


_skipped: list[tuple[str, str]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        _skipped.append((report.nodeid, str(report.longrepr[2]).removeprefix("Skipped: ")))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not session.config.getoption("--no-unexpected-skips"):
        return
    unexpected = [(name, reason) for name, reason in _skipped if not reason.startswith(SKIPS_EXPECTED)]
    if unexpected:
        for name, reason in unexpected:
            print(f"\nunexpected skip: {name}: {reason}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread or a child process running."""
    threads = set(threading.enumerate())
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left_threads = [thread.name for thread in threading.enumerate() if thread not in threads and thread.is_alive()]
    left_children = [
        child.name()
        for child in psutil.Process().children(recursive=True)
        if child.pid not in children and child.status() != psutil.STATUS_ZOMBIE
    ]
    assert not left_threads, f"threads left behind: {left_threads}"
    assert not left_children, f"child processes left behind: {left_children}"


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of public data sets; tests that need it are skipped where it is absent."""
    if not PUBLIC_DATA.is_dir():
        pytest.skip(f"public data is not here: {PUBLIC_DATA}")
    return PUBLIC_DATA
