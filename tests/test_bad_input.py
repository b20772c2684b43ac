"""Commands, configurations and journal files that nobody meant to write: each is refused with a reason, none crashes.

``FAULTS=long python -m pytest tests/test_bad_input.py`` takes 10,000 of each.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from delivery_helpers import FakeClock, message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from station.__main__ import main
from station.adapters.memory import MemoryJournal, MemoryPublisher
from station.adapters.sqlite_journal import SqliteJournal, verify
from station.commander import UNREADABLE, Commander
from station.configuration_text import TEMPLATE
from station.control import CameraControl
from station.errors import ConfigurationError, StorageError
from station.mailbox import Mailbox, Overflow
from station.messages import ChangeoverResult, Incoming, ModelRef, Outgoing, Response, Selection, Verb
from station.operations import Operations
from station.recorder import Recorder
from station.requests import MAX_BYTES
from station.settings import CommandSettings, JournalSettings, load
from station.wire import decode, request_topic, response_topic

LONG = os.environ.get("FAULTS") == "long"
pytestmark = pytest.mark.timeout(3600 if LONG else 300)


def examples(short: int) -> settings:
    return settings(
        max_examples=10_000 if LONG else short,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# Commands

VALID: dict[Verb, dict[str, Any]] = {
    Verb.REPLAY: {"transaction": "t", "camera": "top", "epoch": 1, "first_sequence": 1, "last_sequence": 5},
    Verb.PAUSE: {"transaction": "t", "camera": "top", "duration_s": 5.0, "reason": "cleaning"},
    Verb.RESUME: {"transaction": "t", "camera": "top"},
    Verb.SNAPSHOT: {"transaction": "t", "camera": "top", "within_s": 5.0},
    Verb.SET_THRESHOLD: {"transaction": "t", "camera": "top", "threshold": 0.5},
    Verb.RELOAD_BUNDLE: {"transaction": "t"},
    Verb.ACKNOWLEDGE: {"transaction": "t", "group": "press", "alarm": "high", "by": "me"},
    Verb.SHELVE: {"transaction": "t", "group": "press", "alarm": "high", "duration_s": 60.0},
}
KEYS = sorted({key for request in VALID.values() for key in request} | {"since", "until", "valid_until", "verb", ""})
numbers = st.one_of(
    st.integers(), st.sampled_from([2**63 - 1, 2**63, -(2**63), 10**400, -1, 0]), st.floats(allow_nan=True)
)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        numbers,
        st.text(max_size=80),
        st.datetimes().map(lambda at: at.isoformat() + "Z"),
        st.sampled_from(
            ["top", "nobody", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "\x00", "a/b", "+", "#"]
        ),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
verbs = st.one_of(st.sampled_from([verb.value for verb in Verb]), st.text(max_size=40))
edits = st.lists(st.tuples(st.sampled_from(KEYS), st.one_of(st.just(...), values)), max_size=4)


@st.composite
def payloads(draw: st.DrawFn, verb: str) -> bytes:
    """A request as it should be with something wrong, some other JSON, or no JSON at all."""
    kind = draw(st.sampled_from(["edited", "edited", "edited", "cut", "json", "bytes", "huge", "deep", "repeated"]))
    request = dict(VALID.get(Verb(verb), {}) if verb in list(Verb) else {"transaction": "t"})
    if kind == "json":
        return json.dumps(draw(values)).encode("utf-8", "surrogatepass")
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "huge":
        return json.dumps({**request, "camera": "x" * draw(st.integers(MAX_BYTES - 200, 4 * MAX_BYTES))}).encode()
    if kind == "deep":
        depth = draw(st.integers(1, MAX_BYTES // 2))
        return b'{"transaction": "t", "camera": ' + b"[" * depth + b"]" * depth + b"}"
    for key, value in draw(edits):
        if value is ...:
            request.pop(key, None)
        else:
            request[key] = value
    text = json.dumps(request).encode("utf-8", "surrogatepass")
    if kind == "repeated":
        return text[:-1] + b', "transaction": 7}'
    if kind == "cut":
        begin = draw(st.integers(0, len(text)))
        return text[:begin] + draw(st.binary(max_size=3)) + text[begin + draw(st.integers(0, 5)) :]
    return text


@st.composite
def requests(draw: st.DrawFn) -> Incoming:
    verb = draw(verbs)
    answer_to = draw(st.one_of(st.none(), st.text(max_size=20), st.sampled_from(["plc/a", "inspection/s/status", "#"])))
    return Incoming(
        topic=request_topic("s", verb),
        payload=draw(payloads(verb)),
        retained=draw(st.integers(0, 9)) == 0,
        answer_to=answer_to,
        correlation=draw(st.one_of(st.none(), st.binary(max_size=20))),
    )


class Commanded:
    """Everything behind a request but the broker: the station's own handlers over a journal in memory."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.recorded: list[Outgoing] = []
        self.publisher = MemoryPublisher()
        self.publisher.connect(session_present=True)
        journal = MemoryJournal(self.clock)
        journal.commit([message(number) for number in range(1, 6)], ())
        recorder = Recorder(
            station="s",
            epoch=1,
            journal=journal,
            publisher=self.publisher,
            mailbox=Mailbox(10, Overflow.BLOCK),
            clock=self.clock,
            window=8,
            replay_window_s=60,
        )
        operations = Operations(
            CommandSettings(),
            self.clock,
            archive=journal,
            recorder=recorder,
            cameras={"top": CameraControl()},
            keeps_evidence=True,
            reload=lambda cameras, _: {name: ModelRef(name="m", version="1", sha256="0") for name in cameras},
            change_product=lambda request, _: ChangeoverResult(product=request.product or "a", former="b", took_ms=1.0),
        )
        self.commander = Commander(
            station="s",
            allow=frozenset(Verb) - {Verb.RESUME},
            handlers=operations.handlers(),
            clock=self.clock,
            record=self.recorded.append,
            copy=self.publisher.copy,
        )


@examples(300)
@given(asked=st.lists(requests(), min_size=1, max_size=3))
def test_whatever_comes_as_a_request_is_answered_once_with_a_reason(
    asked: list[Incoming], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    station = Commanded()
    for one in asked:
        station.commander.handle(one)
    station.clock.pass_s(4000)
    station.commander.look()
    assert not station.commander.is_waiting
    answers = [decode(Response, one.payload) for one in station.recorded]
    # Of those with the same transaction that came while the first was under way, only the first is answered.
    expected = sum(not one.retained for one in asked)
    assert min(expected, 1) <= len(answers) <= expected
    for message_, answer in zip(station.recorded, answers, strict=True):
        assert answer.accepted == (answer.reason is None) == (answer.result is not None)
        assert message_.topic == response_topic("s", answer.verb)
        assert answer.verb == UNREADABLE or answer.verb.replace("-", "").isalpha()
        assert answer.reason is None or (answer.reason.isprintable() and 5 < len(answer.reason) < 400), answer.reason
    for topic, _, _ in station.publisher.copies:
        assert topic
        assert not topic.startswith(("inspection/s/status", "$", "#"))
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


# Configurations

TOKENS = (
    *(
        "true",
        "-1",
        "0",
        "1e400",
        "nan",
        "-inf",
        '""',
        '"x"',
        "[]",
        "{}",
        "2026-01-01",
        "07:32:00",
        "0x1F",
        "''",
        "[[]]",
    ),
    *('"\\u0000"', '"../../.."', '"/dev/null"', "99999999999999999999", "1.5", "[1, 2]", "{a = 1}", '"""', "é", "\x00"),
)


@st.composite
def configurations(draw: st.DrawFn) -> bytes:
    """The configuration that `station init` writes, with everything in it switched on, and some of it spoilt."""
    lines = [
        line[2:] if line.startswith("# ") and (" = " in line or line.startswith("# [")) and "`" not in line else line
        for line in TEMPLATE.format(file="f").splitlines()
    ]
    if draw(st.booleans()):
        lines = TEMPLATE.format(file="f").splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["value", "value", "value", "key", "drop", "twice", "table", "text"])):
            case "value" if " = " in lines[at]:
                lines[at] = lines[at].split(" = ")[0] + " = " + draw(st.sampled_from(TOKENS))
            case "key" if " = " in lines[at]:
                lines[at] = draw(st.text(max_size=12)) + " = " + lines[at].split(" = ", 1)[1]
            case "drop":
                del lines[at]
                lines = lines or [""]
            case "twice":
                lines.insert(at, lines[at])
            case "table":
                lines.insert(at, f"[{draw(st.sampled_from(['camera', 'broker', 'camera.x', 'a.b', 'commands', '']))}]")
            case _:
                lines.insert(at, draw(st.text(max_size=20)))
    spoilt = "\n".join(lines).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(spoilt)))
        spoilt = spoilt[:at] + draw(st.binary(max_size=4)) + spoilt[at:]
    return spoilt


def called(*arguments: object) -> tuple[int, str]:
    """Exit code and standard error of a command in this process."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = main([str(one) for one in arguments])
    return code, err.getvalue()


@examples(300)
@given(text=configurations())
def test_whatever_stands_in_a_configuration_is_taken_or_refused_with_exit_78(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "station.toml"
    path.write_bytes(text)
    try:
        load(path, {})
    except ConfigurationError as exc:
        reason = str(exc)
        assert all(line.startswith(f"{path}: ") for line in reason.splitlines())
        code, told = called("check", "--offline", "--config", path)
        assert code == 78
        assert told.startswith(f"station check: {path}: ")
        assert "Traceback" not in told


@examples(200)
@given(
    environment=st.dictionaries(
        st.one_of(
            st.text(alphabet=st.characters(exclude_characters="=\0", exclude_categories=["Cs"]), max_size=30),
            st.sampled_from(
                ["BROKER__HOST", "BROKER__PORT", "CAMERA__LINE1__KIND", "STATION__NAME", "VERSION__X", "__"]
            ),
        ).map(lambda name: f"STATION_{name}"),
        st.one_of(st.text(max_size=20), st.sampled_from(TOKENS)),
        max_size=4,
    )
)
def test_whatever_stands_in_the_environment_is_taken_or_refused(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "station.toml"
    path.write_text(TEMPLATE.format(file="f"), encoding="utf-8")
    with contextlib.suppress(ConfigurationError):
        load(path, environment)


# Journal files


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: 10,000 files wait long for a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal file with everything in it: verdicts of two cameras, delivered, waiting, pruned, asked for again."""
    path = tmp_path_factory.mktemp("whole") / "journal.sqlite"
    clock = FakeClock()
    with SqliteJournal(path, JournalSettings(max_age_days=1), station="line-1", clock=clock) as journal:
        for number in range(1, 60):
            rows = journal.commit([message(number), message(number, camera="side")], ())
            if number < 50:
                journal.commit((), [row.row for row in rows])
            clock.pass_s(3600)
        journal.begin_replays(journal.find(_all_of("top")))
        journal.replay_next(5)
    assert verify(path).pruned
    return path


def _all_of(camera: str) -> Selection:
    return Selection(camera=camera, epoch=1, first_sequence=1, last_sequence=100)


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    kinds = st.sampled_from(["flip", "flip", "flip", "write", "cut", "zero", "grow", "garbage", "header"])
    return draw(st.lists(st.tuples(kinds, st.floats(0, 1), st.binary(min_size=1, max_size=64)), min_size=1, max_size=6))


def damaged(content: bytes, damage: list[tuple[str, float, bytes]]) -> bytes:
    found = bytearray(content)
    for kind, share, data in damage:
        at = int(share * max(0, len(found) - 1))
        match kind:
            case "flip" if found:
                found[at] ^= data[0] or 1
            case "write":
                found[at : at + len(data)] = data
            case "cut":
                del found[at:]
            case "zero":
                begin = at // 4096 * 4096
                found[begin : begin + 4096] = bytes(len(found[begin : begin + 4096]))
            case "grow":
                found += data * 100
            case "header" if len(found) >= 100:
                found[at % 100] = data[0]
            case "garbage":
                found = bytearray(data * 50)
    return bytes(found)


@examples(200)
@given(damage=damages())
def test_whatever_is_in_a_journal_file_it_is_read_mended_or_refused(
    whole: Path, damage: list[tuple[str, float, bytes]], fast_path: Path
) -> None:
    folder = fast_path / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "journal.sqlite"
    path.write_bytes(damaged(whole.read_bytes(), damage))
    for action in (
        ("verify",),
        ("stats",),
        ("stats", "--json"),
        ("export",),
        ("export", "--format=csv", "--outcome=ok"),
    ):
        code, told = called("journal", *action, "--file", path)
        assert code in (0, 1), told
        assert (code == 0) == (told == ""), told
        assert told.startswith("station journal: ") or not told, told
        assert "Traceback" not in told
    before = path.read_bytes()
    code, told = called("journal", "repair", "--file", path, "--name", "line-1")
    assert code == 0, told
    assert verify(path).fault is None
    kept = [one.read_bytes() for one in folder.iterdir() if one.name.startswith("journal.sqlite.corrupt-")]
    # What was damaged is still there to be looked at, and what was whole is untouched.
    assert before in kept or path.read_bytes()[100:] == before[100:]


@examples(200)
@given(damage=damages())
def test_a_station_goes_on_with_whatever_is_in_its_journal_file(
    whole: Path, damage: list[tuple[str, float, bytes]], fast_path: Path
) -> None:
    folder = fast_path / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "journal.sqlite"
    path.write_bytes(damaged(whole.read_bytes(), damage))
    with SqliteJournal(path, JournalSettings(), station="line-1", clock=FakeClock()) as journal:
        assert journal.open_epoch() > 0
        rows = journal.commit([message(101), message(102, camera="side")], ())
        waiting = {row.row for row in journal.pending(0, 10_000)}
        assert {row.row for row in rows[:2]} <= waiting
        while journal.replay_next(7) is not None:
            pass
        journal.commit([message(103)], sorted(waiting))
        with contextlib.suppress(StorageError):
            journal.find(_all_of("top"))
        assert journal.health().durable
