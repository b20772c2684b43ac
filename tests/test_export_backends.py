"""Trainings on another Keras backend than TensorFlow, which TensorFlow goes on with."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_parts import write_parts

from export.__main__ import main
from export.backend import VARIABLE, run_with_tensorflow
from export.commands.train import add_arguments, child_words
from export.dataset import read_dataset
from export.fit_classify import fit
from export.request import Request
from station.manifest import read_bundle

OTHER = next((name for name in ("torch", "jax") if find_spec(name) is not None), None)
needs_another = pytest.mark.skipif(OTHER is None, reason="no other Keras backend is installed than tensorflow")

# As on a machine with a GPU where nothing of TensorFlow is installed.
REFUSED = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
        # Where modules are looked for by other means, the metadata of packages is.
        self.find_distributions = getattr(finder, "find_distributions", lambda *_: iter(()))

    def find_spec(self, name, path=None, target=None):
        absent = name.split(".")[0] in {"tensorflow", "ai_edge_litert"}
        return None if absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""

TRAIN = """
from export.__main__ import main
sys.exit(main(sys.argv[1:]))
"""

SCORE = """
from pathlib import Path
import numpy as np
from export.dataset import read_dataset
from export.fit_classify import fit
from export.request import Request
folder, out, stored = map(Path, sys.argv[1:])
request = Request(read_dataset(folder), out, "c", "1", None, 0, 64, options={"views": 1, "epochs": 1}, compare=False)
pictures = np.load(stored)["pictures"]
network = fit(request).trained.network
np.savez(stored, pictures=pictures, logits=network.predict_on_batch(pictures)[0])
"""

SMALL = ["--size", "64", "--views", "1", "--minutes", "5"]
OPTIONS = [*SMALL, "--epochs", "1", "--looks", "1"]


def in_child(program: str, *arguments: object, backend: str | None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | ({VARIABLE: backend} if backend else {}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_training_needs_nothing_that_only_the_conversion_has() -> None:
    # Keras itself may import TensorFlow; this project's modules may not.
    program = """
import builtins
usual = builtins.__import__

def watched(name, globals=None, *rest, **named):
    importer = (globals or {}).get("__name__", "")
    if name.split(".")[0] in {"tensorflow", "ai_edge_litert"} and importer.split(".")[0] in {"export", "station"}:
        raise AssertionError(f"{importer} imports {name}")
    return usual(name, globals, *rest, **named)

builtins.__import__ = watched
import sys
import numpy as np
import export.commands.train, export.fit_anomaly, export.fit_classify, export.fit_detect, export.synthesis.training
from export.classifier import build_classifier, channel_statistics, build_features, Statistics
features = build_features(1).predict_on_batch(np.zeros((1, 64, 64, 1), np.float32))
measured = [channel_statistics([part[0]]) for part in features]
statistics = Statistics(*(tuple(one) for one in zip(*measured, strict=True)))
network = build_classifier(1, 3, 2, 0.2, statistics)
print([tuple(one.shape) for one in network.predict_on_batch(np.zeros((1, 64, 64, 1), np.float32))])
print([name for name in sys.modules if name.split(".")[0] == "ai_edge_litert" or name == "export.quantize"])
"""
    done = in_child(program, backend=None)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[(1, 3), (1, 8, 8, 2), (1, 2)]", "[]"]


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("theano", "KERAS_BACKEND=theano: Unable to import backend : theano; tensorflow, torch, jax can train"),
        ("numpy", "KERAS_BACKEND=numpy: "),
        ("torch", "KERAS_BACKEND=torch: the Python package torch is not installed; install it, or name a backend that"),
    ],
)
def test_a_backend_that_cannot_train_is_refused_in_a_line(tmp_path: Path, backend: str, expected: str) -> None:
    if find_spec(backend) is not None and backend == "torch":
        expected = "--task forecast needs TensorFlow; leave KERAS_BACKEND=torch out"
    done = in_child("import sys" + TRAIN, "train", tmp_path, "--task", "forecast", backend=backend)
    assert done.returncode == 1
    assert done.stderr.startswith(f"station-export: error: {expected}")
    assert len(done.stderr.splitlines()) == 1


def test_the_child_s_exit_code_is_the_command_s(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_with_tensorflow(["data", str(tmp_path / "absent")], print) == 1
    assert "is not a folder" in capfd.readouterr().err
    write_parts(tmp_path / "parts", {"good": 30, "hole": 30})
    assert run_with_tensorflow(["data", str(tmp_path / "parts")], print) == 0
    assert "task: classify" in capfd.readouterr().out


def test_a_child_whose_parent_is_already_gone_ends_at_once(tmp_path: Path) -> None:
    parts, out = write_parts(tmp_path / "parts", {"good": 30, "hole": 30}), tmp_path / "out"
    command = [sys.executable, "-m", "export", "train", "--trained-on", "jax", str(parts), "--out", str(out)]
    # The number of a process that is not this one's child's parent.
    done = subprocess.run(
        command, env=os.environ | {"STATION_EXPORT_PARENT": "1"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "station-export: interrupted\n"
    assert not out.exists()


def test_what_the_child_is_told_stands_before_the_user_s_words() -> None:
    words = child_words(("--debug", "train", "--out", "result", "--", "train"), "torch")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parsed = parser.parse_args(words[2:])
    assert (parsed.trained_on, parsed.out, parsed.folder) == ("torch", Path("result"), Path("train"))


PARENT = """
import signal, sys
from export.backend import run_with_tensorflow
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(run_with_tensorflow(sys.argv[1:], print))
"""


@contextmanager
def in_the_child(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process whose child, with TensorFlow, has begun to train."""
    parts, out = write_parts(folder / "parts", {"good": 30, "hole": 30}), folder / "out"
    command = [sys.executable, "-c", PARENT, "train", "--trained-on", "jax", str(parts), "--out", str(out), *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        # What the first process has said is not said again.
        assert next(parent.stdout).startswith("network: lite0")
        yield parent
    assert not list(out.glob("*.bundle"))


@pytest.mark.training
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_stops_the_command_stops_its_child(tmp_path: Path, number: signal.Signals) -> None:
    with in_the_child(tmp_path) as parent:
        parent.send_signal(number)
        # Both streams end when the child has ended, too.
        _, error = parent.communicate()
    assert error == "stopped; the same command goes on from here\nstation-export: interrupted\n"
    assert parent.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)


@pytest.mark.training
def test_a_child_that_is_killed_is_told(tmp_path: Path) -> None:
    with in_the_child(tmp_path) as parent:
        (child,) = psutil.Process(parent.pid).children()
        child.kill()
        told, _ = parent.communicate()
    assert told.splitlines()[-1] == (
        "the process with TensorFlow was ended by signal 9; that is how a lack of memory looks; the same command "
        "goes on from here"
    )
    assert parent.returncode == 128 + signal.SIGKILL


@needs_another
@pytest.mark.training
@pytest.mark.timeout(600)
def test_tensorflow_takes_up_what_another_backend_has_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, out = write_parts(tmp_path / "parts", {"good": 20, "hole": 20}), tmp_path / "out"
    command = ["train", str(parts), "--out", str(out), *OPTIONS, "--allow-regression"]
    done = in_child(REFUSED + TRAIN, *command, backend=OTHER)
    assert done.returncode == 3, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"trained on {OTHER}; the bundle needs tensorflow and ai-edge-litert, not installed here; ")
    assert "for comparison, plain-b: " in done.stdout
    assert not list(out.glob("*.bundle"))

    # The same pictures have the same logits.
    stored = tmp_path / "logits.npz"
    request = Request(read_dataset(parts), out, "c", "1", None, 0, 64, options={"views": 1, "epochs": 1}, compare=False)
    lines: list[str] = []
    trained = fit(replace(request, say=lines.append)).trained
    assert lines[-1] == "going on with the stage of quantization"
    pictures = np.random.default_rng(0).normal(0, 0.5, (16, 64, 64, 1)).astype(np.float32)
    np.savez(stored, pictures=pictures)
    done = in_child(REFUSED + SCORE, parts, out, stored, backend=OTHER)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "going on with the stage of quantization"
    there, here = np.load(stored)["logits"], trained.network.predict_on_batch(pictures)[0]
    assert np.ptp(here) > 0.5
    np.testing.assert_allclose(here, there, atol=1e-4)

    assert main(command) == 0
    told = capsys.readouterr().out
    assert "going on with the stage of quantization" in told
    assert "fine-tuning" not in told
    assert "for comparison" not in told
    assert read_bundle(out / "classifier.bundle").manifest.task == "classify"


@needs_another
@pytest.mark.training
@pytest.mark.timeout(600)
def test_the_other_tasks_are_taken_up_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boards, good = tmp_path / "boards", write_parts(tmp_path / "good", {"good": 20})
    assert main(["render", "--out", str(boards), "--train-webs", "10", "--test-webs", "2", "--frames", "1"]) == 0
    short = ["--steps", "4", "--batch", "2", "--crop", "64", "--widths", "32", "32", "32"]
    commands = {
        "going on after step 4": ["train", str(boards), "--out", str(tmp_path / "detect"), *short],
        "going on with the stage of quantization": [
            *("train", str(good), "--out", str(tmp_path / "anomaly"), *SMALL, "--epochs", "0", "--looks", "1"),
        ],
    }
    for told, command in commands.items():
        command.append("--allow-regression")
        done = in_child(REFUSED + TRAIN, *command, backend=OTHER)
        assert done.returncode == 3, done.stderr
        capsys.readouterr()
        code, shown = main(command), capsys.readouterr()
        # After four steps the detector finds nothing, and the report says so.
        assert code == 0 or "no picture with a defect is far enough from the threshold" in shown.err
        assert shown.out.count(told) == 1
        assert "head: " not in shown.out
        assert "trained 4 steps" not in shown.out
