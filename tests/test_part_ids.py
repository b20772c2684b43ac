"""Part ids: what counts as one, counters and doubled ids over restarts, codes in pictures, the sources, the station."""

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import cv2
import numpy as np
import pytest
from drawn_codes import Sight, check_digit, ean_13, part, qr_code
from hypothesis import given, settings
from hypothesis import strategies as st
from modbus_server import PLC, ModbusServer
from mosquitto import Listener, Mosquitto, wait_for
from process_helpers import BEGIN
from pymodbus.client import ModbusTcpClient
from sensor_helpers import CLOCK
from test_journal_command import Ended, station
from test_station import eventually, folder_camera, has_verdicts, running, verdicts, write_pictures

from station.adapters.code_reader import OpenCvCodeReader
from station.adapters.embedded_broker import free_port
from station.adapters.modbus_part_ids import ModbusPartIds
from station.adapters.mqtt_part_ids import MqttPartIds
from station.adapters.state_files import StateFiles
from station.broker_settings import BrokerAccess, BrokerSettings
from station.commands.exit_codes import ExitCode
from station.commands.looks import part_ids
from station.errors import ConfigurationError, StorageError
from station.messages import Outcome, PartIdState, Reason, SourceStateName, Verdict
from station.part_id_messages import ReadCodes, SeenId
from station.part_id_settings import ModbusTcpPartId, MqttPartId
from station.part_id_text import LONGEST, read_id
from station.part_ids import RESERVED, PartCounter, UsedIds
from station.ports import PartIdSource
from station.process_messages import SourceEvent
from station.settings import from_document

STATES = PartIdState


# What counts as an id


@given(st.text(max_size=100))
def test_an_id_is_printable_and_short_whatever_comes(raw: str) -> None:
    try:
        text = read_id(raw, None)
    except ValueError:
        return
    assert text
    assert text.isprintable()
    assert len(text) <= LONGEST
    assert text in raw


def test_padding_of_registers_and_lines_is_no_part_of_an_id() -> None:
    assert read_id("A-17 \0\0\0", None) == "A-17"


@pytest.mark.parametrize(
    ("raw", "pattern", "found"),
    [
        ("P000123", r"P\d{6}", "P000123"),
        ("https://x.example/?part=17&v=1", r".*part=(\d+).*", "17"),
        ("lot 5 part 17", r"lot (?P<lot>\d+) part (?P<id>\d+)", "17"),
    ],
)
def test_a_pattern_takes_the_id_out_of_a_text(raw: str, pattern: str, found: str) -> None:
    assert read_id(raw, re.compile(pattern)) == found


@pytest.mark.parametrize(
    ("raw", "pattern", "why"),
    [
        ("P000123x", r"P\d{6}", "'P000123x' does not match the pattern"),
        ("", "", "it is empty"),
        ("a\nb", "(?s).*", "cannot be printed"),
        ("x" * 65, ".*", "65 characters"),
    ],
)
def test_what_is_no_id_is_told(raw: str, pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        read_id(raw, re.compile(pattern))
    assert "\n" not in str(caught.value)


# Counters, and ids that come again


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, RESERVED + 300), st.booleans()), max_size=4))
def test_no_number_is_given_twice_however_the_station_ends(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, bool]]
) -> None:
    store = StateFiles(tmp_path_factory.mktemp("counter"), "part ids of camera")
    given: list[int] = []
    for count, orderly in runs:
        counter = PartCounter("line", 7, store)
        counter.keep()
        for number in range(count):
            if number % 100 == 0:
                counter.keep()
            taken = counter.take()
            assert taken is not None
            given.append(taken)
        if orderly:
            counter.end()
            counter.keep()
    assert given == sorted(set(given))
    assert not given or given[0] >= 7
    if all(orderly for _, orderly in runs):
        assert given == list(range(7, 7 + len(given)))


def test_a_counter_whose_note_is_damaged_gives_nothing_and_says_so(tmp_path: Path) -> None:
    store = StateFiles(tmp_path, "part ids of camera")
    store.save("line", b"\x80rubbish")
    counter = PartCounter("line", 1, store)
    with pytest.raises(StorageError, match="damaged"):
        counter.keep()
    assert counter.take() is None


def test_an_id_that_comes_again_is_known_as_far_as_the_memory_goes() -> None:
    used = UsedIds(2, within_s=10.0)
    at = BEGIN
    assert [used.use(text, at) for text in ("A", "B", "A", "C", "B")] == [False, False, True, False, False]
    assert not used.use("C", at + timedelta(seconds=11))
    assert used.use("C", at + timedelta(seconds=20))
    assert not UsedIds(0, None).use("A", at)


# Codes in pictures


@pytest.mark.parametrize("turn_degrees", [0.0, 20.0, 200.0])
def test_codes_of_both_kinds_are_read_in_a_noisy_picture(turn_degrees: float) -> None:
    chance = np.random.default_rng(5)
    sight = Sight(turn_degrees=turn_degrees)
    assert OpenCvCodeReader("qr").read(part(qr_code("P000123"), sight, chance)[0]) == ReadCodes(("P000123",))
    number = 400_638_133_393
    found = OpenCvCodeReader("barcode").read(part(ean_13(number), sight, chance)[0])
    assert found == ReadCodes((f"{number}{check_digit(number)}",))


def test_small_modules_and_noise_are_read_at_a_second_look() -> None:
    chance = np.random.default_rng(6)
    reader = OpenCvCodeReader("qr")
    texts = [f"P{number:06}" for number in range(8)]
    found = [reader.read(part(qr_code(text, 4), Sight(noise=12.0), chance)[0]).texts for text in texts]
    assert sum(one == (text,) for one, text in zip(found, texts, strict=True)) >= 6
    assert all(one in ((), (text,)) for one, text in zip(found, texts, strict=True))


@pytest.mark.parametrize("shape", [(0, 10), (1, 1), (3, 500), (640, 640), (40, 40, 3)])
def test_a_picture_without_a_code_has_none(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    assert OpenCvCodeReader("any").read(pixels).texts == ()


# Settings


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ('kind = "scanner"', "line.part_id: kind = 'scanner' is not known; allowed: 'counter', 'file_name', 'code'"),
        (
            'topic = "a"',
            "line.part_id: kind is missing; allowed: counter, file_name, code, mqtt, modbus_tcp, modbus_rtu",
        ),
        ('kind = "mqtt"\ntopic = "parts/#"', "part_id.topic = 'parts/#': must be one MQTT topic without the wildcards"),
        ('kind = "code"\npattern = "("', "part_id.pattern = '(': is no regular expression: missing )"),
        ('kind = "file_name"\npattern = "p"', "part_id: pattern = 'p': needs a group that is the id"),
        ('kind = "file_name"\npattern = "(p)"', "line.part_id.kind = 'file_name': is for cameras of the kind folder"),
        ('kind = "counter"\nformat = "{x}"', "part_id: format = '{x}': must hold {number} or {number:08} once"),
        (
            'kind = "mqtt"\ntopic = "a"\nlead_s = -60.0',
            "part_id: a verdict would wait up to 60.2 s for its id; allowed are 60 s",
        ),
        ('kind = "mqtt"\ntopic = "a"\ntime_path = "t"', "part_id: time_path needs path"),
        (
            'kind = "modbus_tcp"\nhost = "h"\naddress = 0\ntype = "text"',
            'part_id: type = "text" and registers belong together',
        ),
        (
            'kind = "modbus_tcp"\nhost = "h"\naddress = 0\nsequence = 500',
            "part_id: sequence: must lie within 125 registers",
        ),
        (
            'kind = "modbus_tcp"\nhost = "h"\naddress = 0\nwindow_s = 0.01',
            "part_id: poll_s = 0.02 must not be longer than",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_told_in_one_line(table: str, line: str) -> None:
    document = tomllib.loads(f'[camera.line]\nkind = "simulated"\n[camera.line.part_id]\n{table}\n')
    with pytest.raises(ConfigurationError) as caught:
        from_document(document, "station.toml", Path("/"), {})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


# The sources


def heard(source: PartIdSource, condition: Callable[[list[SeenId | SourceEvent]], bool]) -> list[SeenId | SourceEvent]:
    """Listen until a condition holds."""
    found: list[SeenId | SourceEvent] = []

    def met() -> bool:
        item = source.read(0.05)
        if item is not None:
            found.append(item)
        return condition(found)

    wait_for(met)
    return found


def is_state(state: SourceStateName) -> Callable[[list[SeenId | SourceEvent]], bool]:
    return lambda found: any(isinstance(one, SourceEvent) and one.state is state for one in found)


def ids_in(found: list[SeenId | SourceEvent]) -> list[SeenId]:
    return [one for one in found if isinstance(one, SeenId)]


@contextmanager
def topic_source(port: int, **keys: Any) -> Iterator[MqttPartIds]:
    table = MqttPartId.model_validate({"kind": "mqtt", "topic": "parts", "reconnect_max_s": 0.5, **keys})
    access = BrokerAccess(BrokerSettings(port=port), "127.0.0.1", port, "ids")
    with MqttPartIds("line", table, CLOCK, access) as source:
        yield source


def test_messages_become_ids_with_their_own_time_and_what_is_none_says_why(tmp_path: Path) -> None:
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port, "parts") as talker,
        topic_source(broker.port, path="part.id", time_path="at") as source,
    ):
        heard(source, is_state(SourceStateName.RUNNING))
        begin_s, wall_s = CLOCK.monotonic_s(), CLOCK.now().timestamp()
        bodies: list[Any] = [{"id": "A-1"}, {"id": 17}, {"id": 1.5}, {"id": True}, {"id": "x" * 65}, {}, {"id": "a\tb"}]
        for body in bodies:
            talker.publish("parts", json.dumps({"part": body, "at": wall_s - 5.0}).encode())
        talker.publish("parts", b"\xff\xfe")
        talker.publish("parts", b"{")
        talker.publish("parts", json.dumps({"part": {"id": "A-2"}}).encode())
        found = ids_in(heard(source, lambda found: len(ids_in(found)) == 10))
    assert [one.text for one in found] == ["A-1", "17", *[None] * 8]
    assert all(one.reason and "\n" not in one.reason for one in found[2:])
    assert found[0].at_s == pytest.approx(begin_s - 5.0, abs=0.05)


def test_a_retained_message_counts_only_with_a_time_of_its_own(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port, "parts") as talker:
        talker._client.publish("parts", json.dumps({"id": "old", "at": 0}), qos=1, retain=True).wait_for_publish(10)
        for keys, expected in (({"path": "id"}, ["new"]), ({"path": "id", "time_path": "at"}, ["old", "new"])):
            with topic_source(broker.port, **keys) as source:
                heard(source, is_state(SourceStateName.RUNNING))
                talker.publish("parts", json.dumps({"id": "new", "at": 1.0}).encode())
                found = heard(source, lambda found: any(one.text == "new" for one in ids_in(found)))
            assert [one.text for one in ids_in(found)] == expected


def test_a_broker_that_is_away_is_told() -> None:
    with topic_source(free_port()) as source:
        (event, *_) = heard(source, is_state(SourceStateName.DOWN))
    assert isinstance(event, SourceEvent)
    assert "refused" in (event.reason or "").lower()


@contextmanager
def register_source(port: int, **keys: Any) -> Iterator[ModbusPartIds]:
    document = {"kind": "modbus_tcp", "host": "127.0.0.1", "port": port, "unit_id": PLC, "address": 0, "window_s": 1.0}
    with ModbusPartIds(
        "line", ModbusTcpPartId.model_validate({**document, "reconnect_max_s": 0.5, **keys}), CLOCK
    ) as source:
        yield source


def test_a_new_id_or_a_change_of_the_sequence_is_a_new_part_and_the_first_look_is_none() -> None:
    with ModbusServer() as plc, ModbusTcpClient("127.0.0.1", port=plc.port) as program:

        def write(*registers: int) -> None:
            program.write_registers(0, list(registers), device_id=PLC)

        write(5, 0, 0)
        with register_source(plc.port) as source:
            heard(source, is_state(SourceStateName.RUNNING))
            texts: list[str | None] = []
            for number in (6, 7):
                write(number)
                texts += [one.text for one in ids_in(heard(source, lambda found: bool(ids_in(found))))]
        assert texts == ["6", "7"]
        with register_source(plc.port, type="uint32", order="CDAB", sequence=4) as source:
            heard(source, is_state(SourceStateName.RUNNING))
            texts = []
            for sequence in (1, 2):
                write(1, 2, 0, 0, sequence)
                texts += [one.text for one in ids_in(heard(source, lambda found: bool(ids_in(found))))]
        assert texts == [str(2 << 16 | 1)] * 2
        with register_source(plc.port, type="text", registers=3) as source:
            heard(source, is_state(SourceStateName.RUNNING))
            write(0x4142, 0x4300, 0)
            (good,) = ids_in(heard(source, lambda found: bool(ids_in(found))))
            write(0xFF01, 0x0143, 0)
            (bad,) = ids_in(heard(source, lambda found: bool(ids_in(found))))
        assert good.text == "ABC"
        assert bad.text is None


def test_a_plc_that_goes_away_is_told_and_what_it_held_meanwhile_is_not_used() -> None:
    with ModbusServer() as plc, register_source(plc.port) as source:
        heard(source, is_state(SourceStateName.RUNNING))
        plc.kill()
        heard(source, is_state(SourceStateName.DOWN))
        plc.start()
        with ModbusTcpClient("127.0.0.1", port=plc.port) as program:
            found = heard(source, is_state(SourceStateName.RUNNING))
            program.write_registers(0, [9], device_id=PLC)
            found += heard(source, lambda found: bool(ids_in(found)))
    assert [one.text for one in ids_in(found)] == ["9"]


def test_check_reaches_the_source_of_the_ids(tmp_path: Path) -> None:
    def findings(table: dict[str, Any], port: int) -> list[tuple[str, ExitCode]]:
        document = {"broker": {"port": port}, "camera": {"line": {"kind": "simulated", "part_id": table}}}
        found = part_ids(from_document(document, "station.toml", tmp_path, {}), running=False)
        return [(one.line, one.code) for one in found]

    what = "part ids of camera line"
    modbus = {"kind": "modbus_tcp", "host": "127.0.0.1", "address": 0}
    with Mosquitto(tmp_path) as broker, ModbusServer() as plc:
        good = [f"ok    {what}: reached, waits for ids"]
        assert [line for line, _ in findings({"kind": "mqtt", "topic": "parts"}, broker.port)] == good
        assert [line for line, _ in findings({**modbus, "port": plc.port, "unit_id": PLC}, broker.port)] == good
        ((line, code),) = findings({**modbus, "port": plc.port, "address": 5}, broker.port)
        assert code is ExitCode.SENSORS
        assert "unit 1: Modbus exception 2 (illegal data address) for holding 5 to 5" in line
        assert not findings({"kind": "counter"}, broker.port)


# The station


def judged(folder: Path, document: dict[str, Any], distinct: dict[UUID, Verdict], count: int) -> None:
    """Let the station run until there are so many verdicts in all."""
    with Mosquitto(folder) as broker, Listener(broker.port) as listener:
        with running(folder, {"broker": {"port": broker.port}, **document}) as station_:
            # A new broker knows nothing: what the first one acknowledged comes once more.
            listener.wait_until(lambda got: len({*distinct, *(one.id for one in verdicts(got))}) >= count, 120)
            eventually(lambda: station_.health().cameras["c"].account.pending == 0)
        distinct.update((one.id, one) for one in verdicts(listener.received))


def test_the_names_of_files_are_ids_and_one_that_comes_again_is_doubled_also_after_a_restart(tmp_path: Path) -> None:
    distinct: dict[UUID, Verdict] = {}
    write_pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "003.png").rename(tmp_path / "in" / "x.png")
    table = {"kind": "file_name", "pattern": r"(?:zz)?(\d+)\.png", "required": True}
    judged(tmp_path, folder_camera(tmp_path / "in", part_id=table), distinct, 4)
    write_pictures(tmp_path / "again", 2)
    (tmp_path / "again" / "000.png").rename(tmp_path / "again" / "zz000.png")
    (tmp_path / "again" / "001.png").rename(tmp_path / "again" / "zz009.png")
    judged(tmp_path, folder_camera(tmp_path / "again", part_id=table), distinct, 6)
    found = sorted(distinct.values(), key=lambda one: (one.epoch, one.sequence))
    assert [(one.part_id, one.part_id_state, one.outcome, one.reasons) for one in found] == [
        ("000", STATES.JOINED, Outcome.OK, ()),
        ("001", STATES.JOINED, Outcome.OK, ()),
        ("002", STATES.JOINED, Outcome.OK, ()),
        (None, STATES.UNREADABLE, Outcome.UNKNOWN, (Reason.PART_ID,)),
        ("000", STATES.DOUBLED, Outcome.UNKNOWN, (Reason.PART_ID,)),
        ("009", STATES.JOINED, Outcome.OK, ()),
    ]
    ended: Ended = station("journal", "export", "--data-dir", tmp_path / "data", "--part", "000", folder=tmp_path)
    assert [json.loads(line)["message"]["sequence"] for line in ended.stdout.splitlines()] == [1, 1]
    assert not station("journal", "export", "--data-dir", tmp_path / "data", "--part", "0", folder=tmp_path).stdout


def test_a_station_without_the_source_of_its_ids_says_so_and_goes_on(tmp_path: Path) -> None:
    table = {"kind": "modbus_tcp", "host": "127.0.0.1", "port": free_port(), "address": 0}
    document = {"camera": {"c": {"kind": "simulated", "rate_fps": 20.0, "part_id": table}}}
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        with running(tmp_path, {"broker": {"port": broker.port}, **document}) as station_:
            listener.wait_until(has_verdicts(5))
            (fault,) = [one for one in station_.faults() if one.what == "part ids c"]
        found = verdicts(listener.received)
    assert "Connection refused" in fault.reason
    assert {one.part_id_state for one in found} <= {STATES.SOURCE_FAULT, STATES.NOT_AWAITED}
    assert all(
        one.latency_ms.total
        == pytest.approx(
            one.latency_ms.part_id
            + one.latency_ms.queue
            + one.latency_ms.quality
            + one.latency_ms.preprocess
            + one.latency_ms.inference
            + one.latency_ms.judge,
            abs=0.1,
        )
        for one in found
    )


def test_a_code_is_looked_for_in_its_region_only(tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    (tmp_path / "in").mkdir()
    quiet = Sight(noise=0, blur_px=0)
    pixels = np.full((640, 640), 150, np.uint8)
    for text, left in (("LEFT", 20), ("RIGHT", 400)):
        code = qr_code(text)
        pixels[100 : 100 + code.shape[0], left : left + code.shape[1]] = code
    cv2.imwrite(str(tmp_path / "in" / "a.png"), pixels)
    cv2.imwrite(str(tmp_path / "in" / "b.png"), part(np.full((8, 8), 255, np.uint8), quiet, chance)[0])
    region = {"x_px": 380, "y_px": 60, "width_px": 240, "height_px": 240}
    cameras = {
        name: {"kind": "folder", "path": str(tmp_path / "in"), "part_id": {"kind": "code", "symbols": "qr", **keys}}
        for name, keys in (("whole", {}), ("region", {"region": region}), ("pattern", {"pattern": "L.*"}))
    }
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        with running(tmp_path, {"broker": {"port": broker.port}, "camera": cameras}):
            listener.wait_until(has_verdicts(6))
        found = {(one.camera, one.source): (one.part_id, one.part_id_state) for one in verdicts(listener.received)}
    none = (None, STATES.UNREADABLE)
    assert [found[name, "b.png"] for name in cameras] == [none] * 3
    assert found["whole", "a.png"] == (None, STATES.AMBIGUOUS)
    assert found["region", "a.png"] == ("RIGHT", STATES.JOINED)
    assert found["pattern", "a.png"] == ("LEFT", STATES.JOINED)
