"""A recorder in a thread of its own over a real journal and a real broker."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from delivery_helpers import message
from mosquitto import Received

from station.adapters.mqtt_publisher import MqttPublisher
from station.adapters.sqlite_journal import SqliteJournal
from station.adapters.system_clock import SystemClock
from station.broker_settings import BrokerSettings
from station.mailbox import Mailbox, Overflow
from station.messages import Link, Outgoing, Verdict
from station.recorder import SPOOL_BYTES, Recorder
from station.settings import JournalSettings
from station.wire import decode


@dataclass
class Line:
    """What a test may do with it."""

    mailbox: Mailbox[Outgoing]
    recorder: Recorder
    publisher: MqttPublisher
    epoch: int
    links: list[Link]

    def judge(self, first: int, last: int) -> None:
        for number in range(first, last + 1):
            self.mailbox.put(message(number, epoch=self.epoch))


@contextmanager
def running(folder: Path, port: int, *, spool_bytes: int = SPOOL_BYTES, **broker: float) -> Iterator[Line]:
    clock = SystemClock()
    mailbox: Mailbox[Outgoing] = Mailbox(10_000, Overflow.BLOCK)
    links: list[Link] = []
    options = BrokerSettings(reconnect_max_s=0.5, **broker)  # type: ignore[arg-type]
    with (
        SqliteJournal(folder / "journal.sqlite", JournalSettings(), station="line-1", clock=clock) as journal,
        MqttPublisher(
            options,
            host="127.0.0.1",
            port=port,
            client_id="inspection-line-1",
            password=None,
            will_topic="inspection/line-1/status",
            will_payload=b'{"status":"offline"}',
            clock=clock,
            wake=mailbox.wake,
            on_link=links.append,
        ) as publisher,
    ):
        epoch = journal.open_epoch()
        recorder = Recorder(
            station="line-1",
            epoch=epoch,
            journal=journal,
            publisher=publisher,
            mailbox=mailbox,
            clock=clock,
            window=options.in_flight,
            replay_window_s=options.replay_window_s,
            spool_bytes=spool_bytes,
        )
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                recorder.step(0.2)
            recorder.finish()

        thread = threading.Thread(target=work, name="recorder")
        thread.start()
        try:
            yield Line(mailbox, recorder, publisher, epoch, links)
        finally:
            stop.set()
            mailbox.wake()
            thread.join()


def verdicts(received: list[Received], *, historical: bool | None = None) -> list[int]:
    chosen = [one for one in received if one.topic.endswith("/verdict") and historical in (None, one.historical)]
    return [decode(Verdict, one.payload).sequence for one in chosen]


def all_of(count: int) -> Callable[[list[Received]], bool]:
    return lambda received: len(set(verdicts(received))) >= count


def in_order_of_first_arrival(numbers: list[int]) -> bool:
    first = list(dict.fromkeys(numbers))
    return first == sorted(first)
