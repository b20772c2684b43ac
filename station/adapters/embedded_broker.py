"""An MQTT 5 broker on the loopback interface, for a box that stands alone: iotcore (rumqttd) as a child process.

It keeps nothing on disk: after its restart retained messages and sessions are gone, and the publisher sends them again.
"""

import errno
import logging
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from station.errors import ProtocolError

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
START_WITHIN_S = 10.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
POLL_S = 0.02
_PORTS = (20_000, 32_768)
"""Linux gives 32768 and above to outgoing connections (ip_local_port_range)."""
_ATTEMPTS = 100
_CHILD = Path(__file__).with_name("_broker_child.py")
_CONFIGURATION = """\
id = 0

[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 4194304
max_segment_count = 4

[v5.station]
name = "station"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v5.station.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 100
dynamic_filters = true
"""
"""rumqttd's form. A topic keeps at most four segments of 4 MiB for subscribers that are away."""


class EmbeddedBroker:
    """Runs the broker while it is entered, and starts it again when it dies.

    A port that is taken is not an exception but a `fault`: the station judges without a broker, and this keeps trying.

    Args:
        port: TCP port on the loopback interface; 0 chooses a free one.
        on_fault: told in one line what is wrong, and None when all is well again; once each, from another thread.
    """

    def __init__(self, port: int, on_fault: Callable[[str | None], None]) -> None:
        self._port = port
        self._on_fault = on_fault
        self._fault: str | None = None
        self._told: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._settled = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="embedded-broker", daemon=True)

    def __enter__(self) -> Self:
        """Start the broker and wait until it listens, or until it is clear that it cannot."""
        if self._port == 0:
            self._port = free_port()
        self._thread.start()
        self._settled.wait(START_WITHIN_S + 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def host(self) -> str:
        """The address that it listens on."""
        return HOST

    @property
    def port(self) -> int:
        """The TCP port, chosen when the broker was entered."""
        return self._port

    @property
    def fault(self) -> str | None:
        """What is wrong now, in one line; None when the broker runs."""
        return self._fault

    @property
    def process_id(self) -> int | None:
        """The child's process id; None when there is no child."""
        process = self._process
        return process.pid if process is not None else None

    def _supervise(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                self._start()
            except (ProtocolError, OSError) as exc:
                self._report(str(exc))
            else:
                self._report(None)
                pause_s = FIRST_PAUSE_S
                self._watch()
            self._settled.set()
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self._end()

    def _start(self) -> None:
        check_port(self._port)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), _CONFIGURATION.format(host=HOST, port=self._port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C at the terminal is for the station, which ends its broker last
        )
        attempts = int(START_WITHIN_S / POLL_S)
        for _ in range(attempts):
            if self._stopping.is_set():
                return
            if self._process.poll() is not None:
                code = self._process.returncode
                self._end()
                raise ProtocolError(f"the embedded broker on port {self._port} ended at once with code {code}")
            if _listens(self._port):
                return
            self._stopping.wait(POLL_S)
        self._end()
        raise ProtocolError(f"the embedded broker did not listen on port {self._port} within {START_WITHIN_S:g} s")

    def _watch(self) -> None:
        """Return when the child has died or the broker is to stop."""
        self._settled.set()
        process = self._process
        while process is not None and not self._stopping.is_set():
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(0.25)
                if not self._stopping.is_set():
                    self._end()
                    self._report(f"the embedded broker died with code {code}; it is started again")
                return

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _report(self, fault: str | None) -> None:
        self._fault = fault
        if fault != self._told:
            self._told = fault
            self._on_fault(fault)


def check_port(port: int) -> None:
    """See whether the embedded broker could listen on a port of the loopback interface.

    Raises:
        ProtocolError: the port is taken, or may not be used.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                reason = "is taken by another program; set broker.port to another one, or to 0 for any free one"
            else:
                reason = f"cannot be used: {exc.strerror}"
            raise ProtocolError(f"embedded broker: port {port} of {HOST} {reason}") from exc


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on.

    Below the range from which the system gives ports to connections that programs make, so that none of those takes it
    before it is listened on.

    Raises:
        ProtocolError: none was found.
    """
    for _ in range(_ATTEMPTS):
        port = random.randrange(*_PORTS)
        with suppress(ProtocolError):
            check_port(port)
            return port
    raise ProtocolError(f"embedded broker: no free port on {HOST} between {_PORTS[0]} and {_PORTS[1]}")


def _listens(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0
