"""Reject outputs with a real Modbus server as PLC: one output by itself, and a whole station that is killed."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fault_tools import station_process
from mosquitto import Listener, Mosquitto, wait_for
from plc import COUNTS_A_S, ENCODER, REFUSED_COIL, Plc
from test_station import forwarding, verdicts

from station.adapters.embedded_broker import free_port
from station.adapters.modbus_reject import ModbusReject
from station.adapters.system_clock import SystemClock
from station.commands import looks
from station.commands.exit_codes import ExitCode
from station.commands.looks import report
from station.errors import ConfigurationError
from station.faults import FaultBoard
from station.messages import CameraStateName, Outcome
from station.reject_line import RejectLine, RejectLines
from station.reject_settings import TcpReject
from station.settings import from_document

COIL, HEARTBEAT = 3, 10


def table(port: int, **keys: Any) -> dict[str, Any]:
    delay = {} if "delay_counts" in keys else {"delay_s": 0.2}
    return {"kind": "modbus_tcp", "host": "127.0.0.1", "port": port, "address": COIL, "pulse_s": 0.05, **delay, **keys}


def configured(rejects: dict[str, dict[str, Any]], **more: Any) -> Any:
    document = {"camera": {"top": {"kind": "simulated"}}, "reject": rejects, **more}
    return from_document(document, "station.toml", Path("/"), {})


class Output:
    """One output in a thread of its own; `say` it is well, as the supervisor does."""

    def __init__(self, line: RejectLine, faults: FaultBoard) -> None:
        self.line = line
        self.lines = RejectLines([line])
        self.faults = faults
        self._number = 0

    def part(self, outcome: Outcome | None, captured_s: float | None = None) -> float:
        """A part is photographed now and judged at once; returns the time of its exposure."""
        self._number += 1
        captured_s = time.monotonic() if captured_s is None else captured_s
        self.lines.expect("top", self._number, captured_s)
        if outcome is not None:
            self.lines.decide("top", self._number, outcome.value)
        return captured_s

    def running(self, state: CameraStateName = CameraStateName.RUNNING) -> bool:
        self.lines.say(None, {"top": state})
        return True

    def fault(self, what: str = "reject gate") -> str | None:
        return next((fault.reason for fault in self.faults.now() if fault.what == what), None)


@contextmanager
def output(port: int, **keys: Any) -> Iterator[Output]:
    settings = configured({"gate": table(port, **keys)}).reject["gate"]
    assert isinstance(settings, TcpReject)
    clock = SystemClock()
    faults = FaultBoard(clock)
    line = RejectLine("gate", settings, ["top"], ModbusReject(settings), faults, clock)
    thread = threading.Thread(target=line.work, name="reject-gate")
    thread.start()
    try:
        yield Output(line, faults)
    finally:
        line.stop()
        thread.join()


def settled(made: Output, parts: int) -> Callable[[], bool]:
    def is_settled() -> bool:
        made.running()
        health = made.line.health()
        # Not `pending`: a signal that is being given is no longer waited for, and not yet done.
        done = health.spared + health.written + health.late + health.failed
        return health.expected == parts == done and health.pending == 0

    return is_settled


@pytest.fixture
def plc(tmp_path: Path) -> Iterator[Plc]:
    with Plc(tmp_path) as server:
        yield server


PATIENT = {"late_after_ms": 5000.0, "too_late_ms": 20_000.0}
"""What is right must not depend on how busy the machine is; how exact it is, `bench_reject.py` measures."""


def test_the_coil_is_on_for_parts_to_throw_out_and_never_before_their_moment(plc: Plc) -> None:
    with output(plc.port, **PATIENT) as made:
        wait_for(lambda: made.line.health().connected)
        captured = [made.part(outcome) for outcome in (Outcome.NG, Outcome.OK, Outcome.OK)]
        wait_for(settled(made, 3))
        wait_for(lambda: len(plc.of("coil", COIL)) == 3)
        captured.append(made.part(None))
        wait_for(settled(made, 4))
    writes = plc.of("coil", COIL)
    assert [one.value for one in writes[:4]] == [0, 1, 0, 1]
    assert writes[-1].value == 0
    assert writes[1].came_s >= captured[0] + 0.2
    assert writes[3].came_s >= captured[3] + 0.2
    health = made.line.health()
    assert (health.written, health.spared, health.overdue, health.failed) == (2, 2, 1, 0)
    assert health.sent_ms is not None
    assert health.answered_ms is not None
    assert 0 <= health.sent_ms.p50 <= health.answered_ms.p50


def test_a_register_takes_its_values(plc: Plc) -> None:
    with output(plc.port, table="holding", value=7, rest_value=2, **PATIENT) as made:
        wait_for(lambda: made.line.health().connected)
        made.part(Outcome.UNKNOWN)
        wait_for(settled(made, 1))
    assert [one.value for one in plc.of("holding", COIL)][:3] == [2, 7, 2]


def test_a_part_is_thrown_out_so_many_counts_after_its_exposure(plc: Plc) -> None:
    counts = {"address": ENCODER, "poll_s": 0.01}
    with output(plc.port, delay_counts=COUNTS_A_S // 2, counts=counts, **PATIENT) as made:
        wait_for(lambda: made.line.health().connected)
        wait_for(lambda: made.part(Outcome.OK) > 0 and made.line.health().failed < made.line.health().expected)
        captured_s = made.part(Outcome.NG)
        wait_for(lambda: any(one.value for one in plc.of("coil", COIL)))
    came_s = next(one.came_s for one in plc.of("coil", COIL) if one.value)
    # Half a second of belt; a busy machine may come late, but never early by more than the encoder's own step.
    assert came_s - captured_s > 0.5 - 0.03
    assert came_s - captured_s < 5.0


def test_a_refused_coil_is_a_fault_that_names_it_and_holds_the_heartbeat(plc: Plc) -> None:
    with output(plc.port, address=REFUSED_COIL, heartbeat={"address": HEARTBEAT, "every_s": 0.05}) as made:
        wait_for(lambda: made.fault() is not None)
        assert f"Modbus exception 2 (illegal data address) for coil {REFUSED_COIL} of unit 1" in str(made.fault())
        wait_for(lambda: made.running() and len(plc.of("holding", HEARTBEAT)) > 3)
        made.part(Outcome.NG)
        wait_for(lambda: made.running() and made.line.health().held == "a signal was not given")
        assert made.line.health().failed == 1
        wait_for(lambda: "1 were not given" in str(made.fault("reject gate signals")))
    beats = [one.value for one in plc.of("holding", HEARTBEAT)]
    assert beats == list(range(1, len(beats) + 1))


def test_the_heartbeat_stands_still_while_the_camera_does(plc: Plc) -> None:
    with output(plc.port, heartbeat={"address": HEARTBEAT, "every_s": 0.05}) as made:
        wait_for(lambda: made.line.health().connected)
        assert made.line.health().held == "the station starts"
        wait_for(lambda: made.running() and len(plc.of("holding", HEARTBEAT)) > 2)
        made.running(CameraStateName.STALLED)
        assert made.line.health().held == "camera top is stalled"
        made.lines.say("recorder", {"top": CameraStateName.RUNNING})
        assert made.line.health().held == "no progress: recorder"


def test_a_device_that_is_away_is_told_once_and_comes_back_at_rest(plc: Plc) -> None:
    plc.kill()
    with output(plc.port, reconnect_max_s=0.2, **PATIENT) as made:
        wait_for(lambda: made.fault() is not None)
        assert made.fault() == f"Modbus 127.0.0.1:{plc.port}: Connection refused"
        made.part(Outcome.NG)
        wait_for(settled(made, 1))
        assert made.line.health().failed == 1
        plc.start()
        wait_for(lambda: made.fault() is None)
        made.part(Outcome.NG)
        wait_for(settled(made, 2))
    assert [one.value for one in plc.of("coil", COIL)][:2] == [0, 1]
    assert made.line.health().written == 1


def test_a_connection_that_was_cut_is_made_anew_for_the_signal(plc: Plc) -> None:
    door = free_port()
    with output(door, reconnect_max_s=0.1, **PATIENT) as made:
        with forwarding(door, plc.port):
            wait_for(lambda: made.line.health().connected)
            made.part(Outcome.NG)
            wait_for(settled(made, 1))
        with forwarding(door, plc.port):
            made.part(Outcome.NG)
            wait_for(settled(made, 2))
    health = made.line.health()
    assert (health.written + health.late, health.failed) == (2, 0)


@pytest.mark.parametrize(
    ("rejects", "text"),
    [
        ({"gate": {"address": 70_000}}, "reject.gate.address = 70000: Input should be less than or equal to 65535"),
        ({"gate": {"cameras": ["side"]}}, "reject.gate.cameras: there is no camera 'side'; known: top"),
        ({"gate": {}, "b": {}}, "reject.b.address = 3: reject.gate.address writes the same coil of 127.0.0.1"),
        (
            {"gate": {"heartbeat": {"address": 9}}, "b": {"address": 4, "heartbeat": {"address": 9}}},
            "reject.b.heartbeat.address = 9: reject.gate.heartbeat.address writes the same holding of 127.0.0.1",
        ),
        ({"gate": {"delay_counts": 5}}, "delay_counts and counts belong together"),
        ({"gate": {"delay_s": -1.0}}, "reject.gate.delay_s = -1.0: Input should be greater than or equal to 0.001"),
        ({"gate": {"value": 5}}, "value and rest_value are for a register"),
        ({"gate": {"table": "holding", "value": 0}}, "value and rest_value are both 0"),
        (
            {"gate": {"table": "holding", "heartbeat": {"address": COIL}}},
            "heartbeat.address = 3 is the output's own register",
        ),
        ({"gate": {"too_late_ms": 1.0}}, "too_late_ms = 1.0: less than late_after_ms = 10.0"),
        ({"gate": {"kind": "can"}}, "kind = 'can' is not known; allowed: 'modbus_tcp', 'modbus_rtu'"),
        ({"gate": {"reject": ["ok"]}}, "reject.gate.reject.0 = 'ok': Input should be 'ng', 'unknown' or 'skipped'"),
        (
            {"gate": {"delay_counts": 40_000, "delay_s": None, "counts": {"address": 1, "type": "uint16"}}},
            "a uint16 can tell 32767 at most",
        ),
    ],
)
def test_a_wrong_output_is_refused_with_what_is_allowed(rejects: dict[str, dict[str, Any]], text: str) -> None:
    tables = {name: table(502, **keys) for name, keys in rejects.items()}
    for keys in tables.values():
        if keys.get("delay_s", 0) is None:
            del keys["delay_s"]
    with pytest.raises(ConfigurationError) as refused:
        configured(tables)
    assert text in str(refused.value)


def test_a_serial_port_is_not_shared() -> None:
    line = {"kind": "modbus_rtu", "device": "/dev/ttyS9", "address": 1, "delay_s": 1.0}
    with pytest.raises(ConfigurationError, match=r"reject\.b\.device = '/dev/ttyS9' is that of reject\.a, too"):
        configured({"a": line, "b": {**line, "address": 2}})
    sensor = {"kind": "modbus_rtu", "device": "/dev/ttyS9", "points": {"t": {"address": 1}}}
    with pytest.raises(ConfigurationError, match=r"reject\.a\.device = '/dev/ttyS9' is that of sensors\.plc, too"):
        configured({"a": line}, sensors={"plc": sensor})


def test_check_reads_the_device_and_writes_nothing(plc: Plc, capsys: pytest.CaptureFixture[str]) -> None:
    settings = configured({"gate": table(plc.port), "other": table(free_port(), heartbeat={"address": 1})})
    assert report(looks.rejects(settings, running=False)) is ExitCode.REJECT
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "ok    reject gate: coil 3 = 0"
    assert second.startswith("note  reject gate: when the station is gone nothing is thrown out")
    assert third.startswith("WRONG reject other: Modbus 127.0.0.1:")
    assert third.endswith("Connection refused")
    assert plc.writes == []


def test_a_station_throws_out_what_its_verdicts_say_and_the_plc_sees_that_it_was_killed(
    plc: Plc, tmp_path: Path
) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        document = (
            f'[station]\nname = "s"\ndata_dir = "data"\nhealth_interval_s = 0.5\n[broker]\nport = {broker.port}\n'
            '[camera.top]\nkind = "simulated"\nseed = 7\nrate_fps = 8.0\ndefect_share = 0.4\n'
            f'[reject.gate]\nkind = "modbus_tcp"\nhost = "127.0.0.1"\nport = {plc.port}\naddress = {COIL}\n'
            "delay_s = 3.0\npulse_s = 0.03\nlate_after_ms = 5000.0\ntoo_late_ms = 20000.0\n"
            f"heartbeat = {{ address = {HEARTBEAT}, every_s = 0.1 }}\n"
        )
        with station_process(tmp_path, document) as station:
            station.start()
            received = listener.wait_until(lambda got: len(verdicts(got)) >= 60, patience_s=120)
            # The oldest fifty have come to their moment when the newest one is three seconds older than they are.
            until_s = time.monotonic() + 3.5
            wait_for(lambda: time.monotonic() > until_s)
            station.kill()
            killed_s = time.monotonic()
        offset_s = time.time() - time.monotonic()
        judged = verdicts(received)[:40]
        bad = [one.captured_at.timestamp() - offset_s + 3.0 for one in judged if one.outcome is not Outcome.OK]
        last_s = judged[-1].captured_at.timestamp() - offset_s + 3.05
        pulses = [one.came_s for one in plc.of("coil", COIL) if one.value == 1 and one.came_s < last_s]
        assert bad
        # In order and one for one: pulses are shorter than the frames are apart. On a busy machine the two clocks of an
        # exposure may be read some milliseconds apart.
        assert len(pulses) == len(bad)
        assert all(pulse >= moment - 0.05 for pulse, moment in zip(pulses, bad, strict=True))
        beats = plc.of("holding", HEARTBEAT)
        assert [one.value for one in beats] == list(range(1, len(beats) + 1))
        # What the PLC's program does: no new value for a second means that everything is thrown out.
        quiet_s = time.monotonic() + 1.0
        wait_for(lambda: time.monotonic() > quiet_s)
        assert plc.of("holding", HEARTBEAT)[-1].came_s <= killed_s + 0.1
