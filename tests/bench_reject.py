"""How exactly a reject output gives its signals: a station on the simulated line, and a real Modbus server as PLC.

    python tests/bench_reject.py --seconds 60            # an idle machine
    python tests/bench_reject.py --seconds 60 --load 2   # beside two busy processes
    python tests/bench_reject.py --counts                # the delay measured on an encoder

The PLC is a process of its own with a high priority (if this program may give it one), and notes with CLOCK_MONOTONIC
when each write came. The moment of a part is the exposure that its verdict tells, plus the delay. Prints one table, and
with `--json` one object:

- *error*: from a part's moment to the arrival of its write at the PLC's process, over all parts to throw out.
- *timer and interpreter*: from the moment to the station's sending (the station's own figure, from `health`).
- *network and server*: the rest of the way to the acknowledgement, the station's own figure as well; and beside it the
  same exchange done by a bare loop in this program after the station has ended.
- *wrong*: parts whose coil did not do what the verdict says, and what the verdicts say against the simulator's truth.
- *fail-safe*: after the station was killed with SIGKILL, the time until the heartbeat has missed two of its beats.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from fault_tools import station_process
from plc import COUNTS_A_S, ENCODER, Plc, Write
from pymodbus.client import ModbusTcpClient

from station import wire
from station.adapters.embedded_broker import free_port
from station.adapters.mqtt_subscriber import Subscriber
from station.boards import Web
from station.errors import ProtocolError
from station.messages import Health, Outcome, Verdict

COIL, HEARTBEAT = 3, 10
BEAT_S = 0.1
SEED = 7
PULSE_S = 0.02
BUSY = "while True: pass"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=20.0, help="frames a second")
    parser.add_argument("--defect-share", type=float, default=0.4)
    parser.add_argument("--delay", type=float, default=0.3, help="seconds from the exposure to the moment")
    parser.add_argument("--load", type=int, default=0, help="busy processes beside it")
    parser.add_argument("--counts", action="store_true", help="the delay is a way on an encoder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options)
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{key:34} {value}" for key, value in figures.items()))
    return 0 if figures["coils_wrong"] == 0 and figures["verdicts"] else 1


def measure(options: argparse.Namespace) -> dict[str, Any]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-reject-") as name, ExitStack() as stack:
        folder = Path(name)
        plc = stack.enter_context(high_priority(folder))
        for _ in range(options.load):
            busy = subprocess.Popen([sys.executable, "-c", BUSY])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        station = stack.enter_context(station_process(folder, document(options, port, plc.port)))
        station.start()
        verdicts, health = follow(port, options)
        station.kill()
        killed_s = time.monotonic()
        silent_s = wait_for_silence(plc, killed_s)
        offset_s = time.time() - time.monotonic()
        bare_ms = bare_exchange_ms(plc.port)
        writes = plc.of("coil", COIL)
    return evaluate(options, verdicts, health, writes, offset_s) | {
        "bare_exchange_ms": bare_ms,
        "fail_safe_s": round(silent_s - killed_s, 3),
        "load": options.load,
    }


def high_priority(folder: Path) -> Plc:
    try:
        return Plc(folder, niceness=-15)
    except PermissionError:
        return Plc(folder)


def document(options: argparse.Namespace, port: int, plc_port: int) -> str:
    if options.counts:
        delay = (
            f"delay_counts = {round(options.delay * COUNTS_A_S)}\ncounts = {{ address = {ENCODER}, poll_s = 0.01 }}\n"
        )
    else:
        delay = f"delay_s = {options.delay}\n"
    return (
        f'[station]\nname = "bench"\ndata_dir = "data"\nhealth_interval_s = 0.5\n'
        f"[broker]\nembedded = true\nport = {port}\n"
        f'[camera.line1]\nkind = "simulated"\nseed = {SEED}\nrate_fps = {options.rate}\n'
        f"defect_share = {options.defect_share}\n"
        f'[reject.gate]\nkind = "modbus_tcp"\nhost = "127.0.0.1"\nport = {plc_port}\naddress = {COIL}\n'
        f"{delay}pulse_s = {PULSE_S}\nlate_after_ms = 5.0\ntoo_late_ms = 100.0\n"
        f"heartbeat = {{ address = {HEARTBEAT}, every_s = {BEAT_S} }}\n"
    )


def follow(port: int, options: argparse.Namespace) -> tuple[list[Verdict], Health]:
    """Take verdicts until the time is over, and then what belongs to the parts that are on their way."""
    deadline_s = time.monotonic() + 60
    while True:
        try:
            subscriber = Subscriber("127.0.0.1", port, "inspection/bench/#").__enter__()
            break
        except ProtocolError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
    verdicts: list[Verdict] = []
    health: Health | None = None
    until_s = time.monotonic() + options.seconds
    while (now_s := time.monotonic()) < until_s + options.delay + 1.0:
        received = subscriber.receive(timeout_s=0.1)
        if received is None:
            continue
        if received.topic.endswith("/verdict") and now_s < until_s:
            verdicts.append(wire.decode(Verdict, received.payload))
        elif received.topic.endswith("/health"):
            health = wire.decode(Health, received.payload)
    subscriber.__exit__(None, None, None)
    assert health is not None
    return verdicts, health


def wait_for_silence(plc: Plc, killed_s: float) -> float:
    """When the PLC's program throws everything out: the heartbeat brought nothing new for two of its beats."""
    while True:
        beats = plc.of("holding", HEARTBEAT)
        last_s = beats[-1].came_s if beats else killed_s
        if time.monotonic() - last_s > 2 * BEAT_S:
            return max(killed_s, last_s + 2 * BEAT_S)
        time.sleep(0.005)


def bare_exchange_ms(port: int) -> dict[str, float]:
    """Write and acknowledgement with nothing else in this process."""
    taken_ms = []
    with ModbusTcpClient("127.0.0.1", port=port) as client:
        for _ in range(500):
            began_s = time.perf_counter()
            client.write_coil(50, value=True)
            taken_ms.append((time.perf_counter() - began_s) * 1e3)
            time.sleep(0.005)
    return spread(taken_ms)


def spread(values: list[float]) -> dict[str, float]:
    p50, p99, most = np.percentile(values, (50, 99, 100), method="inverted_cdf")
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "largest": round(float(most), 3)}


def evaluate(
    options: argparse.Namespace, verdicts: list[Verdict], health: Health, writes: list[Write], offset_s: float
) -> dict[str, Any]:
    """Lay the signals beside the moments: the output is on at each part to throw out, and goes on at no other."""
    rest_s = 0.5 / options.rate
    moments = {one.id: one.captured_at.timestamp() - offset_s + options.delay for one in verdicts}
    signals = [
        (one.came_s, next((other.came_s for other in writes[place:] if not other.value), math.inf))
        for place, one in enumerate(writes)
        if one.value
    ]
    began: dict[UUID, list[float]] = {}
    for begin_s, _ in signals:
        nearest = min(moments, key=lambda one: abs(begin_s - moments[one]))
        if abs(begin_s - moments[nearest]) < rest_s:
            began.setdefault(nearest, []).append((begin_s - moments[nearest]) * 1e3)
    web = Web(SEED, defect_share=options.defect_share)
    errors_ms, wrong, truth_wrong = [], 0, 0
    for verdict in verdicts:
        moment_s, near = moments[verdict.id], began.get(verdict.id, [])
        bad = verdict.outcome is not Outcome.OK
        # Two parts that are closer than a signal is long share one.
        on = any(begin_s < moment_s + rest_s and end_s > moment_s for begin_s, end_s in signals)
        wrong += not on if bad else bool(near)
        errors_ms += near if bad else []
        assert verdict.first_line is not None
        assert verdict.owned_rows is not None
        start, stop = (verdict.first_line + row for row in verdict.owned_rows)
        truth_wrong += bool(web.defects(start, stop)) is not bad
    output = health.rejects["gate"]
    absolute = [abs(one) for one in errors_ms]
    assert output.sent_ms is not None
    assert output.answered_ms is not None
    return {
        "verdicts": len(verdicts),
        "to_throw_out": sum(one.outcome is not Outcome.OK for one in verdicts),
        "error_ms": spread(errors_ms),
        "absolute_error_ms": spread(absolute),
        "within_5_ms": f"{sum(one <= 5 for one in absolute)} of {len(absolute)}",
        "coils_wrong": wrong,
        "verdicts_unlike_truth": truth_wrong,
        "timer_and_interpreter_ms": output.sent_ms.model_dump(),
        "to_the_acknowledgement_ms": output.answered_ms.model_dump(),
        "written_late_failed_overdue": [output.written, output.late, output.failed, output.overdue],
        "verdict_latency_ms": health.latency_ms.model_dump() if health.latency_ms else None,
    }


if __name__ == "__main__":
    sys.exit(main())
