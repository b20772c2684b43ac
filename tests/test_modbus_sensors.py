"""Modbus against a real server: over TCP, and over a serial line made of pseudo terminals."""

import math
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modbus_server import BUSY, PRESSURE, SILENT, TEMPERATURE, ModbusServer, SerialLine
from pydantic import ValidationError
from sensor_helpers import CLOCK, Heard, listen, next_row, until_state

from station.adapters._live_source import next_due
from station.adapters.embedded_broker import free_port
from station.adapters.modbus_sensors import ModbusSource
from station.messages import SourceStateName
from station.modbus_registers import decode, plan, split
from station.process_messages import ChannelQuality
from station.sensor_settings import ModbusPoint, ModbusRtuSensors, ModbusTcpSensors

RUNNING, DOWN = SourceStateName.RUNNING, SourceStateName.DOWN
BACK_WITHIN_S = 3.0
"""The longest pause of these tests is 0.5 s; the rest is for a slow machine."""
POINTS: dict[str, dict[str, Any]] = {
    "count": {"address": 0},
    "offset": {"address": 1, "type": "int16"},
    "temperature": {"address": 10, "type": "float32"},
    "pressure": {"table": "input", "address": 20, "type": "int32", "order": "CDAB"},
    "lamp": {"table": "coil", "address": 2},
    "door": {"table": "discrete", "address": 1},
    "second bit": {"address": 1, "type": "bit", "bit": 1},
}
VALUES: tuple[float, ...] = (7, -2, TEMPERATURE, PRESSURE, 1, 0, 1)


def tcp(port: int, points: dict[str, dict[str, Any]] = POINTS, **keys: Any) -> ModbusTcpSensors:
    return ModbusTcpSensors.model_validate(
        {
            "kind": "modbus_tcp",
            "host": "127.0.0.1",
            "port": port,
            "poll_s": 0.05,
            "timeout_s": 0.3,
            "reconnect_max_s": 0.5,
            "points": points,
            **keys,
        }
    )


def point(**keys: Any) -> ModbusPoint:
    return ModbusPoint.model_validate({"address": 0, **keys})


# Registers


@pytest.mark.parametrize(
    ("order", "registers"),
    [("ABCD", (0x0A0B, 0x0C0D)), ("CDAB", (0x0C0D, 0x0A0B)), ("BADC", (0x0B0A, 0x0D0C)), ("DCBA", (0x0D0C, 0x0B0A))],
)
def test_the_four_byte_orders_of_32_bits(order: str, registers: tuple[int, int]) -> None:
    assert decode(registers, point(type="uint32", order=order)) == 0x0A0B0C0D


FORMS = {
    "int16": (">h", st.integers(-(2**15), 2**15 - 1)),
    "uint16": (">H", st.integers(0, 2**16 - 1)),
    "int32": (">i", st.integers(-(2**31), 2**31 - 1)),
    "uint32": (">I", st.integers(0, 2**32 - 1)),
    "int64": (">q", st.integers(-(2**53), 2**53)),
    "uint64": (">Q", st.integers(0, 2**53)),
    "float32": (">f", st.floats(width=32)),
    "float64": (">d", st.floats()),
}


@given(st.data(), st.sampled_from(sorted(FORMS)), st.sampled_from(["ABCD", "CDAB", "BADC", "DCBA"]))
def test_each_type_in_each_order_comes_back(data: st.DataObject, kind: str, order: str) -> None:
    form, values = FORMS[kind]
    value = data.draw(values)
    raw = struct.pack(form, value)
    words = [raw[at : at + 2] for at in range(0, len(raw), 2)]
    if order in ("CDAB", "DCBA"):
        words.reverse()
    if order in ("BADC", "DCBA"):
        words = [word[::-1] for word in words]
    wanted = point(type=kind, order=order)
    assert wanted.width == len(words)
    found = decode([int.from_bytes(word, "big") for word in words], wanted)
    assert found == value or (math.isnan(found) and math.isnan(value))


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=4),
        st.builds(
            dict,
            address=st.integers(0, 300),
            table=st.sampled_from(["holding", "input"]),
            type=st.sampled_from(sorted(FORMS)),
            unit_id=st.sampled_from([None, 2]),
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(0, 20),
    st.integers(4, 125),
)
def test_each_point_is_read_once_within_the_limits(
    tables: dict[str, dict[str, Any]], max_gap: int, max_registers: int
) -> None:
    points = {name: point(**table) for name, table in tables.items()}
    blocks = plan(points, unit_id=1, max_gap=max_gap, max_registers=max_registers)
    assert sorted(name for block in blocks for name in block.points) == sorted(points)
    for block in blocks:
        assert block.count <= max_registers
        used: set[int] = set()
        for name in block.points:
            span = range(points[name].address, points[name].address + points[name].width)
            assert block.address <= span.start
            assert span.stop <= block.address + block.count
            assert (points[name].table, points[name].unit_id or 1) == (block.table, block.unit_id)
            used.update(span)
        gaps = "".join("x" if at in used else "." for at in range(block.address, block.address + block.count))
        assert "." * (max_gap + 1) not in gaps
        halves = split(block, points)
        assert sorted(name for half in halves for name in half.points) == (
            sorted(block.points) if len(block.points) > 1 else []
        )


def test_neighbours_are_read_with_one_request() -> None:
    points = {str(at): point(address=at, type="float32") for at in range(0, 250, 2)}
    assert [block.count for block in plan(points, unit_id=1, max_gap=8, max_registers=125)] == [124, 124, 2]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"table": "coil", "type": "int16"}, "coils and discrete inputs hold bits"),
        ({"table": "coil", "bit": 3}, "bit is for registers"),
        ({"type": "bit"}, "belong together"),
        ({"bit": 3}, "belong together"),
        ({"address": 65_535, "type": "int32"}, "beyond register 65535"),
        ({"address": -1}, "greater than or equal to 0"),
        ({"order": "ACBD"}, "'ABCD', 'CDAB', 'BADC' or 'DCBA'"),
    ],
)
def test_a_point_that_cannot_be_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        point(**keys)


# Reading


def test_every_kind_of_point_is_read_over_tcp() -> None:
    with ModbusServer() as server, ModbusSource("press", tcp(server.port, max_gap=0), CLOCK) as source:
        heard = listen(source, lambda so_far: len(so_far.rows) >= 3)
    assert heard.states == [RUNNING]
    assert source.points == tuple(POINTS)
    for row in heard.rows:
        assert row.values == VALUES
        assert row.qualities is None
        assert row.source == "press"
        assert abs(row.at_s - time.time()) < 20


@given(st.floats(0, 1e9), st.floats(0.01, 3600), st.floats(0, 1e5))
def test_the_schedule_does_not_drift(due_s: float, interval_s: float, late_s: float) -> None:
    following_s = next_due(due_s, due_s + late_s, interval_s)
    steps = (following_s - due_s) / interval_s
    assert round(steps) >= 1
    assert steps == pytest.approx(round(steps), abs=1e-3)
    assert due_s + late_s - 1e-3 <= following_s <= due_s + late_s + interval_s + 1e-3


def test_registers_that_do_not_exist_make_only_their_own_points_bad(caplog: pytest.LogCaptureFixture) -> None:
    points: dict[str, dict[str, Any]] = {
        "count": {"address": 0},
        "hole": {"address": 5},
        "temperature": {"address": 10, "type": "float32"},
        "beyond": {"address": 12, "type": "int32"},
        "busy": {"address": BUSY},
        "elsewhere": {"address": 0, "unit_id": 2},
    }
    with ModbusServer() as server, ModbusSource("press", tcp(server.port, points), CLOCK) as source:
        heard = listen(source, lambda so_far: len(so_far.rows) >= 5)
    for row in heard.rows:
        assert row.values[0] == 7
        assert row.values[2] == TEMPERATURE
        assert row.values[5] == 7
        assert row.qualities is not None
        assert [quality is ChannelQuality.BAD_STATUS for quality in row.qualities] == [0, 1, 0, 1, 1, 0]
        assert all(math.isnan(row.values[place]) for place in (1, 3, 4))
        assert row.reasons == {
            "hole": "Modbus exception 2 (illegal data address) for holding 5",
            "beyond": "Modbus exception 2 (illegal data address) for holding 12 to 13",
            "busy": "Modbus exception 6 (device busy) for holding 600",
        }
    assert caplog.text.count("point hole is bad") == 1


def test_a_unit_that_does_not_answer_makes_its_own_points_bad() -> None:
    points = {"here": {"address": 0}, "gone": {"address": 0, "unit_id": SILENT}}
    with SerialLine() as line, ModbusServer("rtu", line.first):
        settings = ModbusRtuSensors.model_validate(
            {
                "kind": "modbus_rtu",
                "device": line.second,
                "poll_s": 0.05,
                "timeout_s": 0.3,
                "baud": 115_200,
                "parity": "none",
                "points": points,
            }
        )
        with ModbusSource("press", settings, CLOCK) as source:
            heard = listen(source, lambda so_far: len(so_far.rows) >= 5)
    assert heard.value("here") == 7
    assert heard.quality("gone") is ChannelQuality.SOURCE_FAULT
    assert heard.last.reasons == {"gone": "unit 77: no answer within 0.3 s"}


# Failures


@contextmanager
def serial() -> Iterator[tuple[ModbusServer, ModbusRtuSensors]]:
    with SerialLine() as line, ModbusServer("rtu", line.first) as server:
        yield (
            server,
            ModbusRtuSensors.model_validate(
                {
                    "kind": "modbus_rtu",
                    "device": line.second,
                    "poll_s": 0.05,
                    "timeout_s": 0.3,
                    "baud": 115_200,
                    "parity": "none",
                    "reconnect_max_s": 0.5,
                    "max_gap": 0,
                    "points": POINTS,
                }
            ),
        )


@contextmanager
def network() -> Iterator[tuple[ModbusServer, ModbusTcpSensors]]:
    with ModbusServer() as server:
        yield server, tcp(server.port, max_gap=0)


@pytest.mark.parametrize("bench", [network, serial])
def test_a_device_that_dies_or_hangs_is_down_with_its_reason_and_comes_back(bench: Any) -> None:
    with bench() as (server, settings), ModbusSource("press", settings, CLOCK) as source:
        heard = Heard()
        assert next_row(source, heard).values == VALUES
        server.kill()
        reason = until_state(source, DOWN, heard, within_s=BACK_WITHIN_S).reason or ""
        assert any(
            word in reason for word in ("Connection refused", "connection was lost", "no answer", "no connection")
        )
        server.start()
        until_state(source, RUNNING, heard, within_s=BACK_WITHIN_S)
        assert next_row(source, heard).values == VALUES
        server.stop()
        reason = until_state(source, DOWN, heard, within_s=BACK_WITHIN_S).reason or ""
        assert "no answer within 0.3 s" in reason
        server.go_on()
        until_state(source, RUNNING, heard, within_s=BACK_WITHIN_S)
        assert next_row(source, heard).values == VALUES


def test_without_a_device_it_says_so_and_leaves_at_once() -> None:
    began_s = time.monotonic()
    with ModbusSource("press", tcp(free_port()), CLOCK) as source:
        heard = Heard()
        assert "Connection refused" in (until_state(source, DOWN, heard).reason or "")
        assert [source.read(0.3) for _ in range(2)] == [None, None]
    assert time.monotonic() - began_s < 5


def test_leaving_does_not_wait_for_a_device_that_hangs() -> None:
    with ModbusServer() as server:
        source = ModbusSource("press", tcp(server.port, timeout_s=10.0, poll_s=0.2), CLOCK)
        with source:
            next_row(source, Heard())
            server.stop()
            threading.Event().wait(0.5)
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 2


def test_a_serial_port_that_is_not_there_is_named() -> None:
    settings = ModbusRtuSensors.model_validate(
        {"kind": "modbus_rtu", "device": "/dev/not-there", "points": {"a": {"address": 0}}}
    )
    with ModbusSource("press", settings, CLOCK) as source:
        assert "/dev/not-there: there is no such device" in (until_state(source, DOWN, Heard()).reason or "")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 300, b"\xff" * 300, b""])
def test_a_peer_that_speaks_something_else_does_no_harm(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(100)
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with ModbusSource("press", tcp(server.getsockname()[1]), CLOCK) as source:
            heard = Heard()
            until_state(source, DOWN, heard)
            assert not heard.rows
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
