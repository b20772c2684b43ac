"""How the command line of this machine tells a running station what to do: a folder of small files.

A request is a file `<transaction>.<verb>` with the JSON that a request over MQTT has; its answer, the same `Response`
as on `response/<verb>`, is the file `<transaction>.answer`. Each is written beside its place and renamed into it, so
that half a file is never seen. The station holds a lock on the folder for as long as it reads it; the kernel takes it
back however the station ends. Who may write into the data folder may command the station: nothing else is asked.
"""

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from station import wire
from station.errors import NotAnswered, NotRunning, StorageError
from station.ids import uuid7
from station.messages import Incoming, Origin, Response, Verb
from station.requests import MAX_BYTES

logger = logging.getLogger(__name__)

FOLDER = "control"
"""Below the data folder."""
ANSWER_KEPT_S = 600.0
"""An answer that nobody fetched is removed after this time."""
LOOK_EVERY_S = 0.02
"""How often one who waits for an answer looks for it."""
_LOCK = "lock"
_ANSWER = "answer"
_NEW = ".new"
_REQUEST = re.compile(r"[0-9a-f-]{36}\.[a-z][a-z-]{0,31}")


class ControlFolder:
    """The station's side; `take` belongs to the thread that looks at commands.

    Args:
        data_dir: the data folder.
        station: the station's name.
    """

    def __init__(self, data_dir: Path, station: str) -> None:
        self._folder = data_dir / FOLDER
        self._station = station
        self._lock: int | None = None
        self._fault: str | None = None

    def __enter__(self) -> Self:
        """Make the folder, take its lock, and remove what former runs left: nobody waits for it.

        Raises:
            StorageError: it cannot be written, or another station reads it.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in self._folder.iterdir():
                if path.name != _LOCK:
                    path.unlink()
        except BlockingIOError as exc:
            self._close()
            raise StorageError(f"{self._folder}: is read by another running station") from exc
        except OSError as exc:
            self._close()
            raise StorageError(f"{exc.filename or self._folder}: {exc.strerror}") from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._close()

    def take(self) -> Iterator[Incoming]:
        """The requests that came since the last call, oldest first; a folder that cannot be read is logged once."""
        try:
            found = self._listed()
            for _, name in found:
                if _REQUEST.fullmatch(name) and not name.endswith(f".{_ANSWER}"):
                    path = self._folder / name
                    try:
                        with path.open("rb") as file:
                            payload = file.read(MAX_BYTES + 1)
                        path.unlink()
                    except FileNotFoundError:
                        # Taken back by the one who asked, who has been told that nothing is done.
                        continue
                    yield self._incoming(name, payload)
            for at_ns, name in found:
                if name.endswith(f".{_ANSWER}") and time.time() - at_ns / 1e9 > ANSWER_KEPT_S:
                    (self._folder / name).unlink(missing_ok=True)
            self._tell(None)
        except OSError as exc:
            self._tell(f"{exc.filename or self._folder}: {exc.strerror}")

    def _listed(self) -> list[tuple[int, str]]:
        """When each file was written, and its name; without those that get another name or go meanwhile."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    found.append((entry.stat().st_mtime_ns, entry.name))
        return sorted(found)

    def _incoming(self, name: str, payload: bytes) -> Incoming:
        transaction, _, verb = name.partition(".")
        return Incoming(
            wire.request_topic(self._station, verb),
            payload,
            origin=Origin.LOCAL,
            reply=lambda answer: self._answer(transaction, answer),
        )

    def _answer(self, transaction: str, payload: bytes) -> None:
        try:
            _write(self._folder, f"{transaction}.{_ANSWER}", payload)
        except OSError as exc:
            # The record is in the journal; the one who asked is told where to look.
            self._tell(f"{exc.filename or self._folder}: {exc.strerror}")

    def _tell(self, fault: str | None) -> None:
        if fault is not None and fault != self._fault:
            logger.warning("requests of the command line cannot be read or answered: %s", fault)
        elif fault is None and self._fault is not None:
            logger.info("requests of the command line can be read again")
        self._fault = fault

    def _close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def is_read(data_dir: Path) -> bool:
    """Whether a running station reads the requests in this data folder."""
    try:
        lock = os.open(data_dir / FOLDER / _LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def ask(data_dir: Path, verb: Verb, request: dict[str, object], within_s: float) -> Response:
    """Tell the running station what to do, and wait for its answer.

    Args:
        data_dir: its data folder.
        verb: what to do.
        request: the request's keys, without `transaction`.
        within_s: how long to wait.

    Raises:
        NotRunning: no station reads this folder; nothing was left in it.
        NotAnswered: it did not answer in time, or stopped before it did; the text says whether it may still act.
        StorageError: the folder cannot be written.
        ProtocolError: the answer cannot be read.
    """
    if not is_read(data_dir):
        raise NotRunning(f"no station runs on {data_dir}")
    transaction = str(uuid7(time.time_ns() // 1_000_000))
    folder = data_dir / FOLDER
    asked, answer = folder / f"{transaction}.{verb}", folder / f"{transaction}.{_ANSWER}"
    payload = wire.encode_request(transaction, request)
    try:
        _write(folder, asked.name, payload)
        until_s = time.monotonic() + within_s
        while not answer.exists():
            stopped, late = not is_read(data_dir), time.monotonic() > until_s
            if (stopped or late) and not answer.exists():
                raise NotAnswered(_not_answered(asked, transaction, stopped=stopped, within_s=within_s))
            time.sleep(LOOK_EVERY_S)
        told = answer.read_bytes()
        answer.unlink()
    except OSError as exc:
        raise StorageError(f"{exc.filename or folder}: {exc.strerror}") from exc
    return wire.decode(Response, told)


def _not_answered(asked: Path, transaction: str, *, stopped: bool, within_s: float) -> str:
    why = "the station stopped before it answered" if stopped else f"the station did not answer within {within_s:g} s"
    try:
        asked.unlink()
    except FileNotFoundError:
        return f"{why}; it has the request {transaction}, and the journal will tell what came of it"
    return f"{why}; the request was taken back"


def _write(folder: Path, name: str, payload: bytes) -> None:
    new = folder / f"{name}{_NEW}"
    descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(payload)
    new.rename(folder / name)
