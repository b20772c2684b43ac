"""The real station as a child process with a client of its own beside it: what `demo` and `bench` look at."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from station.adapters.embedded_broker import free_port
from station.adapters.mqtt_subscriber import Subscriber
from station.errors import ProtocolError
from station.settings import ENVIRONMENT_PREFIX

START_S = 20.0
"""Longest wait for the station's broker."""
RETRY_S = 0.01
"""Pause between two attempts to reach it: the client is to be there before the first verdict."""
END_S = 10.0
"""Longest wait for the station to end."""
LAST_WORDS = 8
"""Lines of the station's log that an error message holds."""


class ChildStation:
    """Runs ``station run`` on a configuration and subscribes to everything that it publishes.

    Args:
        folder: where configuration, log and data go.
        name: the station's name.
        cameras: the `[camera.…]` tables as TOML.
        given_up: asked while waiting for the broker; True ends the wait.
    """

    def __init__(self, folder: Path, name: str, cameras: str, given_up: Callable[[], bool] = lambda: False) -> None:
        self.port = free_port()
        self.started_s = 0.0
        self._name = name
        self._cameras = cameras
        self._given_up = given_up
        self._configuration = folder / "station.toml"
        self._log = folder / "station.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()
        self.subscriber: Subscriber

    def __enter__(self) -> Self:
        """Start it and wait for its broker.

        Raises:
            ProtocolError: the broker did not come up; the text holds what the station said last.
        """
        self._configuration.write_text(
            f'version = 1\n[station]\nname = "{self._name}"\ndata_dir = "data"\nhealth_interval_s = 0.5\n'
            f"[broker]\nembedded = true\nport = {self.port}\n{self._cameras}",
            encoding="utf-8",
        )
        self.started_s = time.time()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "station", "run", "--config", str(self._configuration), "--end-with-parent"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Variables that configure the user's own station are not for this one.
                env={key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)},
                # Ctrl-C is for us: the station is asked to stop in its own time.
                start_new_session=True,
            )
        try:
            self.subscriber = self._subscribe()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._stack.close()
        self.end()

    @property
    def pid(self) -> int:
        """The station's process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the station's process is alive."""
        return self._process is not None and self._process.poll() is None

    def ask_to_stop(self) -> None:
        """Ask for an orderly stop."""
        assert self._process is not None
        self._process.terminate()

    def end(self) -> int:
        """Wait for the end, with force after `END_S`; return the exit code."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def last_words(self) -> str:
        """The end of the station's log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-LAST_WORDS:])

    def _subscribe(self) -> Subscriber:
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                return self._stack.enter_context(Subscriber("127.0.0.1", self.port, f"inspection/{self._name}/#"))
            except ProtocolError as exc:
                if not self.is_running or time.monotonic() > deadline_s or self._given_up():
                    raise ProtocolError(f"the station's broker did not come up: {exc}\n{self.last_words()}") from exc
                time.sleep(RETRY_S)
