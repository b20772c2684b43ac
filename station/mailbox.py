"""A bounded queue between threads that says what happens when it is full, and counts what it drops."""

import threading
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")


class Overflow(StrEnum):
    """What `put` does when the mailbox is full."""

    BLOCK = "block"
    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"


class Mailbox(Generic[T]):
    """Items in order, from any number of threads to one.

    The reader can be woken without an item (`wake`), so that one wait covers the queue and any other event that it must
    look after. After `close`, nothing goes in and what is inside can still be taken.

    Args:
        capacity: items that it holds at most.
        overflow: what happens when it is full.
        on_drop: told of each item that is dropped, in the thread that puts, outside the lock.
    """

    def __init__(self, capacity: int, overflow: Overflow, on_drop: Callable[[T], None] | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self._capacity = capacity
        self._overflow = overflow
        self._on_drop = on_drop
        self._items: deque[T] = deque()
        self._lock = threading.Lock()
        self._readable = threading.Condition(self._lock)
        self._writable = threading.Condition(self._lock)
        self._woken = False
        self._closed = False
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def capacity(self) -> int:
        """Items that it holds at most."""
        return self._capacity

    @property
    def dropped(self) -> int:
        """Items not taken or thrown out since the beginning: full, no room in time, or closed."""
        return self._dropped

    @property
    def closed(self) -> bool:
        """Whether nothing more goes in."""
        return self._closed

    def put(self, item: T, timeout_s: float | None = None) -> bool:
        """Add an item.

        Args:
            item: what to add.
            timeout_s: how long `block` waits for room; None means as long as it takes.

        Returns:
            False when this very item was not taken: dropped as the newest, no room in time, or closed.
        """
        dropped: list[T] = []
        with self._lock:
            if self._overflow is Overflow.BLOCK:
                self._writable.wait_for(lambda: self._closed or len(self._items) < self._capacity, timeout_s)
            taken = not self._closed
            if taken and len(self._items) >= self._capacity:
                if self._overflow is Overflow.DROP_OLDEST:
                    dropped.append(self._items.popleft())
                else:
                    taken = False
            if taken:
                self._items.append(item)
                self._readable.notify()
            else:
                dropped.append(item)
            self._dropped += len(dropped)
        if self._on_drop is not None:
            for lost in dropped:
                self._on_drop(lost)
        return taken

    def take(self, timeout_s: float | None = None) -> T | None:
        """Return the oldest item; None when none came in time, on `wake`, and when closed and empty."""
        items = self.take_all(timeout_s, limit=1)
        return items[0] if items else None

    def take_all(self, timeout_s: float | None = None, limit: int | None = None) -> list[T]:
        """Return everything that waits, oldest first, waiting for the first item.

        Args:
            timeout_s: longest wait; None means as long as it takes, 0 means no wait.
            limit: items to return at most.

        Returns:
            An empty list when nothing came in time, on `wake`, and when closed and empty.
        """
        with self._lock:
            self._await_readable(timeout_s)
            self._woken = False
            count = len(self._items) if limit is None else min(limit, len(self._items))
            items = [self._items.popleft() for _ in range(count)]
            if items:
                self._writable.notify_all()
            return items

    def wake(self) -> None:
        """Let the reader's present wait, or its next one, return at once."""
        with self._lock:
            self._woken = True
            self._readable.notify()

    def close(self) -> None:
        """Take nothing more in; everyone who waits returns."""
        with self._lock:
            self._closed = True
            self._readable.notify_all()
            self._writable.notify_all()

    def _await_readable(self, timeout_s: float | None) -> None:
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not (self._items or self._woken or self._closed):
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return
            self._readable.wait(left_s)
