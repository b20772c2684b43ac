"""Which message goes to the broker next."""

import pytest
from delivery_helpers import message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from station.delivery import LIVE_FOR_S, Delivery, Sending
from station.messages import OutboxRow


def rows(first: int, last: int, camera: str = "top") -> list[OutboxRow]:
    return [OutboxRow(number, 0.0, message(abs(number), camera=camera)) for number in range(first, last + 1)]


def drained(delivery: Delivery) -> Delivery:
    """Connected, and told that the outbox held nothing at the start."""
    delivery.connected(1000)
    delivery.page([], complete=True)
    return delivery


def take(delivery: Delivery, now_s: float = 0.0) -> list[tuple[int, bool]]:
    taken = []
    while (sending := delivery.next(now_s)) is not None:
        taken.append((sending.row.row, sending.historical))
    return taken


def test_what_is_committed_goes_out_live_and_in_order() -> None:
    delivery = drained(Delivery(10))
    delivery.committed(rows(1, 3), 0.0)
    assert take(delivery) == [(1, False), (2, False), (3, False)]
    assert not delivery.is_idle
    assert all(delivery.acknowledged(row) for row in (1, 2, 3))
    assert not delivery.acknowledged(3)
    assert (delivery.is_idle, sorted(delivery.settled)) == (True, [1, 2, 3])
    delivery.marked([1, 2, 3])
    assert not delivery.settled


def test_the_window_bounds_what_is_in_flight_and_the_broker_may_ask_for_less() -> None:
    delivery = drained(Delivery(4))
    delivery.committed(rows(1, 9), 0.0)
    assert len(take(delivery)) == 4
    delivery.disconnected()
    delivery.connected(2)
    assert take(delivery) == [(1, False), (2, False)]
    delivery.acknowledged(1)
    assert take(delivery) == [(3, False)]


def test_what_a_former_run_left_is_historical_and_does_not_hold_up_what_is_live() -> None:
    delivery = Delivery(4)
    delivery.connected(1000)
    assert delivery.page_wanted() == 0
    delivery.page(rows(1, 9), complete=False)
    assert take(delivery) == [(1, True), (2, True), (3, True)]
    delivery.committed(rows(100, 101), 0.0)
    assert take(delivery) == [(100, False)]
    delivery.acknowledged(100)
    assert take(delivery) == [(101, False)]
    delivery.acknowledged(1)
    assert take(delivery) == [(4, True)]
    assert delivery.page_wanted() is None


def test_a_row_that_waited_too_long_comes_back_through_the_journal_as_historical() -> None:
    delivery = drained(Delivery(10))
    delivery.disconnected()
    delivery.committed(rows(1, 2), 0.0)
    delivery.committed(rows(3, 3), LIVE_FOR_S)
    delivery.connected(1000)
    assert take(delivery, LIVE_FOR_S + 0.1) == [(3, False)]
    assert delivery.page_wanted() == 0
    delivery.page(rows(1, 3), complete=True)
    assert take(delivery, LIVE_FOR_S + 0.1) == [(1, True), (2, True)]


def test_a_full_live_lane_passes_its_oldest_to_the_historical_one() -> None:
    delivery = drained(Delivery(10, live_capacity=2))
    delivery.disconnected()
    delivery.committed(rows(1, 5), 0.0)
    delivery.connected(1000)
    assert take(delivery) == [(4, False), (5, False)]
    delivery.page(rows(1, 5), complete=True)
    assert take(delivery) == [(1, True), (2, True), (3, True)]


def test_a_lost_connection_gives_everything_in_flight_back_in_order() -> None:
    delivery = Delivery(10)
    delivery.connected(1000)
    delivery.page(rows(1, 4), complete=True)
    delivery.committed(rows(50, 51), 0.0)
    assert take(delivery) == [(50, False), (51, False), (1, True), (2, True), (3, True), (4, True)]
    delivery.acknowledged(50)
    delivery.acknowledged(1)
    delivery.disconnected()
    assert delivery.next(0.0) is None
    delivery.connected(1000)
    after = delivery.page_wanted()
    assert after == 1
    delivery.page([row for row in [*rows(1, 4), *rows(50, 51)] if row.row > after], complete=True)
    assert take(delivery) == [(51, False), (2, True), (3, True), (4, True)]


def test_a_broker_that_forgot_gets_again_what_it_acknowledged() -> None:
    delivery = drained(Delivery(10))
    delivery.committed(rows(1, 3), 0.0)
    take(delivery)
    for row in (1, 2, 3):
        delivery.acknowledged(row)
    delivery.marked([1])
    delivery.disconnected()
    delivery.connected(1000)
    delivery.session_lost()
    assert not delivery.settled
    delivery.rewind(1)
    delivery.page(rows(1, 3), complete=True)
    assert take(delivery) == [(1, True), (2, True), (3, True)]


def test_a_row_that_is_in_memory_only_stays_there() -> None:
    delivery = drained(Delivery(10))
    delivery.disconnected()
    delivery.committed([*rows(7, 7), *rows(-1, -1), *rows(-2, -2)], 0.0)
    delivery.connected(1000)
    delivery.age(LIVE_FOR_S + 1)
    assert delivery.next(LIVE_FOR_S + 1) is None  # the journal's rows are older and go first
    delivery.page(rows(7, 7), complete=True)
    assert take(delivery, LIVE_FOR_S + 1) == [(7, True), (-1, True), (-2, True)]
    delivery.disconnected()
    delivery.forget({-1})
    delivery.connected(1000)
    delivery.page(rows(7, 7), complete=True)
    assert take(delivery, LIVE_FOR_S + 1) == [(7, True), (-2, True)]
    delivery.acknowledged(-2)
    assert not delivery.settled


def test_a_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Delivery(0)


class AnyOrderOfEvents(RuleBasedStateMachine):
    """The machine between a journal and a broker, each as simple as can be, under any sequence of events."""

    @initialize(window=st.integers(1, 6), capacity=st.integers(1, 5), left=st.integers(0, 7))
    def begin(self, window: int, capacity: int, left: int) -> None:
        self.window = window
        self.delivery = Delivery(window, capacity)
        self.now_s = 0.0
        self.order: list[int] = []
        self.camera: dict[int, str] = {}
        self.outbox: dict[int, OutboxRow] = {}
        self.memory: dict[int, OutboxRow] = {}
        self.flying: list[int] = []
        self.acknowledged: set[int] = set()
        self.received: set[int] = set()
        self.sent_now: list[Sending] = []
        self.barred: set[str] = set()
        for _ in range(left):
            self._new_row("left", durable=True)

    def _new_row(self, camera: str, *, durable: bool) -> OutboxRow:
        number = len(self.order) + 1
        row = OutboxRow(number if durable else -number, 0.0, message(number, camera=camera))
        self.order.append(row.row)
        self.camera[row.row] = camera
        (self.outbox if durable else self.memory)[row.row] = row
        return row

    @rule(cameras=st.lists(st.sampled_from("ab"), min_size=1, max_size=4), durable=st.booleans())
    def commit(self, cameras: list[str], durable: bool) -> None:
        self.delivery.committed([self._new_row(camera, durable=durable) for camera in cameras], self.now_s)

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: not self.delivery.is_connected)
    @rule(window=st.integers(1, 6), forgot=st.booleans(), acknowledged_again=st.booleans())
    def connect(self, window: int, forgot: bool, acknowledged_again: bool) -> None:
        self.window_now = min(self.window, window)
        self.delivery.connected(window)
        self.barred.clear()
        self.sent_now.clear()
        if forgot:
            self.delivery.session_lost()
            unmarked = self.acknowledged & self.outbox.keys()
            self.acknowledged -= unmarked
            if acknowledged_again and unmarked:
                self.delivery.rewind(min(unmarked))

    @precondition(lambda self: self.delivery.is_connected)
    @rule()
    def cut(self) -> None:
        self.delivery.disconnected()
        self.flying.clear()

    @precondition(lambda self: self.delivery.is_connected)
    @rule(limit=st.integers(1, 8), page=st.integers(1, 4))
    def send(self, limit: int, page: int) -> None:
        for _ in range(limit):
            self._offer_page(page)
            sending = self.delivery.next(self.now_s)
            if sending is None:
                return
            self._check_sending(sending)
            self.flying.append(sending.row.row)
            self.sent_now.append(sending)
            self.received.add(sending.row.row)

    def _offer_page(self, limit: int) -> None:
        after = self.delivery.page_wanted()
        if after is not None:
            found = [row for number, row in sorted(self.outbox.items()) if number > after][:limit]
            self.delivery.page(found, complete=len(found) < limit)

    def _check_sending(self, sending: Sending) -> None:
        number = sending.row.row
        assert number not in self.flying
        assert self.camera[number] not in self.barred
        assert number not in self.acknowledged, "sent again although the broker has it"
        same = [
            earlier.row.row
            for earlier in self.sent_now
            if earlier.historical == sending.historical
            and self.camera[earlier.row.row] == self.camera[number]
            and (earlier.row.row < 0) == (number < 0)
        ]
        if same:
            assert self.order.index(same[-1]) < self.order.index(number), "out of order within a lane and camera"

    @precondition(lambda self: self.flying)
    @rule(count=st.integers(1, 6))
    def broker_acknowledges(self, count: int) -> None:
        for number in self.flying[:count]:
            assert self.delivery.acknowledged(number)
            self.acknowledged.add(number)
            self.memory.pop(number, None)
        del self.flying[:count]

    @precondition(lambda self: self.flying)
    @rule()
    def broker_refuses_a_camera(self) -> None:
        camera = self.camera[self.flying[0]]
        for number in [one for one in self.flying if self.camera[one] == camera]:
            refused = self.delivery.refused(number)
            assert refused is not None
            assert refused.row == number
            self.flying.remove(number)
            self.received.discard(number)
        self.barred.add(camera)
        self.sent_now = [one for one in self.sent_now if self.camera[one.row.row] != camera]

    @rule()
    def try_again(self) -> None:
        self.delivery.try_again()
        self.barred.clear()

    @rule()
    def mark(self) -> None:
        settled = self.delivery.settled
        for number in settled:
            del self.outbox[number]
        self.delivery.marked(settled)

    @invariant()
    def the_window_holds(self) -> None:
        if hasattr(self, "delivery") and self.delivery.is_connected:
            assert self.delivery.in_flight == len(self.flying) <= self.window_now

    def teardown(self) -> None:
        if not hasattr(self, "delivery"):
            return
        if not self.delivery.is_connected:
            self.connect(6, False, False)
        self.try_again()
        for _ in range(3 * len(self.order) + 3):
            self.send(20, 3)
            if self.flying:
                self.broker_acknowledges(20)
        self.mark()
        assert self.received == set(self.order)
        assert self.delivery.is_idle
        assert not self.outbox
        assert not self.memory


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=100, stateful_step_count=30)
