"""Trainings that are stopped, or for which the disk has no room: nothing half-written, and the same command goes on."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from labelled_folders import write_classes
from tiny_parts import write_parts

from export.__main__ import main
from station.manifest import read_bundle

pytestmark = [
    pytest.mark.training,
    pytest.mark.timeout(600),
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

# A shell that starts the tests in the background has them ignore Ctrl-C.
PROGRAM = """
import signal, sys
from export.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


def no_room_for(part: Path) -> None:
    """The next time that a file is written under this name, the disk is full."""
    part.parent.mkdir(parents=True, exist_ok=True)
    part.symlink_to("/dev/full")


def test_a_training_goes_on_after_ctrl_c_and_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_parts(tmp_path / "data", {"good": 14, "hole": 14})
    out = tmp_path / "out"
    command = ["train", str(data), "--out", str(out), "--preset", "plain-b", "--epochs", "2", "--no-plain"]
    command.append("--allow-regression")
    told = f"error: {out}: the disk is full; make room and give the same command again: it goes on"
    no_room_for(out / "checkpoint.npz.part")
    assert main(command) == 1
    assert told in capsys.readouterr().err
    assert not list(out.glob("checkpoint*"))

    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert any(line.startswith("quantizing") for line in child.stdout)
        child.send_signal(signal.SIGINT)
        _, error = child.communicate()
    assert child.returncode == 130
    assert "stopped; the same command goes on from here" in error
    assert not list(out.glob("*.bundle"))

    no_room_for(out / "classifier.bundle.part")
    assert main(command) == 1
    assert told in capsys.readouterr().err
    assert not list(out.glob("*.bundle*"))

    assert main(command) == 0
    assert "going on with the stage of quantization" in capsys.readouterr().out
    assert read_bundle(out / "classifier.bundle").manifest.task == "classify"
    assert "what to do next" in (out / "report.html").read_text(encoding="utf-8").lower()


def test_a_disk_that_is_full_at_once_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_classes(tmp_path / "data", good=12, bad=12), tmp_path / "out"
    no_room_for(out / ".split.csv.part")
    assert main(["train", str(data), "--out", str(out)]) == 1
    assert f"error: {out}: the disk is full; make room" in capsys.readouterr().err
    assert list(out.iterdir()) == []
