"""`station demo`: the real station on a simulated line, and a client of its own that shows what arrives."""

import argparse
import json
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from station import wire
from station.adapters.mqtt_subscriber import Received
from station.adapters.simulated_line import risen_from_line
from station.boards import Web
from station.commands.child_station import ChildStation
from station.commands.exit_codes import ExitCode
from station.commands.scratch import scratch_folder
from station.display import alarm_line, verdict_line
from station.errors import ProtocolError
from station.messages import CameraState, CameraStateName, Health, Outcome, SkipReason, Status, StatusName, Verdict
from station.process_messages import Alarm, AlarmEvent, Risk
from station.settings import SHIPPED_PROCESS_BUNDLE, SimulatedCamera
from station.simulated_process import CHANNELS, DEFECTS_AFTER_S
from station.tally import Tally

NAME = "demo"
CAMERA = "line1"
SEED = 7
"""A web that is in no training or calibration set; see calibration/README.md."""

GROUP = "oven"
SENSORS = "plc"
PROCESS_SEED = 7
"""A course that is in no training log; see calibration/README.md."""
DRIFT_AFTER_S = 25.0
"""When the heater begins to fail. The line's defects rise `DEFECTS_AFTER_S` later: a run of 60 s shows both."""
RISEN_SHARE = 0.4
NG_WINDOW = 60
NG_SHARE = 0.25
"""The verdicts alone show the rise when so many of the newest ones are ng: two and a half times the usual share."""

EVIDENCE_BYTES = 300_000_000
"""Pictures that a demo keeps at most, in the folder for temporary files."""
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
        "--drift-after",
        type=_positive,
        default=DRIFT_AFTER_S,
        metavar="S",
        help=f"the oven's heater begins to fail; {DEFECTS_AFTER_S:g} s later the defects rise (default: %(default)g)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a verdict, and as last line one for the whole run"
    )


def run(options: argparse.Namespace) -> ExitCode:
    """Start the station, show its verdicts and alarms, and at the end account, confusion, latency and warning.

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
    risks: int = 0
    highest_risk: float | None = None
    warning: Alarm | None = None
    false_alarms: int = 0


class _Line:
    """When the line's defects rose: as the simulator has it, and as the verdicts alone show it."""

    def __init__(self, risen_from_line: int) -> None:
        self._risen_from_line = risen_from_line
        self._newest: deque[bool] = deque(maxlen=NG_WINDOW)
        self.rose_at: datetime | None = None
        self.showed_at: datetime | None = None

    def take(self, verdict: Verdict) -> None:
        """Take the verdicts as they arrive."""
        self._newest.append(verdict.outcome is Outcome.NG)
        risen = verdict.first_line is not None and verdict.first_line >= self._risen_from_line
        if risen and self.rose_at is None:
            self.rose_at = verdict.captured_at
        if risen and self.showed_at is None and sum(self._newest) >= NG_SHARE * NG_WINDOW:
            self.showed_at = verdict.captured_at


class _Demo:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._json: bool = options.json
        self._rate_fps: float = options.rate
        self._colour = sys.stdout.isatty() and not self._json
        self._drift_after_s: float = options.drift_after
        rise_after_s = options.drift_after + DEFECTS_AFTER_S
        risen_from = risen_from_line(rise_after_s, options.rate)
        share = SimulatedCamera(kind="simulated").defect_share
        self._web = Web(options.seed, defect_share=share, rise=(risen_from, RISEN_SHARE))
        self._line = _Line(risen_from)
        self._tally = Tally(self._is_defective)
        self._seen = _Seen()
        self._alarms: deque[UUID] = deque(maxlen=1000)
        self._interrupted = False
        frames = "" if options.seconds is None else f"frames = {max(1, round(options.seconds * options.rate))}\n"
        self._station = ChildStation(
            folder,
            NAME,
            f'[camera.{CAMERA}]\nkind = "simulated"\nseed = {options.seed}\nrate_fps = {options.rate!r}\n{frames}'
            f"rise_after_s = {rise_after_s!r}\nrisen_defect_share = {RISEN_SHARE!r}\n"
            f'[sensors.{SENSORS}]\nkind = "simulated"\nseed = {PROCESS_SEED}\n'
            f"drift_after_s = {options.drift_after!r}\n"
            f"[evidence]\nmax_bytes = {EVIDENCE_BYTES}\n"
            f'[process.{GROUP}]\nbundle = "{SHIPPED_PROCESS_BUNDLE}"\n'
            + "".join(f'channel.{name} = {{ source = "{SENSORS}", unit = "{unit}" }}\n' for name, unit in CHANNELS),
            lambda: self._interrupted,
        )

    def run(self) -> ExitCode:
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._interrupt)
        if not self._json:
            print(
                f"Simulated line at {self._rate_fps:g} frames/s, about one in ten with a defect; "
                f"MQTT on 127.0.0.1:{self._station.port}, topics inspection/{NAME}/#. Ctrl-C stops.\n"
                f"Simulated oven and press beside it: the heater begins to fail after {self._drift_after_s:g} s, "
                f"the defects rise {DEFECTS_AFTER_S:g} s later.",
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
                    self._line.take(verdict)
                    self._show(verdict, received)
            case "risk":
                risk = wire.decode(Risk, received.payload).risk
                if risk is not None:
                    self._seen.risks += 1
                    self._seen.highest_risk = max(risk, self._seen.highest_risk or 0.0)
            case "health":
                self._seen.health = wire.decode(Health, received.payload)
            case "state":
                self._seen.camera = wire.decode(CameraState, received.payload).state
            case "status":
                self._seen.status = wire.decode(Status, received.payload).status
            case _ if "/alarm/" in received.topic:
                self._take_alarm(wire.decode(Alarm, received.payload))

    def _take_alarm(self, alarm: Alarm) -> None:
        if alarm.id in self._alarms or alarm.event is None:
            return
        self._alarms.append(alarm.id)
        if alarm.event is AlarmEvent.ACTIVATE:
            drifting = self._drift_at is not None and alarm.at >= self._drift_at
            if not drifting:
                self._seen.false_alarms += 1
            elif self._seen.warning is None:
                self._seen.warning = alarm
        print(
            alarm.model_dump_json() if self._json else alarm_line(alarm, colour=self._colour),
            flush=True,
        )

    @property
    def _drift_at(self) -> datetime | None:
        """When the heater began to fail: so long after the source of readings was opened."""
        health = self._seen.health
        source = health.sensors.get(SENSORS) if health is not None else None
        if source is None or source.since is None:
            return None
        return source.since + timedelta(seconds=self._drift_after_s)

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

    def _is_defective(self, verdict: Verdict) -> bool | None:
        if verdict.first_line is None or verdict.owned_rows is None:
            return None
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
            "process": self._process(),
        }
        if self._json:
            print(json.dumps(summary), flush=True)
        else:
            print(self._people(summary), flush=True)
        if code != 0:
            print(f"station demo: the station ended with code {code}\n{self._station.last_words()}", file=sys.stderr)
        good = account.balanced and complete and code == 0
        return ExitCode.OK if good else ExitCode.FAILED

    def _process(self) -> dict[str, object]:
        """The warning and what it was worth, out of what came over MQTT."""
        warning, line = self._seen.warning, self._line

        def lead_s(until: datetime | None) -> float | None:
            return None if warning is None or until is None else round((until - warning.at).total_seconds(), 1)

        return {
            "risks": self._seen.risks,
            "highest_risk": self._seen.highest_risk,
            "false_alarms": self._seen.false_alarms,
            "drift_at": self._drift_at.isoformat() if self._drift_at else None,
            "warned_at": warning.at.isoformat() if warning else None,
            "top": [part.channel for part in warning.top] if warning else [],
            "defects_rose_at": line.rose_at.isoformat() if line.rose_at else None,
            "verdicts_showed_at": line.showed_at.isoformat() if line.showed_at else None,
            "lead_to_rise_s": lead_s(line.rose_at),
            "lead_to_verdicts_s": lead_s(line.showed_at),
        }

    def _process_for_people(self) -> str:
        told = self._process()
        false = self._seen.false_alarms
        alarms = f"{false or 'no'} false alarm{'s' if false > 1 else ''}"
        if self._seen.warning is None:
            if self._line.rose_at is not None:
                return f"Process   NO WARNING before the defects rose, {alarms}"
            return (
                f"Process   normal, {alarms}; the heater fails after {self._drift_after_s:g} s: --seconds 60 shows it"
            )
        top = ", ".join(part.channel for part in self._seen.warning.top)
        if self._line.rose_at is None:
            return f"Process   warned ({top}) before the defects rose, {alarms}"
        shown = told["lead_to_verdicts_s"]
        later = f", {shown:.1f} s before the verdicts showed it" if isinstance(shown, float) else ""
        return f"Process   warned {told['lead_to_rise_s']:.1f} s before the defects rose{later} ({top}); {alarms}"

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
                self._process_for_people(),
            )
        )

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < LARGEST:
        raise argparse.ArgumentTypeError(f"{text}: allowed are numbers above 0 and below a million")
    return value
