"""Orders of the plant, by topic or register, become commands to the station: answered and on record like any other.

Nobody in the plant reads the answer, so an order that is refused is a fault in `status` until one is carried out. The
plant says what is to run, not what is to happen: what it has said already is no new order.
"""

import json
import logging
import threading
from collections.abc import Callable, Collection

from station import wire
from station.faults import FaultBoard
from station.ids import uuid7
from station.messages import Incoming, Ordered, Origin, Response, SourceStateName, Verb
from station.ports import Clock, Orders
from station.process_messages import Readings, SourceEvent

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 0.1
"""How long to wait for an order before looking whether the station stops."""
_SHOWN = 40


class OrderLine:
    """One source of orders; `work` is a thread of its own.

    Args:
        name: the source's in `status`: `orders <name>`.
        source: where orders come from, not entered yet.
        by: who ordered, for the record.
        repeats: the source says again and again what is to run, as a register does.
        products: their names.
        station: the station's name.
        ask: takes a request for the thread that looks at commands.
        faults: told of a source that is away, and of orders that cannot be read or are refused.
        clock: time.
    """

    def __init__(
        self,
        name: str,
        source: Orders,
        *,
        by: str,
        repeats: bool,
        products: Collection[str],
        station: str,
        ask: Callable[[Incoming], object],
        faults: FaultBoard,
        clock: Clock,
    ) -> None:
        self.name = name
        self._source = source
        self._by = by
        self._repeats = repeats
        self._products = products
        self._station = station
        self._ask = ask
        self._faults = faults
        self._clock = clock
        self._lock = threading.Lock()
        self._wrong: dict[str, str] = {}
        self._last: str | None = None

    def work(self, stop: threading.Event) -> None:
        """Pass orders on until the station stops."""
        with self._source as source:
            while not stop.is_set():
                item = source.read(READ_TIMEOUT_S)
                if isinstance(item, SourceEvent):
                    self._tell("down", (item.reason or "away") if item.state is SourceStateName.DOWN else None)
                elif item is not None:
                    self._ordered(order_in(item) if isinstance(item, Readings) else item)

    def _ordered(self, order: Ordered) -> None:
        self._tell("unreadable", order.fault)
        if order.what is None or (self._repeats and order.what == self._last):
            return
        self._last = order.what
        transaction = str(uuid7(int(self._clock.now().timestamp() * 1e3)))
        wanted: dict[str, object] = {"product": order.what}
        if order.what not in self._products and order.what.isascii() and order.what.isdigit():
            wanted = {"number": int(order.what)}
        request = {"transaction": transaction, **wanted, "by": self._by[:100]}
        self._ask(
            Incoming(
                wire.request_topic(self._station, Verb.CHANGE_PRODUCT),
                json.dumps(request).encode(),
                origin=Origin.PLANT,
                reply=self._answered,
            )
        )

    def _answered(self, answer: bytes) -> None:
        response = wire.decode(Response, answer)
        self._tell("refused", None if response.accepted else response.reason or "refused")

    def _tell(self, kind: str, reason: str | None) -> None:
        with self._lock:
            if reason is None:
                self._wrong.pop(kind, None)
            else:
                self._wrong[kind] = reason
            told = "; ".join(self._wrong.values()) or None
        self._faults.set(f"orders {self.name}", told)


def order_in(row: Readings) -> Ordered:
    """The order in what a register holds that names a product by its number."""
    if row.reasons:
        return Ordered(None, "; ".join(row.reasons.values()))
    (value,) = row.values
    if not value.is_integer() or value < 0:
        return Ordered(None, f"the register holds {value:g}, which is no product's number")
    return Ordered(str(int(value)))
