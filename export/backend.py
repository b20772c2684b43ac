"""Which Keras backend this process trains with, and the child process in which TensorFlow goes on with the result.

Keras is bound to one backend per process. Training runs on each of them; quantization runs on TensorFlow alone, whose
converter makes the int8 model. So a training on another backend ends at its checkpoint, and the same command, given
again with TensorFlow, takes that up.
"""

import ctypes
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from export.samples import DatasetError

TENSORFLOW = "tensorflow"
TRAINING = (TENSORFLOW, "torch", "jax")
"""Keras knows others, which only predict."""

VARIABLE = "KERAS_BACKEND"
PARENT = "STATION_EXPORT_PARENT"
"""Holds the number of the process that has trained, for the child."""

CONVERSION = {"tensorflow": "tensorflow", "ai_edge_litert": "ai-edge-litert"}
"""Modules that quantization needs, and the packages that hold them."""

_PR_SET_PDEATHSIG = 1

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def training_backend() -> str:
    """Name of the Keras backend of this process; imports Keras and the backend, which takes seconds.

    Raises:
        DatasetError: it is not installed, or cannot train.
    """
    asked = os.environ.get(VARIABLE)
    usable = ", ".join(TRAINING)
    try:
        backend = str(importlib.import_module("keras").backend.backend())
    except ModuleNotFoundError as exc:
        named = f"{VARIABLE}={asked}: " if asked else ""
        raise DatasetError(
            f"{named}the Python package {exc.name} is not installed; install it, or name a backend that is with "
            f"{VARIABLE}: {usable}"
        ) from exc
    except ValueError as exc:
        raise DatasetError(f"{VARIABLE}={asked}: {exc}; {usable} can train") from exc
    if backend not in TRAINING:
        raise DatasetError(f"{VARIABLE}={backend}: cannot train; {usable} can")
    return backend


def refuse_other_backends(what: str) -> None:
    """For what needs TensorFlow.

    Args:
        what: stands in the error.

    Raises:
        DatasetError: this process has another backend, or none.
    """
    backend = training_backend()
    if backend != TENSORFLOW:
        raise DatasetError(f"{what} needs TensorFlow; leave {VARIABLE}={backend} out")


def missing_for_conversion() -> list[str]:
    """Which of the packages that quantization needs are not installed here."""
    return [package for module, package in CONVERSION.items() if not _is_installed(module)]


def run_with_tensorflow(words: Sequence[str], say: Callable[[str], None], kept: Sequence[int] = ()) -> int:
    """Run `station-export` with these arguments in a child process, on the backend tensorflow; returns its exit code.

    Who stops this process stops the child: signals are handed on; see also `end_with_parent`. A Ctrl-C at the terminal
    reaches the child once, by this process.

    Args:
        words: the arguments.
        say: takes a line where the child could not say what has happened to it.
        kept: descriptors that the child keeps open: a lock on the folder lasts until both have ended.
    """
    # A signal before the handlers are there ends this process, and the child with it.
    child = subprocess.Popen(
        [sys.executable, "-m", "export", *words],
        env=os.environ | {VARIABLE: TENSORFLOW, PARENT: str(os.getpid())},
        start_new_session=True,
        pass_fds=kept,
    )
    with _handed_on(child):
        code = child.wait()
    if code >= 0:
        return code
    lack = "; that is how a lack of memory looks" if code == -signal.SIGKILL else ""
    say(f"the process with TensorFlow was ended by signal {-code}{lack}; the same command goes on from here")
    # As a shell tells of a program that a signal has ended.
    return 128 - code


def end_with_parent() -> None:
    """Get SIGINT, as from a Ctrl-C, when the process that started this one is gone, or at once if it is already.

    Raises:
        KeyboardInterrupt: it is.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        raise KeyboardInterrupt


@contextmanager
def _handed_on(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Signals that come meanwhile go to the child; those that are ignored stay so."""

    def hand_on(number: int, _: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.getsignal(number) for number in FORWARDED}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, hand_on)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
