"""`station watch`: subscribe to a broker and print each verdict as it arrives."""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from station import wire
from station.adapters.mqtt_subscriber import Received, Subscriber
from station.broker_settings import TlsSettings
from station.commands.exit_codes import ExitCode
from station.display import verdict_line
from station.errors import ConfigurationError, ProtocolError
from station.messages import Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--host", default="127.0.0.1", help="the broker")
    parser.add_argument("--port", type=int, default=1883, help="its TCP port")
    parser.add_argument("--station", default="+", metavar="NAME", help="which station; + means all")
    parser.add_argument("--camera", default="+", metavar="NAME", help="which camera; + means all")
    parser.add_argument("--username", help="user name; the password is read from --password-file or $MQTT_PASSWORD")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="file that holds the password")
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="use TLS and trust these authorities (PEM)")
    parser.add_argument("--count", type=int, metavar="N", help="end after this many verdicts")
    parser.add_argument("--json", action="store_true", help="print the messages as they are, one a line")


def run(options: argparse.Namespace) -> ExitCode:
    """Print verdicts until Ctrl-C, or until --count have come.

    Raises:
        ProtocolError: the broker cannot be reached or refuses us.
        ConfigurationError: the password's file cannot be read.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    colour = sys.stdout.isatty() and not options.json
    shown = 0
    with Subscriber(
        options.host,
        options.port,
        wire.verdict_topic(options.station, options.camera),
        username=options.username,
        password=_password(options.password_file),
        tls=TlsSettings(ca_file=options.ca_file) if options.ca_file else None,
    ) as subscriber:
        while not stop.is_set() and (options.count is None or shown < options.count):
            received = subscriber.receive(timeout_s=0.2)
            if received is not None:
                print(received.payload.decode() if options.json else _line(received, colour=colour), flush=True)
                shown += 1
    return ExitCode.OK


def _line(received: Received, *, colour: bool) -> str:
    try:
        verdict = wire.decode(Verdict, received.payload)
    except ProtocolError as exc:
        return f"{received.topic}: {exc}"
    latency_ms = (received.at_s - verdict.captured_at.timestamp()) * 1e3
    return verdict_line(verdict, latency_ms, colour=colour, historical=received.historical)


def _password(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("MQTT_PASSWORD")
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except OSError as exc:
        raise ConfigurationError(f"--password-file {path}: cannot be read: {exc.strerror}") from exc
