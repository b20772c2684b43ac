"""`station check`: look at everything that `station run` needs, without starting it."""

import argparse
import functools
import os
from collections.abc import Callable
from pathlib import Path

from station.adapters.camera_process import CameraProcess, plan_for
from station.adapters.embedded_broker import check_port
from station.adapters.mqtt_subscriber import Subscriber
from station.adapters.system_clock import SystemClock
from station.commands.assembly import load_bundle, open_journal
from station.commands.camera_factory import make_camera
from station.commands.exit_codes import ExitCode
from station.errors import CameraError, ModelError, ProtocolError
from station.messages import CameraEvent, CameraStateName, Frame, Reason
from station.settings import CameraSettings, Settings, load

CAMERA_WITHIN_S = 10.0
"""How long a camera has for its first picture, beyond its own read deadline."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--config", type=Path, default=Path("station.toml"), help="configuration file")
    parser.add_argument(
        "--offline", action="store_true", help="check configuration, data folder and bundles only: no camera, no broker"
    )


def run(options: argparse.Namespace) -> ExitCode:
    """Print one line for each thing; the exit code is that of the first kind that failed.

    Raises:
        ConfigurationError: the configuration is wrong, or the data folder cannot be written.
    """
    settings = load(options.config, os.environ)
    print(f"ok    configuration {options.config}")
    with open_journal(settings, SystemClock()):
        print(f"ok    data folder {settings.station.data_dir}")
    findings = [
        _look(f"bundle {path}", ExitCode.BUNDLE, functools.partial(_check_bundle, path, settings))
        for path in dict.fromkeys(camera.bundle or settings.model.bundle for camera in settings.camera.values())
    ]
    if not options.offline:
        findings += [
            _look(f"camera {name}", ExitCode.CAMERA, functools.partial(_check_camera, name, camera))
            for name, camera in settings.camera.items()
        ]
        findings.append(_look("broker", ExitCode.BROKER, functools.partial(_check_broker, settings)))
    return next((code for code in findings if code is not ExitCode.OK), ExitCode.OK)


def _look(what: str, failure: ExitCode, check: Callable[[], str]) -> ExitCode:
    try:
        found = check()
    except (ModelError, CameraError, ProtocolError) as exc:
        print(f"WRONG {what}: {exc}")
        return failure
    print(f"ok    {what}: {found}")
    return ExitCode.OK


def _check_bundle(path: Path, settings: Settings) -> str:
    ref = load_bundle(path, settings.model.threads).ref
    return f"{ref.name} {ref.version}, golden set reproduced"


def _check_camera(name: str, settings: CameraSettings) -> str:
    """Take one picture through the camera's own process.

    Raises:
        CameraError: there was none within the camera's deadline, or it cannot be read.
    """
    clock = SystemClock()
    until_s = clock.monotonic_s() + settings.read_deadline_s + CAMERA_WITHIN_S
    with CameraProcess(name, functools.partial(make_camera, settings), plan_for(settings), clock) as source:
        while clock.monotonic_s() < until_s:
            match source.read(0.2):
                case Frame() as frame:
                    return _describe(frame)
                case CameraEvent(state=CameraStateName.STALLED) as event:
                    raise CameraError(event.reason or "delivers nothing")
                case CameraEvent(state=CameraStateName.FINISHED):
                    raise CameraError("has no picture")
                case CameraEvent(state=CameraStateName.RUNNING) if settings.expects == "triggered":
                    return "open, waits for its trigger"
                case CameraEvent(state=CameraStateName.RUNNING) if not plan_for(settings).watch_reads:
                    return "open, waits for pictures"
                case _:
                    continue
    raise CameraError(f"no picture within {settings.read_deadline_s + CAMERA_WITHIN_S:g} s")


def _describe(frame: Frame) -> str:
    capture = frame.capture
    try:
        if capture.pixels is None:
            reason = capture.fault or Reason.UNREADABLE
            raise CameraError(f"first picture {capture.source or ''}: {reason.value}")
        height, width = capture.pixels.shape[:2]
        colour = "grey" if capture.pixels.ndim == 2 else "colour"  # noqa: PLR2004
        return f"{width}×{height} {colour}"
    finally:
        frame.release()


def _check_broker(settings: Settings) -> str:
    broker = settings.broker
    if broker.embedded:
        if broker.effective_port:
            check_port(broker.effective_port)
        return f"embedded, port {broker.effective_port or 'any'} is free"
    with Subscriber(
        broker.host,
        broker.effective_port,
        f"inspection/{settings.station.name}/status",
        username=broker.username,
        password=broker.read_password(os.environ),
        tls=broker.tls,
    ):
        return f"{broker.host}:{broker.effective_port} takes the login"
