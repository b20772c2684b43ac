"""`station demo`: the real station on a simulated line, and a client of its own that shows what arrives."""

import argparse
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from station import wire
from station.adapters.mqtt_subscriber import Received
from station.boards import Web
from station.commands.child_station import ChildStation
from station.commands.exit_codes import ExitCode
from station.commands.scratch import scratch_folder
from station.display import verdict_line
from station.errors import ProtocolError
from station.messages import CameraState, CameraStateName, Health, SkipReason, Status, StatusName, Verdict
from station.settings import SimulatedCamera
from station.tally import Tally

NAME = "demo"
CAMERA = "line1"
SEED = 7
"""A web that is in no training or calibration set; see calibration/README.md."""

LARGEST = 1e6
"""Seconds, or frames a second, that an option takes."""
SETTLE_S = 10.0
"""Longest wait for the last messages after the station was asked to stop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--seconds", type=_positive, help="stop after this time; default: at Ctrl-C")
    parser.add_argument("--rate", type=_positive, default=30.0, metavar="FPS", help="frames a second")
    parser.add_argument("--seed", type=int, default=SEED, help="which web: boards, defects and noise")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a verdict, and as last line one for the whole run"
    )


def run(options: argparse.Namespace) -> ExitCode:
    """Start the station, show its verdicts, and at the end the account, the confusion and the latency.

    Raises:
        ProtocolError: the station's broker did not come up; the text holds what the station said last.
    """
    with scratch_folder("station-demo-") as folder:
        return _Demo(options, folder).run()


@dataclass(slots=True)
class _Seen:
    """What the station has said of itself, as far as the client has received it."""

    health: Health | None = None
    camera: CameraStateName | None = None
    status: StatusName | None = None


class _Demo:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._json: bool = options.json
        self._rate_fps: float = options.rate
        self._colour = sys.stdout.isatty() and not self._json
        self._web = Web(options.seed, defect_share=SimulatedCamera(kind="simulated").defect_share)
        self._tally = Tally(self._is_defective)
        self._seen = _Seen()
        self._interrupted = False
        frames = "" if options.seconds is None else f"frames = {max(1, round(options.seconds * options.rate))}\n"
        self._station = ChildStation(
            folder,
            NAME,
            f'[camera.{CAMERA}]\nkind = "simulated"\nseed = {options.seed}\nrate_fps = {options.rate!r}\n{frames}',
            lambda: self._interrupted,
        )

    def run(self) -> ExitCode:
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._interrupt)
        if not self._json:
            print(
                f"Simulated line at {self._rate_fps:g} frames/s, about one in ten with a defect; "
                f"MQTT on 127.0.0.1:{self._station.port}, topics inspection/{NAME}/#. Ctrl-C stops.",
                flush=True,
            )
        with self._station as station:
            self._follow(station)
        return self._conclude(self._station.end())

    def _follow(self, station: ChildStation) -> None:
        """Show what arrives until the line has finished and all is received, or until the station is offline."""
        deadline_s: float | None = None
        while self._seen.status is not StatusName.OFFLINE:
            received = station.subscriber.receive(timeout_s=0.1)
            if received is not None:
                self._take(received)
            if deadline_s is None and (self._interrupted or self._all_received() or not station.is_running):
                station.ask_to_stop()
                deadline_s = time.monotonic() + SETTLE_S
            if deadline_s is not None and time.monotonic() > deadline_s:
                return

    def _take(self, received: Received) -> None:
        match received.topic.rsplit("/", 1)[-1]:
            case "verdict":
                verdict = wire.decode(Verdict, received.payload)
                if self._tally.add(verdict, received.at_s):
                    self._show(verdict, received)
            case "health":
                self._seen.health = wire.decode(Health, received.payload)
            case "state":
                self._seen.camera = wire.decode(CameraState, received.payload).state
            case "status":
                self._seen.status = wire.decode(Status, received.payload).status

    def _show(self, verdict: Verdict, received: Received) -> None:
        if self._json:
            print(received.payload.decode(), flush=True)
            return
        latency_ms = (received.at_s - verdict.captured_at.timestamp()) * 1e3
        print(
            verdict_line(verdict, latency_ms, colour=self._colour, historical=received.historical),
            flush=True,
        )

    def _all_received(self) -> bool:
        health = self._seen.health
        if self._seen.camera is not CameraStateName.FINISHED or health is None or CAMERA not in health.cameras:
            return False
        camera = health.cameras[CAMERA]
        return (
            camera.state is CameraStateName.FINISHED
            and camera.account.pending == 0
            and self._tally.received >= camera.account.judged
        )

    def _is_defective(self, verdict: Verdict) -> bool:
        assert verdict.first_line is not None
        assert verdict.owned_rows is not None
        start, stop = verdict.owned_rows
        return bool(self._web.defects(verdict.first_line + start, verdict.first_line + stop))

    def _conclude(self, code: int) -> ExitCode:
        health = self._seen.health
        if health is None or CAMERA not in health.cameras:
            raise ProtocolError(f"the station published no account\n{self._station.last_words()}")
        account = health.cameras[CAMERA].account
        complete = self._tally.received == account.judged and account.pending == 0
        summary = {
            "captured": account.captured,
            "ok": account.ok,
            "ng": account.ng,
            "unknown": account.unknown,
            "skipped": {reason.value: account.skipped.get(reason, 0) for reason in SkipReason},
            "pending": account.pending,
            "balanced": account.balanced,
            "received": self._tally.received,
            "duplicates": self._tally.duplicates,
            "caught": self._tally.confusion.caught,
            "missed": self._tally.confusion.missed,
            "passed": self._tally.confusion.passed,
            "rejected": self._tally.confusion.rejected,
            "recall": self._tally.confusion.recall,
            "false_reject_rate": self._tally.confusion.false_reject_rate,
            "latency_ms": self._tally.latency_ms.model_dump() if self._tally.latency_ms else None,
        }
        if self._json:
            print(json.dumps(summary), flush=True)
        else:
            print(self._people(summary), flush=True)
        if code != 0:
            print(f"station demo: the station ended with code {code}\n{self._station.last_words()}", file=sys.stderr)
        good = account.balanced and complete and code == 0
        return ExitCode.OK if good else ExitCode.FAILED

    def _people(self, summary: dict[str, object]) -> str:
        confusion = self._tally.confusion
        latency = self._tally.latency_ms
        skipped = sum(value for value in summary["skipped"].values())  # type: ignore[attr-defined]
        verdict = "balances" if summary["balanced"] else "DOES NOT BALANCE"

        def share(value: float | None) -> str:
            return "–" if value is None else f"{value:.2%}"

        return "\n".join(
            (
                "",
                (
                    f"Account   {summary['captured']} captured = {summary['ok']} ok + {summary['ng']} ng + "
                    f"{summary['unknown']} unknown + {skipped} skipped + {summary['pending']} pending: {verdict}"
                ),
                f"Received  {summary['received']} verdicts, {summary['duplicates']} duplicates",
                f"Defective {confusion.caught} caught, {confusion.missed} missed: recall {share(confusion.recall)}",
                (
                    f"Good      {confusion.passed} passed, {confusion.rejected} rejected: "
                    f"false rejects {share(confusion.false_reject_rate)}"
                ),
                "Latency   from exposure to subscriber: "
                + (f"p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms" if latency else "–"),
            )
        )

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < LARGEST:
        raise argparse.ArgumentTypeError(f"{text}: allowed are numbers above 0 and below a million")
    return value
