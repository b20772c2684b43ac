"""Real servers in processes of their own, that tests may kill, stop, let go on and start again."""

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
SERVING = b"serving\n"
"""A program here that is a server prints this when it takes connections."""


class ChildServer(ABC):
    """A server as a child process; started on entry, ended on exit.

    Args:
        command: the program and its arguments.
        options: for `subprocess.Popen`.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self._command = command
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that runs now."""
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self._process = subprocess.Popen(self._command, **self._options)
        self._wait_until_it_serves()

    @abstractmethod
    def _wait_until_it_serves(self) -> None:
        """Return when it takes connections."""

    def kill(self) -> None:
        """SIGKILL: nothing is saved."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def terminate(self) -> None:
        """SIGTERM, as a service manager ends it: it saves what its configuration says."""
        self.process.terminate()
        self.process.wait()
        self._process = None

    def stop(self) -> None:
        """SIGSTOP: the kernel still accepts connections, nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)


class OwnServer(ChildServer):
    """A server that is written in Python here, and says so when it serves.

    Args:
        program: its file.
        arguments: of the program.
        options: for `subprocess.Popen`.
    """

    def __init__(self, program: str, *arguments: str, **options: Any) -> None:
        command = [sys.executable, "-W", "ignore", program, *arguments]
        super().__init__(command, **{"stdout": subprocess.PIPE, "env": ENVIRONMENT, **options})

    def _wait_until_it_serves(self) -> None:
        self.hear(SERVING)

    def hear(self, line: bytes) -> None:
        """Wait for its next line, which must be this one."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == line
