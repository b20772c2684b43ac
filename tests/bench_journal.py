"""What the journal costs, beside what the disk itself costs, in one run: `python tests/bench_journal.py [FOLDER]`.

Three figures: the disk's own fsync (one page appended to a file, then fdatasync), the time from a verdict's `put` to
its commit, both 100 times a second and by turns, a second each, so that whatever else the machine does falls on both;
and the sustained rate through wire, mailbox, journal and delivery with a broker that acknowledges at once.
"""

import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from delivery_helpers import verdict

from station.adapters.memory import MemoryPublisher
from station.adapters.sqlite_journal import SqliteJournal
from station.adapters.system_clock import SystemClock
from station.commands.assembly import SWITCH_INTERVAL_S
from station.mailbox import Mailbox, Overflow
from station.messages import OutboxRow, Outgoing
from station.recorder import Recorder
from station.settings import JournalSettings
from station.wire import outgoing

RATE_HZ = 100
TURNS = 50
SUSTAINED = 20_000
PAGE_BYTES = 4096 + 24
"""A page and its frame header in the write-ahead log."""


class TimedJournal(SqliteJournal):
    """Notes when each message became durable, and how long the commits took."""

    def watch(self) -> None:
        self.committed_at_s: dict[int, float] = {}
        self.commits_s: list[float] = []

    def commit(self, messages: Sequence[Outgoing], acknowledged: Sequence[int]) -> Sequence[OutboxRow]:
        begin_s = time.perf_counter()
        rows = super().commit(messages, acknowledged)
        now_s = time.perf_counter()
        self.commits_s.append(now_s - begin_s)
        for message in messages:
            if message.sequence is not None:
                self.committed_at_s[message.sequence] = now_s
        return rows


class PromptPublisher(MemoryPublisher):
    """Acknowledges what it is sent, and keeps none of it."""

    def send(self, row: OutboxRow, *, historical: bool) -> bool:
        sent = super().send(row, historical=historical)
        self.sent.clear()
        self.acknowledge()
        return sent


class Disk:
    """A thread that makes one page durable each time it is asked; the same hand-over as the journal has."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._requests: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.fsyncs_s: list[float] = []
        self.answers_s: list[float] = []
        self._thread = threading.Thread(target=self._work, name="disk")

    def __enter__(self) -> "Disk":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(0.0)
        self._thread.join()
        os.close(self._handle)

    def ask(self) -> None:
        self._requests.put(time.perf_counter())

    def _work(self) -> None:
        page = os.urandom(PAGE_BYTES)
        while asked_s := self._requests.get():
            begin_s = time.perf_counter()
            os.write(self._handle, page)
            os.fdatasync(self._handle)
            now_s = time.perf_counter()
            self.fsyncs_s.append(now_s - begin_s)
            self.answers_s.append(now_s - asked_s)


def paced(action: Callable[[], None]) -> None:
    """Call `action` at the rate for one second."""
    pause = threading.Event()
    begin_s = time.perf_counter()
    for number in range(RATE_HZ):
        pause.wait(max(0.0, begin_s + number / RATE_HZ - time.perf_counter()))
        action()
    pause.wait(2 / RATE_HZ)


def percentile_ms(samples_s: Sequence[float], share: float) -> float:
    ordered = sorted(samples_s)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3


def show(what: str, samples_s: Sequence[float]) -> None:
    print(f"{what:42} p50 {percentile_ms(samples_s, 0.5):7.3f} ms   p99 {percentile_ms(samples_s, 0.99):7.3f} ms")


@contextmanager
def recording(recorder: Recorder, mailbox: Mailbox[Outgoing]) -> Iterator[None]:
    """Run the recorder in a thread of its own."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            recorder.step(0.2)
        recorder.finish()

    thread = threading.Thread(target=work, name="recorder")
    thread.start()
    yield
    stop.set()
    mailbox.wake()
    thread.join()


def run(folder: Path) -> None:
    """Measure and print."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    clock = SystemClock()
    mailbox: Mailbox[Outgoing] = Mailbox(1000, Overflow.BLOCK)
    publisher = PromptPublisher()
    publisher.connect(session_present=True)
    put_at_s: dict[int, float] = {}

    def put() -> None:
        number = len(put_at_s) + 1
        one = verdict(number)
        put_at_s[number] = time.perf_counter()
        mailbox.put(outgoing(one))

    journal = TimedJournal(folder / "journal.sqlite", JournalSettings(), station="bench", clock=clock)
    journal.watch()
    with journal, Disk(folder / "pages") as disk:
        recorder = Recorder(
            station="bench",
            epoch=1,
            journal=journal,
            publisher=publisher,
            mailbox=mailbox,
            clock=clock,
            window=64,
            replay_window_s=60,
        )
        pause = threading.Event()
        with recording(recorder, mailbox):
            for _ in range(TURNS):
                paced(disk.ask)
                paced(put)
            while len(journal.committed_at_s) < len(put_at_s):
                pause.wait(0.01)
            added_s = [journal.committed_at_s[number] - at_s for number, at_s in put_at_s.items()]
            commits_s = list(journal.commits_s)
            journal.watch()
            begin_s = time.perf_counter()
            for _ in range(SUSTAINED):
                put()
            while len(journal.committed_at_s) < SUSTAINED:
                pause.wait(0.001)
            rate = SUSTAINED / (time.perf_counter() - begin_s)
    show("fsync of the disk, one page", disk.fsyncs_s)
    show("the same, with the hand-over to a thread", disk.answers_s)
    show("one commit", commits_s)
    show(f"from put to durable at {RATE_HZ}/s", added_s)
    ratio = percentile_ms(added_s, 0.99) / percentile_ms(disk.fsyncs_s, 0.99)
    print(f"p99 added / p99 of the fsync               {ratio:.2f}")
    print(f"sustained with full durability             {rate:,.0f} verdicts/s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        run(Path(name))
