"""Temporary folders of runs that were killed."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from station.adapters.embedded_broker import EmbeddedBroker
from station.commands.scratch import scratch_folder

HOLDER = """
import sys
sys.path[:0] = sys.argv[1:]
from station.commands.scratch import scratch_folder
with scratch_folder("station-test-") as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_goes_with_its_run() -> None:
    with scratch_folder("station-test-") as folder:
        (folder / "data").mkdir()
        with scratch_folder("station-test-") as other:
            assert folder != other
            assert (folder / "data").is_dir()
    assert not folder.exists()


def test_what_a_killed_run_left_goes_with_the_next_and_nothing_else_does(tmp_path: Path) -> None:
    theirs = tmp_path / "elsewhere"
    (theirs / "precious").mkdir(parents=True)
    (theirs / ".lock").touch()
    (tmp_path / "station-test-link").symlink_to(theirs)
    (tmp_path / "station-test-strange").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *sys.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        (left / "to-precious").symlink_to(theirs / "precious")
        with scratch_folder("station-test-"):
            assert left.is_dir()
        os.kill(process.pid, signal.SIGKILL)
    with scratch_folder("station-test-"):
        assert not left.exists()
    assert (theirs / "precious").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "elsewhere",
        "station-test-link",
        "station-test-strange",
    ]


def test_the_embedded_broker_leaves_no_file_to_be_left_behind(tmp_path: Path) -> None:
    with EmbeddedBroker(0, lambda _: None) as broker:
        assert broker.fault is None
        assert list(tmp_path.iterdir()) == []
