"""Part ids that come by themselves, joined by a real station, against numbers that the camera stamps into its pictures.

The camera, the scanner that announces the parts, the broker and the PLC stand outside the station. What the station
made of a frame is read back from the picture that it kept as evidence.
"""

import json
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_codes import Sight, part, qr_code
from fault_tools import LONG, StationProcess, station_process, table
from modbus_server import PLC, ModbusServer
from mosquitto import Listener, Mosquitto, Received, wait_for
from numbered_camera import BITS, CELL_PX, CHECK_BITS, COLUMNS, MODULUS, NumberedCameras, numbered_cameras
from pymodbus.client import ModbusTcpClient

from station.messages import Health, Outcome, PartIdState, Pixels, Reason, Verdict
from station.wire import decode

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900 if LONG else 300)]

PARTS = 450 if LONG else 60
"""That each camera sees, at least."""
CAMERAS = 4 if LONG else 1
RATE_FPS = 2.5 if LONG else 4.0
WINDOW_S = 0.15 if LONG else 0.1
JITTER_S = 0.4 * WINDOW_S
"""Of the time that the scanner tells. What is left of the time between two parts is for a busy computer."""
ARRIVAL_S = 0.3
"""A message takes up to this long."""
BEHIND_S = 0.2
"""The id comes so long after the frame, where its time is that of its arrival."""
CODES = 600 if LONG else 25
MISHAPS = ("lost", "late", "doubled", "unreadable", "twice", "stranger")
TOPIC = "hall/scanner"

CONFIGURATION = """\
version = 1
[station]
name = "line-1"
data_dir = "data"
health_interval_s = 0.5
[broker]
port = {port}
[evidence]
ok_share = 1.0
"""
CAMERA = """\
[camera.live{number}]
kind = "stream"
url = "{url}"
buffer_frames = 64
late_after_ms = 5000
[camera.live{number}.part_id]
window_s = {window_s}
{part_id}
"""


def configuration(broker: Mosquitto, cameras: NumberedCameras, part_id: str) -> str:
    tables = [
        CAMERA.format(number=number, url=cameras.url, window_s=WINDOW_S, part_id=part_id) for number in range(CAMERAS)
    ]
    return CONFIGURATION.format(port=broker.port) + "".join(tables)


def number_in(pixels: Pixels) -> int:
    """The number that the camera stamped into a picture."""
    word = 0
    for bit in range(BITS):
        row, column = divmod(bit, COLUMNS)
        grey = int(pixels[CELL_PX * row + CELL_PX // 2, CELL_PX * column + CELL_PX // 2])
        word |= int(grey > 125 if row == 1 else grey < 125) << bit
    number, check = word >> CHECK_BITS, word & ((1 << CHECK_BITS) - 1)
    assert number % MODULUS == check
    return number


@contextmanager
def following(cameras: NumberedCameras, announce: Callable[[int, float], None]) -> Iterator[None]:
    """Call this with each exposed picture's number and wall time."""
    stop = threading.Event()

    def work() -> None:
        done = 0
        while not stop.wait(0.002):
            sent = cameras.sent("live")
            for one in sent[done:]:
                announce(one.number, one.at_s)
            done = len(sent)

    thread = threading.Thread(target=work, name="following")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Later:
    """Does things at their times, in a thread of its own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="later")

    def __enter__(self) -> "Later":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def at(self, wall_s: float, act: Callable[[], None]) -> None:
        with self._changed:
            self._due.append((wall_s, act))
            self._due.sort(key=lambda item: item[0])
            self._changed.notify()

    def _work(self) -> None:
        with self._changed:
            while not self._stopped:
                if self._due and self._due[0][0] <= time.time():
                    self._due.pop(0)[1]()
                    continue
                self._changed.wait(self._due[0][0] - time.time() if self._due else None)


def verdicts(received: Sequence[Received]) -> list[Verdict]:
    return [decode(Verdict, one.payload) for one in received if one.topic.endswith("/verdict")]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a camera's picture showed, and what the station said of it."""

    number: int
    verdict: Verdict

    @property
    def is_joined(self) -> bool:
        return self.verdict.part_id_state is PartIdState.JOINED


def seen_by(folder: Path, found: Sequence[Verdict]) -> list[Seen]:
    """One camera's verdicts with the numbers in their pictures, without those at the beginning and at the end: what is
    under way then has no fair chance."""
    numbers = []
    # A busy disk may have no room for a picture, and then nobody can say what it showed.
    found = [verdict for verdict in found if verdict.evidence is not None]
    for verdict in found:
        assert verdict.evidence is not None
        path = folder / "data" / verdict.evidence
        wait_for(path.exists)
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        numbers.append(number_in(np.asarray(pixels, np.uint8)))
    assert numbers == sorted(set(numbers))
    first, last = numbers[0] + 2, numbers[-1] - 2 * RATE_FPS
    return [Seen(number, one) for number, one in zip(numbers, found, strict=True) if first <= number <= last]


def show(what: str, found: Sequence[Seen], mishaps: dict[int, str]) -> None:
    """The table, and what must hold: no wrong id, all that was in order joined, and the rest flagged."""
    states = Counter(one.verdict.part_id_state for one in found)
    wrong = [one for one in found if one.is_joined and one.verdict.part_id != name(one.number)]
    good = [one for one in found if mishaps.get(one.number) in (None, "twice")]
    table(
        what,
        {
            "parts": len(found),
            "joined": states[PartIdState.JOINED],
            **{f"flagged {state}": states[state] for state in PartIdState if state is not PartIdState.JOINED},
            "wrong": len(wrong),
            **{f"mishap: {kind}": n for kind, n in Counter(mishaps.get(one.number, "none") for one in found).items()},
            "ids in order": len(good),
            "joined of these (%)": 100 * sum(one.is_joined for one in good) / len(good),
            "longest wait (ms)": max(one.verdict.latency_ms.part_id for one in found),
        },
    )
    assert not wrong
    for one in found:
        assert mishaps.get(one.number) in (None, "twice", "stranger") or not one.is_joined, one
    assert sum(one.is_joined for one in good) >= 0.999 * len(good), [one for one in good if not one.is_joined]


def name(number: int) -> str:
    return f"P{number:07}"


def watched(folder: Path, listener: Listener, station: StationProcess) -> list[Seen]:
    """Let the parts pass, stop the station, and return what each camera saw."""
    enough = PARTS * CAMERAS
    listener.wait_until(
        lambda received: sum(one.topic.endswith("/verdict") for one in received) >= enough, PARTS / RATE_FPS + 120
    )
    assert station.stop() == 0
    found = verdicts(listener.received)
    health = [decode(Health, one.payload) for one in listener.received if one.topic.endswith("/health")][-1]
    seen = []
    for camera, figures in health.cameras.items():
        own = [one for one in found if one.camera == camera]
        assert figures.part_ids is not None
        assert (sum(figures.part_ids.states.values()), figures.part_ids.waiting) == (len(own), 0)
        seen += seen_by(folder, own)
    return seen


@pytest.mark.parametrize("told", [True, False], ids=["time told", "time of arrival"])
def test_ids_from_mqtt_under_jitter_are_joined_or_flagged_and_never_wrong(tmp_path: Path, told: bool) -> None:
    chance = random.Random(11)
    mishaps: dict[int, str] = {}
    part_id = f'kind = "mqtt"\ntopic = "{TOPIC}"\n'
    if told:
        part_id += f'path = "part.id"\ntime_path = "at"\narrival_within_s = {ARRIVAL_S + 0.1}\n'
    else:
        part_id += f"lead_s = {-BEHIND_S}\n"

    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        numbered_cameras(RATE_FPS, tmp_path) as (cameras, _),
        station_process(tmp_path, configuration(broker, cameras, part_id)) as station,
        Later() as later,
    ):

        def announce(number: int, at_s: float) -> None:
            mishap = chance.choices(["", *MISHAPS], [88, *[2] * len(MISHAPS)])[0]
            if number in mishaps or (mishap == "doubled" and number - 1 in mishaps) or (mishap == "late" and not told):
                # Two at once, and a delay that nobody tells of, are beyond what can be told apart.
                mishap = ""
            elif mishap:
                mishaps[number] = mishap
            at_s += chance.uniform(-JITTER_S, JITTER_S)
            stranger_s = at_s + chance.uniform(0.2, 0.8) / RATE_FPS
            if mishap == "stranger":
                mishaps[number + 1] = mishap
                say("X1", stranger_s)
            text = {"doubled": name(number - 1), "unreadable": f"P{number}\0{number}"}.get(mishap, name(number))
            for _ in range({"lost": 0, "twice": 2}.get(mishap, 1)):
                say(text, at_s, late=mishap == "late")

        def say(text: str, at_s: float, *, late: bool = False) -> None:
            if told:
                message = json.dumps({"part": {"id": text}, "at": at_s}).encode()
                takes_s = 2.0 if late else chance.uniform(JITTER_S, ARRIVAL_S)
            else:
                message, takes_s = text.encode(), BEHIND_S + (0.5 / RATE_FPS if late else 0.0)
            later.at(at_s + takes_s, lambda: listener.publish(TOPIC, message))

        station.start()
        with following(cameras, announce):
            found = watched(tmp_path, listener, station)
    show(f"part ids from MQTT, {'time told' if told else 'time of arrival'}", found, mishaps)


def test_ids_from_a_plc_under_jitter_are_joined_or_flagged_and_never_wrong(tmp_path: Path) -> None:
    chance = random.Random(12)
    mishaps: dict[int, str] = {}
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        numbered_cameras(RATE_FPS, tmp_path) as (cameras, _),
        ModbusServer() as plc,
        ModbusTcpClient("127.0.0.1", port=plc.port) as program,
        Later() as later,
    ):
        part_id = f"""\
kind = "modbus_tcp"
host = "127.0.0.1"
port = {plc.port}
unit_id = {PLC}
lead_s = {-BEHIND_S}
address = 0
type = "text"
registers = 4
sequence = 4
"""
        with station_process(tmp_path, configuration(broker, cameras, part_id)) as station:

            def announce(number: int, at_s: float) -> None:
                mishap = chance.choices(["", "lost", "doubled"], [94, 3, 3])[0]
                if mishap == "doubled" and number - 1 in mishaps:
                    mishap = ""
                if mishap:
                    mishaps[number] = mishap
                if mishap == "lost":
                    return
                text = name(number - (mishap == "doubled"))
                registers = [*struct.unpack(">4H", text.encode()), number % 65_536]
                at_s += BEHIND_S + chance.uniform(-JITTER_S, JITTER_S) / 2
                later.at(at_s, lambda: program.write_registers(0, registers, device_id=PLC))

            station.start()
            with following(cameras, announce):
                found = watched(tmp_path, listener, station)
    show("part ids from Modbus registers", found, mishaps)


def test_codes_in_pictures_are_read_or_flagged_and_never_wrong(tmp_path: Path) -> None:
    chance = np.random.default_rng(13)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    kinds = {}
    for number in range(CODES):
        kind = str(chance.choice(["", "none", "two", "covered", "noise"], p=[0.8, 0.05, 0.05, 0.05, 0.05]))
        sight = Sight(
            noise=60.0 if kind == "noise" else float(chance.uniform(0, 5)),
            blur_px=float(chance.uniform(0.3, 0.8)),
            turn_degrees=float(chance.uniform(-5, 5)),
            contrast=float(chance.uniform(0.4, 0.9)),
            dirt=0.6 if kind == "covered" else 0.0,
        )
        codes = [qr_code(name(number), 6), *([qr_code("P9999999", 5)] if kind == "two" else [])]
        if kind == "none":
            codes = [np.full((8, 8), 255, np.uint8)]
        file = f"{number:05}.png"
        kinds[file] = kind
        cv2.imwrite(str(pictures / file), part(codes[0], sight, chance, *codes[1:])[0])
    document = """\
version = 1
[station]
name = "line-1"
data_dir = "data"
[evidence]
enabled = false
[broker]
port = {port}
[camera.files]
kind = "folder"
path = "pictures"
part_id = {{ kind = "code", symbols = "qr", pattern = 'P\\d{{7}}', required = true }}
"""
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        station_process(tmp_path, document.format(port=broker.port)) as station,
    ):
        station.start()
        listener.wait_until(
            lambda received: sum(one.topic.endswith("/verdict") for one in received) >= CODES, CODES + 120
        )
        assert station.stop() == 0
        found = verdicts(listener.received)
    usual = [verdict for verdict in found if not kinds[verdict.source or ""]]
    joined = [verdict for verdict in found if verdict.part_id_state is PartIdState.JOINED]
    wrong = [one for one in joined if one.part_id != name(int((one.source or "").removesuffix(".png")))]
    states = Counter(verdict.part_id_state for verdict in found)
    table(
        "part ids from QR codes in the picture",
        {
            "pictures": len(found),
            "with one whole code": len(usual),
            "joined of these (%)": 100 * sum(one.part_id_state is PartIdState.JOINED for one in usual) / len(usual),
            **{f"state {state}": count for state, count in states.items()},
            "wrong": len(wrong),
            "reading, median (ms)": float(np.median([one.latency_ms.part_id for one in found])),
        },
    )
    assert not wrong
    assert sum(one.part_id_state is PartIdState.JOINED for one in usual) >= 0.999 * len(usual)
    for one in found:
        if one.part_id_state is not PartIdState.JOINED:
            assert one.part_id is None
            assert Reason.PART_ID in one.reasons
            assert one.outcome is not Outcome.OK
        elif kinds[one.source or ""] in ("none", "two"):
            raise AssertionError(f"{one.source}: a code was taken where {kinds[one.source or '']} stood")
