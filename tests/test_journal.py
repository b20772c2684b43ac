"""The journal: durable, chained, bounded, and never in the way."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from delivery_helpers import FakeClock, message, sequences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from station.adapters.memory import MemoryJournal
from station.adapters.sqlite_journal import SqliteJournal, export, stats, verify
from station.errors import StorageError
from station.messages import Gap, Outcome, Outgoing, Replayed, Selection
from station.ports import Journal
from station.settings import JournalSettings
from station.wire import decode

SMALL = JournalSettings(max_bytes=1_000_000)
Open = Callable[[], SqliteJournal]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "journal.sqlite"


@pytest.fixture
def opening(path: Path, clock: FakeClock) -> Open:
    return lambda: SqliteJournal(path, SMALL, station="line-1", clock=clock)


@pytest.fixture(params=["sqlite", "memory"])
def any_journal(request: pytest.FixtureRequest, opening: Open, clock: FakeClock) -> Iterator[Journal]:
    journal: Journal = opening() if request.param == "sqlite" else MemoryJournal(clock)
    with journal:
        yield journal


def gaps_in(path: Path) -> list[Gap]:
    return [decode(Gap, row.message.payload) for row in export(path) if row.message.kind == "gap"]


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement, values)
        database.commit()


# What the real journal and the one in memory share


def test_what_is_committed_is_pending_until_it_is_acknowledged(any_journal: Journal) -> None:
    sent = [message(number) for number in range(1, 6)]
    rows = any_journal.commit(sent, ())
    assert [row.message for row in rows] == sent
    assert [row.row for row in any_journal.pending(0, 10)] == [row.row for row in rows]
    assert [row.row for row in any_journal.pending(rows[1].row, 2)] == [rows[2].row, rows[3].row]
    any_journal.commit([message(6)], [rows[0].row, rows[3].row])
    assert sequences([row.message for row in any_journal.pending(0, 10)]) == [2, 3, 5, 6]
    assert (any_journal.health().rows, any_journal.health().outbox) == (6, 4)
    any_journal.commit([], [row.row for row in any_journal.pending(0, 10)])
    assert any_journal.health().outbox == 0


def test_acknowledging_twice_or_what_is_not_there_changes_nothing(any_journal: Journal) -> None:
    rows = any_journal.commit([message(1)], ())
    for _ in range(2):
        any_journal.commit([message(2)], [rows[0].row])
    assert any_journal.health().outbox == 2


def test_replay_puts_back_what_was_acknowledged_since(any_journal: Journal, clock: FakeClock) -> None:
    rows = any_journal.commit([message(number) for number in range(1, 5)], ())
    any_journal.commit([], [rows[0].row])
    clock.pass_s(100)
    any_journal.commit([], [rows[1].row, rows[2].row])
    assert any_journal.replay(clock.now().timestamp() - 60) == rows[1].row
    assert sequences([row.message for row in any_journal.pending(0, 10)]) == [2, 3, 4]
    assert any_journal.health().outbox == 3
    assert any_journal.replay(clock.now().timestamp() + 1) is None


def test_it_knows_the_last_verdict_of_each_camera_and_the_newest_ones(any_journal: Journal) -> None:
    assert any_journal.last_verdicts() == any_journal.latest(5) == []
    any_journal.commit([message(1), message(1, camera="side"), message(2)], ())
    found = {row.message.camera: row.message.sequence for row in any_journal.last_verdicts()}
    assert found == {"top": 2, "side": 1}
    newest = [(row.message.camera, row.message.sequence) for row in any_journal.latest(2)]
    assert newest == [("side", 1), ("top", 2)]


# The file


def test_everything_survives_closing_and_every_field_makes_the_round_trip(opening: Open, path: Path) -> None:
    sent = [message(1, outcome=Outcome.NG), message(2, outcome=Outcome.UNKNOWN), message(3, camera="side")]
    with opening() as journal:
        first = journal.commit(sent, ())
        journal.commit([], [first[0].row])
        head = journal.health().head
    with opening() as journal:
        assert [row.message for row in journal.pending(0, 10)] == sent[1:]
        assert (journal.health().head, journal.health().rows) == (head, 3)
        assert journal.commit([message(4)], ())[0].row == first[-1].row + 1
    assert [row.message for row in export(path)][:3] == sent
    assert [row.acknowledged_at_s is not None for row in export(path)] == [True, False, False, False]
    counted = stats(path)
    assert (counted.rows, counted.outbox, counted.by_kind) == (4, 3, {"verdict": 4})
    assert counted.by_outcome == {"ng": 1, "unknown": 1, "ok": 2}


def test_each_start_opens_a_larger_epoch_also_when_the_clock_steps_back(opening: Open, clock: FakeClock) -> None:
    epochs = []
    for step_s in (0, -86_400, 5, 5):
        clock.wall_step_s = step_s
        with opening() as journal:
            epochs.append(journal.open_epoch())
    assert epochs == sorted(set(epochs))


def by_sequence(camera: str, epoch: int, first: int, last: int) -> Selection:
    return Selection(camera=camera, epoch=epoch, first_sequence=first, last_sequence=last)


def test_what_is_kept_can_be_looked_for_by_sequence_and_by_time(opening: Open, clock: FakeClock) -> None:
    began_s = clock.now().timestamp()
    with opening() as journal:
        for epoch in (1, 2):
            journal.commit([message(n, epoch=epoch) for n in range(1, 6)], ())
            clock.pass_s(10)
        journal.commit(
            [
                message(1, camera="side", epoch=2),
                replace(message(9), kind="gap", sequence=None, epoch=None, outcome=None),
            ],
            (),
        )
        found = journal.find(by_sequence("top", 2, 2, 99))
        assert [(one.epoch, one.first_sequence, one.last_sequence, one.rows) for one in found] == [(2, 2, 5, 4)]
        assert journal.find(by_sequence("side", 1, 1, 99)) == []
        late = journal.find(Selection(camera=None, since_s=began_s + 10, until_s=began_s + 20))
        assert [(one.camera, one.epoch, one.rows) for one in late] == [("side", 2, 1), ("top", 2, 5)]
        late = journal.find(Selection(camera="top", since_s=began_s, until_s=began_s + 20))
        assert [(one.camera, one.epoch, one.rows) for one in late] == [("top", 1, 5), ("top", 2, 5)]


def test_what_was_asked_for_again_goes_on_after_a_restart(opening: Open) -> None:
    with opening() as journal:
        rows = journal.commit([message(n, epoch=e) for e in (1, 2) for n in range(1, 6)], ())
        journal.commit([], [row.row for row in rows])
        assert journal.replay_next(2) is None
        journal.begin_replays([*journal.find(by_sequence("top", 2, 2, 4)), *journal.find(by_sequence("top", 1, 1, 1))])
        assert journal.health().replays == 2
        assert journal.replay_next(2) == Replayed(rows[6].row)
        assert [(row.message.epoch, row.message.sequence) for row in journal.pending(0, 10)] == [(2, 2), (2, 3)]
    with opening() as journal:
        assert (journal.health().replays, journal.health().outbox) == (2, 2)
        assert journal.replay_next(2) == Replayed(rows[8].row)
        assert journal.replay_next(2) == Replayed(rows[0].row)
        assert journal.replay_next(2) is None
        assert [row.row for row in journal.pending(0, 10)] == [1, 7, 8, 9]
        assert (journal.health().replays, journal.health().outbox) == (0, 4)


def test_a_second_station_on_the_same_file_is_refused(opening: Open) -> None:
    with opening(), pytest.raises(StorageError, match="in use by another station"):
        opening().__enter__()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "file").touch()
    journal = SqliteJournal(tmp_path / "file" / "journal.sqlite", SMALL, station="line-1", clock=clock)
    with pytest.raises(StorageError, match=r"file.* cannot be written"):
        journal.__enter__()


# The chain


@pytest.fixture
def filled(opening: Open, path: Path) -> Path:
    with opening() as journal:
        rows = journal.commit([message(number) for number in range(1, 31)], ())
        journal.commit([], [row.row for row in rows[:10]])
    return path


def test_an_untouched_journal_verifies_and_acknowledgements_are_outside_the_chain(filled: Path, opening: Open) -> None:
    before = verify(filled)
    with opening() as journal:
        journal.commit([], [25])
    after = verify(filled)
    assert (before.fault, before.rows, before.pruned) == (None, 30, 0)
    assert after == before


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE journal SET payload = CAST('{}' AS BLOB) WHERE row = 7", "row 7 does not match its hash"),
        ("UPDATE journal SET outcome = 'ng' WHERE row = 7", "row 7 does not match its hash"),
        ("UPDATE journal SET payload = 'text' WHERE row = 7", "row 7 does not match its hash"),
        ("UPDATE journal SET committed_at = committed_at + 1 WHERE row = 7", "row 7 does not match its hash"),
        ("UPDATE journal SET camera = 'to', epoch = 2 WHERE row = 7", "row 7 does not match its hash"),
        ("DELETE FROM journal WHERE row = 7", "row 7 is missing"),
        ("DELETE FROM journal WHERE row = 1", "row 1 is missing"),
        ("DELETE FROM journal WHERE row = 30", "1 rows of the outbox are missing"),
        ("INSERT INTO pruned VALUES (900, 901, x'00')", "the list of pruned rows was changed"),
    ],
)
def test_what_was_changed_shows(filled: Path, statement: str, found: str) -> None:
    change(filled, statement)
    assert verify(filled).fault == found


def test_a_tail_cut_off_shows_against_a_published_head(filled: Path) -> None:
    head = verify(filled).head
    assert verify(filled, head).fault is None
    change(filled, "DELETE FROM journal WHERE row = 30")
    change(filled, "DELETE FROM outbox WHERE row = 30")
    assert verify(filled).fault is None
    assert verify(filled, head).fault == f"no row has the hash {head}: the end is cut off"


def test_damaged_pages_cost_an_export_their_own_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with SqliteJournal(path, JournalSettings(), station="s", clock=FakeClock()) as journal:
        for begin in range(1, 3001, 500):
            journal.commit([message(number) for number in range(begin, begin + 500)], ())
    content = bytearray(path.read_bytes())
    page = len(content) // 4096 // 2 * 4096
    content[page : page + 4096] = bytes(4096)
    path.write_bytes(content)
    damaged: list[tuple[int, int]] = []
    rows = [row.row for row in export(path, unreadable=lambda first, last: damaged.append((first, last)))]
    missing = sorted(set(range(1, 3001)) - set(rows))
    assert rows == sorted(rows)
    assert 0 < len(missing) < 20
    assert set(missing) <= {number for first, last in damaged for number in range(first, last + 1)}
    with pytest.raises(StorageError):
        list(export(path))


def test_a_later_version_may_have_added_a_column(filled: Path) -> None:
    change(filled, "ALTER TABLE journal ADD COLUMN line TEXT")
    with SqliteJournal(filled, JournalSettings(), station="s", clock=FakeClock()) as journal:
        journal.commit([message(31)], ())
    assert verify(filled).fault is None
    assert verify(filled).rows == 31


# Bounds


def size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.iterdir() if ".corrupt-" not in file.name)


def test_a_full_journal_gives_up_the_oldest_acknowledged_rows_first(opening: Open, path: Path) -> None:
    kept_back: list[int] = []
    largest = 0
    with opening() as journal:
        for start in range(1, 2500, 100):
            rows = journal.commit([message(start + number) for number in range(100)], ())
            journal.commit([], [row.row for row in rows[1:]])
            kept_back.append(rows[0].row)
            largest = max(largest, size_bytes(path))
        assert [row.row for row in journal.pending(0, 1000)] == kept_back
        assert journal.health().size_bytes <= SMALL.max_bytes
    checked = verify(path)
    assert checked.fault is None
    assert checked.pruned >= 1000
    assert largest <= SMALL.max_bytes
    assert gaps_in(path) == []
    change(path, "UPDATE pruned SET last = last WHERE first = (SELECT min(first) FROM pruned)")
    change(path, "DELETE FROM journal WHERE row = ?", kept_back[0])
    assert verify(path).fault is not None


def test_what_is_dropped_undelivered_is_declared_exactly_ok_first_then_unknown_then_ng(
    opening: Open, path: Path
) -> None:
    outcomes = (Outcome.OK, Outcome.OK, Outcome.UNKNOWN, Outcome.NG)
    largest = 0
    declared: list[Outgoing] = []
    with opening() as journal:
        for start in range(0, 2000, 100):
            batch = [message(start + n + 1, outcome=outcomes[n % 4]) for n in range(100)]
            rows = journal.commit(batch, ())
            assert [row.message for row in rows[:100]] == batch
            declared += [row.message for row in rows[100:]]
            largest = max(largest, size_bytes(path))
        left = [row.message for row in journal.pending(0, 10_000)]
    assert largest <= SMALL.max_bytes
    assert verify(path).fault is None
    gaps = gaps_in(path)
    assert [gap.id for gap in gaps] == [out.id for out in declared]
    assert {(gap.why, gap.what, gap.camera, gap.epoch) for gap in gaps} == {("journal_full", "verdicts", "top", 1)}
    kept = sequences([out for out in left if out.kind == "verdict"])
    assert sum(gap.count or 0 for gap in gaps) + len(kept) == 2000
    for number in set(range(1, 2001)) - set(kept):
        assert any((gap.first_sequence or 0) <= number <= (gap.last_sequence or 0) for gap in gaps)
    assert Outcome.OK not in {out.outcome for out in left[:200]}
    assert sum(out.outcome is Outcome.NG for out in left) > sum(out.outcome is Outcome.UNKNOWN for out in left)


def test_the_oldest_verdicts_can_go_first_whatever_they_say(path: Path, clock: FakeClock) -> None:
    options = JournalSettings(max_bytes=1_000_000, drop_first="oldest")
    with SqliteJournal(path, options, station="line-1", clock=clock) as journal:
        for first in range(1, 2001, 50):
            outcomes = [list(Outcome)[number % 3] for number in range(first, first + 50)]
            journal.commit([message(first + n, outcome=outcome) for n, outcome in enumerate(outcomes)], ())
        left = sequences([row.message for row in journal.pending(0, 10_000)])
    assert left == list(range(left[0], 2001))
    assert sum(gap.count or 0 for gap in gaps_in(path)) == left[0] - 1 > 0


def test_acknowledged_rows_that_are_too_old_go_but_never_a_cameras_last_verdict(path: Path, clock: FakeClock) -> None:
    with SqliteJournal(path, JournalSettings(max_age_days=1), station="line-1", clock=clock) as journal:
        rows = journal.commit([message(number) for number in range(1, 101)], ())
        journal.commit([], [row.row for row in rows[:60]])
        journal.commit([], [rows[99].row])
        clock.pass_s(2 * 86_400)
        for number in range(40):
            journal.commit([message(number + 1, camera="side")], ())
        left = [row.message for row in export(path)]
        assert sequences(left) == list(range(61, 101))
        assert {row.message.camera for row in journal.last_verdicts()} == {"top", "side"}
    assert verify(path).fault is None


# Damage


def flip(path: Path, at: float, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data)


def test_a_file_that_is_no_journal_is_set_aside_and_declared(
    opening: Open, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this was a journal once" * 1000)
    with opening() as journal:
        assert [row.message.kind for row in journal.pending(0, 10)] == ["gap"]
        journal.commit([message(1)], ())
    (gap,) = gaps_in(path)
    assert (gap.why, gap.what, gap.count, gap.camera) == ("journal_corrupt", "verdicts", None, None)
    (aside,) = path.parent.glob("*.corrupt-*")
    assert aside.read_bytes().startswith(b"this was a journal once")
    assert aside.name in caplog.text


def test_a_foreign_database_is_set_aside(opening: Open, path: Path) -> None:
    path.parent.mkdir()
    change(path, "CREATE TABLE recipes (name TEXT)")
    with opening() as journal:
        journal.commit([message(1)], ())
    assert list(path.parent.glob("*.corrupt-*"))
    assert verify(path).fault is None


def test_a_header_that_forbids_writing_is_damage_and_not_a_disk_that_refuses(filled: Path, opening: Open) -> None:
    data = bytearray(filled.read_bytes())
    data[18] = 3
    filled.write_bytes(data)
    with opening() as journal:
        journal.commit([message(31)], ())
        assert sequences([row.message for row in journal.pending(0, 100)])[-1] == 31
    assert list(filled.parent.glob("*.corrupt-*"))
    assert verify(filled).fault is None


def test_a_changed_row_near_the_end_is_found_when_the_journal_is_opened(filled: Path, opening: Open) -> None:
    change(filled, "UPDATE journal SET payload = x'00' WHERE row = 28")
    with opening() as journal:
        journal.commit([message(31)], ())
        kept = sequences([row.message for row in journal.pending(0, 100)])
    assert kept == [*range(11, 28), 29, 30, 31]
    assert [(gap.why, gap.count) for gap in gaps_in(filled)] == [("journal_corrupt", 1)]
    assert verify(filled).fault is None


def test_a_changed_row_is_never_sent(opening: Open, path: Path) -> None:
    with opening() as journal:
        for start in range(1, 501, 100):
            journal.commit([message(start + number) for number in range(100)], ())
    change(path, "UPDATE journal SET payload = x'00' WHERE row = 5")
    with opening() as journal:
        assert not gaps_in(path)
        last = journal.health().rows
        waiting = journal.pending(0, 5000)
        assert [row.message.sequence for row in waiting[:-1]] == [*range(1, 5), *range(6, 501)]
        assert waiting[0].row > last
    assert [(gap.why, gap.count) for gap in gaps_in(path)] == [("journal_corrupt", 1)]


def test_damage_that_shows_while_it_runs_costs_no_new_verdict_and_keeps_numbers_and_epochs_growing(
    filled: Path, opening: Open
) -> None:
    with opening() as journal:
        epoch = journal.open_epoch()
        last = journal.commit([message(31)], ())[-1].row
        change(filled, "UPDATE delivered SET at = at + 1")  # another writer: what the journal has cached is void
        for file in (filled, filled.with_name(filled.name + "-wal")):
            with file.open("r+b") as stream:
                stream.write(b"\xff" * file.stat().st_size)
        rows = journal.commit([message(32)], [last])
        assert rows[0].row > last
        assert sequences([row.message for row in rows]) == [32]
        assert {row.message.kind for row in journal.pending(0, 100)} == {"verdict", "gap"}
    with opening() as journal:
        assert journal.open_epoch() > epoch
    (gap,) = gaps_in(filled)
    assert (gap.why, gap.count) == ("journal_corrupt", 21)
    assert verify(filled).fault is None


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=8), cut=st.floats(0, 1))
def test_a_damaged_file_never_stops_the_journal(
    filled: Path, tmp_path: Path, clock: FakeClock, flips: list[tuple[float, int]], cut: float
) -> None:
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    damaged = folder / "journal.sqlite"
    shutil.copy(filled, damaged)
    for at, bit in flips:
        flip(damaged, at, bit)
    if cut < 0.3:
        os.truncate(damaged, int(damaged.stat().st_size * cut / 0.3))
    with SqliteJournal(damaged, SMALL, station="line-1", clock=clock) as journal:
        rows = journal.commit([message(31), message(32)], ())
        waiting = [row.row for row in journal.pending(0, 1000)]
        assert {row.row for row in rows[:2]} <= set(waiting)
        journal.commit([message(33)], waiting)
    with SqliteJournal(damaged, SMALL, station="line-1", clock=clock) as journal:
        journal.commit([message(34)], ())
        assert sequences([row.message for row in journal.last_verdicts()]) == [34]
    with suppress(StorageError):  # some damage is in places that only a verification reads
        verify(damaged)


# The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, chunk: int = 4096) -> Path:
    """Use up all that is left on a small file system."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(chunk))
        except OSError:
            return ballast


def commit_until_refused(journal: Journal) -> str:
    for number in range(100_000):
        try:
            journal.commit([message(number + 1)], ())
        except StorageError as exc:
            return str(exc)
    raise AssertionError("the disk never became full")


def test_a_full_disk_refuses_whole_commits_takes_a_gap_and_recovers(small_disk: Path, clock: FakeClock) -> None:
    path = small_disk / "journal.sqlite"
    gap = replace(message(1), kind="gap", camera=None, epoch=None, sequence=None, outcome=None)
    with SqliteJournal(path, SMALL, station="line-1", clock=clock) as journal:
        first = journal.commit([message(number) for number in range(1, 21)], ())
        ballast = fill(small_disk)
        refused = commit_until_refused(journal)
        assert "full" in refused or "No space" in refused
        stored = journal.health().rows
        assert not journal.health().durable
        with pytest.raises(StorageError):
            journal.commit([message(number) for number in range(1000, 1100)], [first[0].row])
        assert journal.commit([gap], ())[0].message == gap
        with pytest.raises(StorageError):
            journal.commit([message(number) for number in range(1000, 1100)], [first[0].row])
        assert journal.health().rows == stored + 1
        ballast.unlink()
        journal.commit([message(2000)], [first[0].row])
        assert (journal.health().durable, journal.health().outbox) == (True, stored + 1)
    assert verify(path).fault is None
    with SqliteJournal(path, SMALL, station="line-1", clock=clock) as journal:
        fill(small_disk)
        assert journal.open_epoch() > 0


def test_the_station_can_start_on_a_full_disk(small_disk: Path, clock: FakeClock) -> None:
    path = small_disk / "journal.sqlite"
    with SqliteJournal(path, SMALL, station="line-1", clock=clock) as journal:
        journal.commit([message(1)], ())
        before = journal.open_epoch()
    fill(small_disk, 1)
    with SqliteJournal(path, SMALL, station="line-1", clock=clock) as journal:
        assert journal.open_epoch() > before
        assert sequences([row.message for row in journal.pending(0, 10)]) == [1]


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from delivery_helpers import message
from station.adapters.sqlite_journal import SqliteJournal
from station.adapters.system_clock import SystemClock
from station.settings import JournalSettings

with SqliteJournal(Path(sys.argv[1]), JournalSettings(max_bytes=1_000_000), station="line-1", clock=SystemClock()) as j:
    epoch = j.open_epoch()
    number = 0
    acknowledged = []
    while True:
        batch = [message(number + n + 1, epoch=epoch) for n in range(1 + number % 7)]
        number += len(batch)
        rows = j.commit(batch, acknowledged)
        acknowledged = [row.row for row in rows]
        print(epoch, number, flush=True)
"""


def test_sigkill_in_mid_commit_loses_nothing_that_was_committed(path: Path, opening: Open) -> None:
    tests = Path(__file__).parent
    for round_number in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(tests), str(tests.parent)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(20 + 13 * round_number):
                assert writer.stdout.readline()
            writer.kill()
            said = writer.stdout.read().splitlines()
        epoch, number = (int(word) for word in said[-2].split()) if len(said) > 1 else (0, 0)
        with opening() as journal:
            newest = {row.message.camera: row.message for row in journal.last_verdicts()}["top"]
            assert (newest.epoch or 0, newest.sequence or 0) >= (epoch, number)
        assert verify(path).fault is None
        assert gaps_in(path) == []


# The write-ahead log

MIDDLING = JournalSettings(max_bytes=64_000_000)
LOG_LIMIT_BYTES = 244 * (4096 + 24) + 32
"""A journal of that size allows its log 244 pages."""
A_COMMIT_BYTES = 50 * 4096
"""More than one of 50 messages writes."""


@pytest.fixture
def middling(path: Path, clock: FakeClock) -> Iterator[SqliteJournal]:
    with SqliteJournal(path, MIDDLING, station="line-1", clock=clock) as journal:
        yield journal


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def test_the_log_is_emptied_beside_the_commits_and_written_again_from_its_front(
    middling: SqliteJournal, path: Path
) -> None:
    middling.commit([message(1)], ())
    prepared = log_of(path).stat().st_size
    assert prepared > 60 * 4096
    number = 1
    # What stands in the database itself has left the log, while the journal is open and commits.
    while path.stat().st_size < 1_000_000:
        number += 1
        middling.commit([message(number)], ())
        assert log_of(path).stat().st_size <= LOG_LIMIT_BYTES + A_COMMIT_BYTES
    assert verify(path).rows == number


def test_a_reader_that_holds_the_log_holds_up_no_commit(middling: SqliteJournal, path: Path) -> None:
    middling.commit([message(1)], ())
    number = 1
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM journal").fetchone() == (1,)
        while log_of(path).stat().st_size <= LOG_LIMIT_BYTES + A_COMMIT_BYTES:
            middling.commit([message(number := number + 1) for _ in range(50)], ())
        assert reader.execute("SELECT count(*) FROM journal").fetchone() == (1,)
    while log_of(path).stat().st_size > LOG_LIMIT_BYTES + A_COMMIT_BYTES:
        middling.commit([message(number := number + 1)], ())
        assert number < 2000
    assert verify(path).rows == number
