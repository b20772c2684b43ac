"""From the verdict to the acknowledgement, with every part that can fail failing."""

import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from delivery_helpers import BEGIN, FakeClock, message, sequences, verdict
from hypothesis import given, settings
from hypothesis import strategies as st
from mosquitto import Listener, Mosquitto, wait_for
from recorder_line import all_of, in_order_of_first_arrival, running, verdicts

from station.adapters.memory import MemoryJournal, MemoryPublisher
from station.adapters.sqlite_journal import SqliteJournal, verify
from station.delivery import LIVE_FOR_S
from station.mailbox import Mailbox, Overflow
from station.messages import Gap, Outcome, Outgoing, Selection, Verdict
from station.recorder import MARK_WITHIN_S, REFUSED_AGAIN_S, REFUSED_SETTLE_S, RETRY_S, Recorder
from station.settings import JournalSettings
from station.wire import decode, outgoing


@dataclass
class Bench:
    """A recorder between a journal and a broker in memory."""

    clock: FakeClock = field(default_factory=FakeClock)
    window: int = 8
    spool_bytes: int = 1_000_000
    epoch: int = 1

    def __post_init__(self) -> None:
        self.journal = MemoryJournal(self.clock)
        self.start()

    def start(self, epoch: int = 1) -> None:
        """Begin a new run over the same journal."""
        self.publisher = MemoryPublisher()
        self.mailbox: Mailbox[Outgoing] = Mailbox(1000, Overflow.DROP_NEWEST, self._lost)
        self.recorder = Recorder(
            station="line-1",
            epoch=epoch,
            journal=self.journal,
            publisher=self.publisher,
            mailbox=self.mailbox,
            clock=self.clock,
            window=self.window,
            replay_window_s=60,
            replay_rate_hz=100,
            spool_bytes=self.spool_bytes,
        )

    def _lost(self, message: Outgoing) -> None:
        self.recorder.lost(message)

    def judge(self, *numbers: int, epoch: int = 1, outcome: Outcome = Outcome.OK) -> None:
        for number in numbers:
            self.mailbox.put(message(number, epoch=epoch, outcome=outcome))

    def run(self, steps: int = 1, *, acknowledge: bool = True) -> None:
        for _ in range(steps):
            self.recorder.step(0)
            if acknowledge:
                self.publisher.acknowledge()

    def settle(self) -> None:
        """Until nothing moves any more."""
        for _ in range(200):
            self.run(3)
            self.clock.pass_s(MARK_WITHIN_S)
            if self.recorder.is_idle:
                return

    def is_idle(self) -> bool:
        return self.recorder.is_idle

    def fault(self) -> str | None:
        return self.recorder.fault

    def refusal(self) -> str | None:
        return self.recorder.refusal

    def sent(self, *, historical: bool | None = None) -> list[int]:
        chosen = [row.message for row, lane in self.publisher.sent if historical in (None, lane)]
        return sequences(chosen)

    def gaps(self) -> list[Gap]:
        rows = self.journal.pending(0, 10_000)
        sent = [row for row, _ in self.publisher.sent]
        found = {row.message.id: row.message for row in [*sent, *rows] if row.message.kind == "gap"}
        return [decode(Gap, gap.payload) for gap in found.values()]


def test_a_verdict_is_stored_before_it_is_sent_and_done_when_it_is_acknowledged() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)
    bench.judge(1, 2, 3)
    bench.run(acknowledge=False)
    assert bench.journal.health().rows == 3
    assert bench.sent(historical=False) == [1, 2, 3]
    assert not bench.is_idle()
    bench.publisher.acknowledge()
    bench.run()
    assert bench.journal.health().outbox == 3  # noted with the next commit, or after MARK_WITHIN_S
    bench.clock.pass_s(MARK_WITHIN_S)
    bench.run()
    assert bench.is_idle()
    assert bench.journal.health().outbox == 0
    health = bench.recorder.health
    assert health is not None
    assert (health.rows, health.outbox, health.durable) == (3, 0, True)
    assert bench.recorder.committed == 3


@pytest.mark.parametrize("disk", [True, False])
def test_what_no_broker_takes_stays_in_the_journal_and_holds_nothing_up(disk: bool) -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)
    bench.publisher.largest_bytes = len(message(2).payload) + 100
    bench.journal.refuse = not disk
    bench.judge(1)
    bench.mailbox.put(outgoing(verdict(2).model_copy(update={"source": "x" * 1000})))
    bench.judge(3)
    bench.run(2)
    assert bench.sent() == [1, 3]
    bench.journal.refuse = False
    bench.clock.pass_s(RETRY_S)
    bench.settle()
    assert bench.is_idle()
    assert bench.sent() == [1, 3]
    assert [one.sequence for one in (row.message for row in bench.journal.latest(10))] == [1, 2, 3]
    (gap,) = bench.gaps()
    assert (gap.what, gap.count, gap.first_sequence, gap.last_sequence) == ("verdicts", 1, 2, 2)
    assert gap.why == "too_large"


@pytest.mark.parametrize("disk", [True, False])
def test_a_topic_that_the_broker_refuses_waits_and_the_others_go_on(disk: bool) -> None:
    bench = Bench(window=4)
    bench.publisher.connect(session_present=True)
    bench.publisher.refused_topics = {message(1).topic}
    bench.journal.refuse = not disk
    for number in range(1, 21):
        bench.mailbox.put(message(number))
        bench.mailbox.put(message(number, camera="side"))
        bench.run(2)
    others = [row.message for row, _ in bench.publisher.sent]
    assert sequences(others, "side") == list(range(1, 21))
    assert len(sequences(others)) <= 4
    assert "refuses inspection/line-1/camera/top/verdict: Not authorized" in str(bench.refusal())
    bench.journal.refuse = False
    bench.clock.pass_s(REFUSED_AGAIN_S)
    bench.run(5)
    assert bench.refusal() is not None
    bench.publisher.refused_topics = set()
    bench.publisher.sent.clear()
    bench.clock.pass_s(REFUSED_AGAIN_S)
    bench.settle()
    bench.clock.pass_s(REFUSED_SETTLE_S)
    bench.settle()
    assert bench.sent() == list(range(1, 21))
    assert bench.refusal() is None
    assert bench.journal.health().outbox == 0
    assert bench.gaps() == []


def test_what_is_too_large_is_declared_once_however_often_the_session_is_lost() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=False)
    bench.publisher.largest_bytes = 600  # a gap fits
    bench.judge(1, 2)
    bench.settle()
    for _ in range(3):
        bench.publisher.cut()
        bench.run()
        bench.publisher.connect(session_present=False)
        bench.settle()
    assert [(gap.count, gap.why) for gap in bench.gaps()] == [(2, "too_large")]


def test_acknowledgements_go_with_the_next_commit() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)
    bench.judge(1)
    bench.run()
    bench.judge(2)
    bench.run(acknowledge=False)
    assert bench.journal.health().outbox == 1


def test_without_a_broker_it_stores_and_later_sends_everything_as_historical() -> None:
    bench = Bench()
    for number in range(1, 1501):
        bench.judge(number)
        bench.run()
    bench.clock.pass_s(LIVE_FOR_S + 1)
    bench.publisher.connect(session_present=False)
    bench.settle()
    assert bench.sent(historical=True) == list(range(1, 1501))
    bench.judge(1501)
    bench.run()
    assert bench.sent(historical=False) == [1501]


def test_what_is_live_overtakes_a_backlog() -> None:
    bench = Bench()
    bench.judge(*range(1, 301))
    bench.run()
    bench.clock.pass_s(LIVE_FOR_S + 1)
    bench.publisher.connect(session_present=True)
    bench.run()
    bench.judge(1000)
    bench.run()
    position = bench.sent().index(1000)
    assert position < 20
    bench.settle()
    assert bench.sent(historical=True) == list(range(1, 301))


def test_a_restart_sends_only_what_was_not_acknowledged_and_declares_the_time_that_nobody_watched() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)
    bench.judge(1, 2, 3)
    bench.settle()
    bench.judge(4, 5)
    bench.run(acknowledge=False)
    bench.recorder.finish()
    bench.start(epoch=2)
    bench.publisher.connect(session_present=True)
    bench.run()
    assert bench.sent() == [4, 5]
    bench.mailbox.put(message(1, epoch=2, at=BEGIN + timedelta(hours=1)))
    bench.mailbox.put(message(2, epoch=2, at=BEGIN + timedelta(hours=1)))
    bench.settle()
    (gap,) = bench.gaps()
    assert (gap.why, gap.what, gap.camera, gap.count) == ("station_down", "frames", "top", None)
    assert (gap.epoch, gap.first_sequence, gap.last_sequence) == (1, 6, None)
    assert gap.began == BEGIN + timedelta(milliseconds=5)
    assert gap.ended == BEGIN + timedelta(hours=1, milliseconds=1)


def test_a_broker_that_forgot_the_session_gets_the_replay_window_again() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=False)
    bench.judge(1)
    bench.settle()
    bench.clock.pass_s(100)
    bench.judge(2, 3)
    bench.settle()
    bench.judge(4)
    bench.run()
    bench.publisher.sent.clear()
    bench.publisher.cut()
    bench.run()
    bench.publisher.connect(session_present=False)
    bench.settle()
    assert bench.sent(historical=True) == [2, 3]
    assert bench.sent(historical=False) == [4]  # it was on its way when the connection broke
    assert bench.is_idle()


@pytest.mark.parametrize("jump_s", [7200.0, -7200.0])
def test_a_clock_that_was_set_does_not_shorten_the_replay_window(jump_s: float) -> None:
    bench = Bench()
    bench.publisher.connect(session_present=False)
    bench.judge(1)
    bench.settle()
    bench.clock.pass_s(100)
    bench.run()
    bench.judge(2)
    bench.settle()
    bench.clock.wall_step_s = jump_s
    bench.judge(3)
    bench.settle()
    bench.publisher.sent.clear()
    bench.publisher.cut()
    bench.run()
    bench.publisher.connect(session_present=False)
    bench.settle()
    again = bench.sent(historical=True)
    assert again == ([2, 3] if jump_s > 0 else [1, 2, 3])  # sooner too many than too few
    bench.clock.pass_s(100)
    bench.publisher.cut()
    bench.run()
    bench.publisher.sent.clear()
    bench.publisher.connect(session_present=False)
    bench.settle()
    assert bench.sent() == []


def test_a_session_that_was_kept_needs_no_replay() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)
    bench.judge(1, 2)
    bench.settle()
    bench.publisher.cut()
    bench.run()
    bench.publisher.connect(session_present=True)
    bench.judge(3)
    bench.settle()
    assert bench.sent() == [1, 2, 3]


def test_a_disk_that_refuses_costs_durability_only(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)
    bench.judge(1)
    bench.settle()
    bench.journal.refuse = True
    for number in range(2, 30):
        bench.judge(number)
        bench.run(2)
    assert bench.sent(historical=False) == list(range(1, 30))
    durable = [decode(Verdict, row.message.payload).durable for row, _ in bench.publisher.sent]
    assert durable == [True] + [False] * 28
    assert bench.fault() == "journal: the disk is full"
    assert bench.recorder.health is not None
    assert not bench.recorder.health.durable
    bench.journal.refuse = False
    bench.clock.pass_s(RETRY_S)
    bench.judge(30)
    bench.settle()
    assert bench.fault() is None
    assert bench.is_idle()
    assert sorted(bench.sent()) == list(range(1, 31))
    assert bench.journal.health().rows == 30
    assert bench.journal.health().outbox == 0
    assert bench.gaps() == []
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    assert "durable again" in caplog.text


def test_a_disk_that_refuses_while_the_broker_is_away_loses_nothing_that_memory_holds() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)
    bench.run()
    bench.publisher.cut()
    bench.judge(1)
    bench.run()
    bench.journal.refuse = True
    for number in range(2, 101):
        bench.judge(number)
        bench.run()
    bench.clock.pass_s(LIVE_FOR_S + 1)
    bench.journal.refuse = False
    bench.judge(101)
    bench.run()
    assert bench.journal.health().rows == 101
    bench.publisher.connect(session_present=True)
    bench.settle()
    assert sorted(bench.sent()) == list(range(1, 102))
    assert bench.sent(historical=True) == list(range(1, 101))
    assert bench.gaps() == []


def test_what_memory_has_no_room_for_is_declared_exactly_also_on_the_full_disk() -> None:
    bench = Bench(spool_bytes=20_000)
    bench.journal.refuse = True
    for number in range(1, 201):
        bench.judge(number)
        bench.run()
    bench.clock.pass_s(100)
    bench.judge(201)
    bench.run()
    declared_early = sum(gap.count or 0 for gap in bench.gaps())
    assert declared_early > 100
    bench.journal.refuse = False
    bench.clock.pass_s(RETRY_S)
    bench.publisher.connect(session_present=True)
    bench.settle()
    gaps = bench.gaps()
    assert {(gap.why, gap.what, gap.camera, gap.epoch) for gap in gaps} == {("disk_full", "verdicts", "top", 1)}
    lost = sum(gap.count or 0 for gap in gaps)
    assert lost + len(bench.sent()) == 201
    assert min(gap.first_sequence or 0 for gap in gaps) == 1
    assert max(gap.last_sequence or 0 for gap in gaps) == lost
    assert sorted(bench.sent()) == list(range(lost + 1, 202))


def test_a_stop_on_a_full_disk_declares_what_no_broker_got() -> None:
    bench = Bench()
    bench.journal.refuse = True
    bench.judge(*range(1, 11))
    bench.run()
    bench.recorder.finish()
    (gap,) = bench.gaps()
    assert (gap.why, gap.count, gap.first_sequence, gap.last_sequence) == ("disk_full", 10, 1, 10)


def test_a_verdict_that_found_no_room_in_the_mailbox_is_declared() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)
    bench.judge(*range(1, 1004))
    bench.settle()
    (gap,) = bench.gaps()
    assert (gap.why, gap.count, gap.first_sequence, gap.last_sequence) == ("overload", 3, 1001, 1003)
    assert bench.sent() == list(range(1, 1001))


def test_waiting_ends_with_a_message_or_an_acknowledgement() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)

    def step_until_sent() -> None:
        while not bench.publisher.sent:
            bench.recorder.step(60)

    steps = threading.Thread(target=step_until_sent)
    steps.start()
    bench.mailbox.wake()
    bench.judge(1)
    steps.join(30)
    assert not steps.is_alive()
    assert bench.sent() == [1]


EVENTS = st.sampled_from(
    ["judge", "judge", "judge", "step", "step", "connect", "cut", "forget", "full", "free", "late"]
)


@settings(max_examples=150)
@given(events=st.lists(EVENTS, max_size=60), spool_bytes=st.sampled_from([3_000, 1_000_000]))
def test_every_verdict_is_received_or_declared_whatever_happens(events: list[str], spool_bytes: int) -> None:
    bench = Bench(window=4, spool_bytes=spool_bytes)
    judged = 0
    for event in events:
        match event:
            case "judge":
                bench.judge(judged + 1, judged + 2)
                judged += 2
            case "step":
                bench.run()
            case "connect" | "forget":
                bench.publisher.connect(session_present=event == "connect")
            case "cut":
                bench.publisher.cut()
            case "full" | "free":
                bench.journal.refuse = event == "full"
            case "late":
                bench.clock.pass_s(7)
    bench.journal.refuse = False
    bench.clock.pass_s(RETRY_S)
    bench.publisher.connect(session_present=True)
    bench.settle()
    received = set(bench.sent())
    declared = sum(gap.count or 0 for gap in bench.gaps())
    assert bench.is_idle()
    assert len(received | set(range(judged + 1))) == judged + 1
    assert len(received) + declared >= judged
    for number in set(range(1, judged + 1)) - received:
        assert any((gap.first_sequence or 0) <= number <= (gap.last_sequence or 0) for gap in bench.gaps())
    if spool_bytes > 100_000:
        assert received == set(range(1, judged + 1))


# With the real parts


def test_verdicts_judged_without_a_broker_arrive_when_it_appears(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, running=False) as broker:
        with running(tmp_path, broker.port) as line:
            line.judge(1, 100)
        with running(tmp_path, broker.port) as line:
            broker.start()
            with Listener(broker.port) as listener:
                line.judge(1, 1)
                received = listener.wait_until(all_of(100))
                wait_for(lambda: line.recorder.is_idle)
    assert set(verdicts(received)) == set(range(1, 101))
    assert {one.content_type for one in received if one.topic.endswith("/verdict")} == {"application/json"}
    assert verify(tmp_path / "journal.sqlite").fault is None


def test_two_hundred_verdicts_of_a_former_run_arrive_marked_historical_and_in_order(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, running=False) as broker:
        with running(tmp_path, broker.port) as line:
            line.judge(1, 200)
        broker.start()
        with Listener(broker.port) as listener, running(tmp_path, broker.port):
            received = listener.wait_until(all_of(200))
    assert verdicts(received, historical=True) == list(range(1, 201))
    assert verdicts(received, historical=False) == []


def test_a_broker_killed_in_mid_stream_and_started_again_misses_nothing(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, running(tmp_path, broker.port) as line, Listener(broker.port) as listener:
        line.judge(1, 500)
        listener.wait_until(all_of(100))
        broker.kill()
        line.judge(501, 700)
        broker.start()
        line.judge(701, 1000)
        with Listener(broker.port) as second:
            wait_for(lambda: len(set(verdicts(listener.received + second.received))) >= 1000)
            wait_for(lambda: line.recorder.is_idle)
    assert [link.connected for link in line.links] == [True, False, True]


def test_a_stopped_broker_is_noticed_by_missing_acknowledgements_and_nothing_is_lost(tmp_path: Path) -> None:
    with (
        Mosquitto(tmp_path) as broker,
        running(tmp_path, broker.port, acknowledge_within_s=1.0) as line,
        Listener(broker.port) as listener,
    ):
        line.judge(1, 50)
        listener.wait_until(all_of(50))
        broker.stop()
        line.judge(51, 100)
        wait_for(lambda: bool(line.links[-1].reason))
        assert "acknowledged nothing for 1 s" in (line.links[-1].reason or "")
        broker.go_on()
        received = listener.wait_until(all_of(100))
    assert in_order_of_first_arrival(verdicts(received, historical=False))


def test_what_is_rescued_from_a_damaged_journal_is_delivered(tmp_path: Path) -> None:
    clock = FakeClock()
    path = tmp_path / "journal.sqlite"
    publisher = MemoryPublisher()
    mailbox: Mailbox[Outgoing] = Mailbox(1000, Overflow.BLOCK)
    kept: list[Outgoing] = []
    with SqliteJournal(path, JournalSettings(), station="line-1", clock=clock) as journal:
        recorder = Recorder(
            station="line-1",
            epoch=1,
            journal=journal,
            publisher=publisher,
            mailbox=mailbox,
            clock=clock,
            window=8,
            replay_window_s=60,
            on_kept=kept.extend,
        )
        for number in range(1, 41):
            mailbox.put(message(number))
        recorder.step(0)
        clock.pass_s(LIVE_FOR_S + 1)
        with closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE journal SET payload = x'00' WHERE row = 17")
            database.commit()
        publisher.connect(session_present=True)
        for number in range(41, 101):
            mailbox.put(message(number))
            recorder.step(0)
            publisher.acknowledge()
        clock.pass_s(1)
        recorder.step(0)
        assert recorder.is_idle
    received = sequences([row.message for row, _ in publisher.sent])
    assert set(received) == set(range(1, 101)) - {17}
    (gap,) = [decode(Gap, row.message.payload) for row, _ in publisher.sent if row.message.kind == "gap"]
    assert (gap.why, gap.count) == ("journal_corrupt", 1)
    assert sequences(kept) == list(range(1, 101))
    assert verify(path).fault is None


def test_what_was_asked_for_again_goes_out_at_its_rate_and_behind_live_verdicts() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)
    bench.judge(*range(1, 301))
    bench.settle()
    found = bench.journal.find(Selection(camera="top", epoch=1, first_sequence=101, last_sequence=300))
    first = len(bench.publisher.sent)
    bench.recorder.replay(found)
    for number in range(301, 321):
        bench.judge(number)
        bench.run(12)
        bench.clock.pass_s(0.05)
    again = bench.publisher.sent[first:]
    assert sequences([row.message for row, historical in again if not historical]) == list(range(301, 321))
    historical = sequences([row.message for row, historical in again if historical])
    # The bench asks for 100 a second, in pieces of ten, and a second has passed.
    assert historical == list(range(101, 101 + len(historical)))
    assert 90 <= len(historical) <= 110
    bench.settle()
    again = bench.publisher.sent[first:]
    assert sequences([row.message for row, historical in again if historical]) == list(range(101, 301))


def test_what_was_acknowledged_a_moment_ago_is_sent_again_when_asked_for() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)
    bench.judge(1, 2, 3)
    bench.run(2)
    assert bench.publisher.sent
    bench.recorder.replay(bench.journal.find(Selection(camera="top", epoch=1, first_sequence=1, last_sequence=3)))
    bench.settle()
    assert sequences([row.message for row, _ in bench.publisher.sent]) == [1, 2, 3, 1, 2, 3]


def test_a_replay_that_the_disk_refuses_is_done_when_it_takes_it() -> None:
    bench = Bench()
    bench.publisher.connect(session_present=True)
    bench.judge(1, 2, 3)
    bench.settle()
    found = bench.journal.find(Selection(camera="top", epoch=1, first_sequence=1, last_sequence=3))
    bench.journal.refuse = True
    bench.recorder.replay(found)
    bench.run(2)
    assert bench.recorder.fault is not None
    bench.journal.refuse = False
    bench.clock.pass_s(RETRY_S)
    bench.judge(4)
    bench.settle()
    assert sequences([row.message for row, _ in bench.publisher.sent]) == [1, 2, 3, 4, 1, 2, 3]
    assert bench.recorder.fault is None
