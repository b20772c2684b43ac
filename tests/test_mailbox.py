"""The bounded queue between threads."""

import threading
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.mailbox import Mailbox, Overflow


def test_it_gives_items_in_order_and_all_at_once() -> None:
    mailbox: Mailbox[int] = Mailbox(10, Overflow.BLOCK)
    for number in range(5):
        assert mailbox.put(number)
    assert mailbox.take() == 0
    assert mailbox.take_all(0, limit=2) == [1, 2]
    assert mailbox.take_all() == [3, 4]
    assert mailbox.take_all(0) == []
    assert mailbox.take(0) is None


@pytest.mark.parametrize(
    ("overflow", "kept", "dropped"),
    [(Overflow.DROP_OLDEST, [2, 3, 4], [0, 1]), (Overflow.DROP_NEWEST, [0, 1, 2], [3, 4])],
)
def test_a_full_one_drops_what_its_policy_says_and_counts_it(
    overflow: Overflow, kept: list[int], dropped: list[int]
) -> None:
    told: list[int] = []
    mailbox = Mailbox(3, overflow, told.append)
    taken = [mailbox.put(number) for number in range(5)]
    assert taken == [True, True, True, *([overflow is Overflow.DROP_OLDEST] * 2)]
    assert (mailbox.take_all(), told, mailbox.dropped) == (kept, dropped, 2)


def test_block_waits_for_room() -> None:
    mailbox: Mailbox[int] = Mailbox(1, Overflow.BLOCK)
    mailbox.put(1)
    assert not mailbox.put(2, timeout_s=0.01)
    writer = threading.Thread(target=mailbox.put, args=(3,))
    writer.start()
    assert mailbox.take() == 1
    assert mailbox.take(5) == 3
    writer.join()
    assert mailbox.dropped == 1


def test_closing_ends_every_wait_and_leaves_what_is_inside() -> None:
    mailbox: Mailbox[int] = Mailbox(1, Overflow.BLOCK)
    mailbox.put(1)
    refused: list[bool] = []
    writer = threading.Thread(target=lambda: refused.append(mailbox.put(2)))
    writer.start()
    mailbox.close()
    writer.join()
    assert (refused, mailbox.closed) == ([False], True)
    assert mailbox.take_all() == [1]
    assert mailbox.take_all() == []
    assert not mailbox.put(3)


def test_wake_ends_the_present_wait_or_the_next_one_but_only_one() -> None:
    mailbox: Mailbox[int] = Mailbox(1, Overflow.BLOCK)
    mailbox.wake()
    assert mailbox.take_all() == []
    results: list[list[int]] = []
    reader = threading.Thread(target=lambda: results.append(mailbox.take_all(30)))
    reader.start()
    mailbox.wake()
    reader.join(30)
    assert results == [[]]
    assert mailbox.take_all(0.01) == []


def test_a_capacity_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Mailbox(0, Overflow.BLOCK)


@given(
    capacity=st.integers(1, 5),
    overflow=st.sampled_from([Overflow.DROP_OLDEST, Overflow.DROP_NEWEST]),
    script=st.lists(st.booleans(), max_size=60),
)
def test_nothing_is_lost_uncounted(capacity: int, overflow: Overflow, script: list[bool]) -> None:
    dropped: list[int] = []
    mailbox = Mailbox(capacity, overflow, dropped.append)
    model: deque[int] = deque()
    taken: list[int] = []
    put = 0
    for is_put in script:
        if is_put:
            if len(model) < capacity:
                model.append(put)
            elif overflow is Overflow.DROP_OLDEST:
                model.popleft()
                model.append(put)
            mailbox.put(put)
            put += 1
        else:
            item = mailbox.take(0)
            if item is not None:
                taken.append(item)
            assert item == (model.popleft() if model else None)
    taken += mailbox.take_all(0)
    assert sorted(taken + dropped) == list(range(put))
    assert taken == sorted(taken)
    assert mailbox.dropped == len(dropped)


def test_many_writers_lose_nothing() -> None:
    mailbox: Mailbox[tuple[int, int]] = Mailbox(8, Overflow.BLOCK)
    writers = [
        threading.Thread(target=lambda who=who: [mailbox.put((who, number)) for number in range(200)])
        for who in range(4)
    ]
    for writer in writers:
        writer.start()
    got: list[tuple[int, int]] = []
    while len(got) < 800:
        got += mailbox.take_all(10)
    for writer in writers:
        writer.join()
    for who in range(4):
        assert [number for owner, number in got if owner == who] == list(range(200))
