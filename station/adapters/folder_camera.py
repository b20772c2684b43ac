"""A folder of pictures as a camera: read once, in a loop, or watched for new files."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

from station.errors import CameraError, EndOfStream
from station.messages import Capture, Pixels, Reason
from station.picture import HEAD_BYTES, TAIL_BYTES, decode, has_end_mark
from station.ports import Clock
from station.settings import FolderCamera

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
"""Files that are taken for pictures; anything else (a copier's .tmp or .part) is passed over."""
_SUFFIXES = tuple(SUFFIXES)

SETTLE_S = 0.5
"""A file that is seen unchanged for this long is complete, if its own end mark says so, too. The clock of the machine
that wrote it plays no part: a share's server may be minutes off."""
GIVE_UP_S = 5.0
"""A file that is seen unchanged for this long without its end mark is taken for damaged, not for unfinished."""
POLL_S = 0.2
EVERYTHING = "**/*"
"""The default pattern."""
_SCAN_SHARE = 0.1
"""Looking through a large folder takes at most this share of the time."""


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What tells two contents of one name apart, and when the file system last noted a change (for the order only: a
    change of permissions is noted, too)."""

    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int = field(compare=False)

    @classmethod
    def of(cls, file: "Path | os.DirEntry[str]") -> "_Stamp":
        status = file.stat()
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class FolderCameraReader:
    """Delivers the pictures of a folder; a picture's `source` is its path below the folder, undecodable bytes escaped.

    `once` and `loop` take them in natural order (`part9` before `part10`) or in the order of the list file. `watch`
    takes them in the order in which they arrived, by the time of change that the file system keeps itself (a copier can
    set a file's modification time, not this one); equal times in natural order. A name whose content changes is a new
    picture in `watch`. A file is only read when it is complete. One that cannot be decoded is delivered once, without
    pixels and with the fault `unreadable`.

    Args:
        settings: the folder and how to read it.
        clock: time.
        resume_after: source of the last picture that was handed on. `once` and `loop` go on behind it; if it is gone,
            behind where its name would stand. `watch` goes on with what arrived after it; if it is gone, nobody can say
            what arrived after it, and every picture that is there is taken: rather one twice than one never.
        wait: sleeps for some seconds.
    """

    def __init__(
        self,
        settings: FolderCamera,
        clock: Clock,
        resume_after: str | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._resume_after = resume_after
        self._wait = wait
        self._pictures: Iterator[str] = iter(())
        self._due_s: float | None = None

    def __enter__(self) -> Self:
        folder = self._settings.path
        if not folder.is_dir():
            raise CameraError(f"{folder}: is not a folder, or cannot be reached")
        self._pictures = self._watch() if self._settings.mode == "watch" else self._walk()
        self._due_s = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._pictures = iter(())

    def read(self) -> Capture:
        """Wait for the next complete picture and decode it.

        Raises:
            CameraError: the folder or the list file cannot be read, or holds no picture.
            EndOfStream: `once`: all pictures were delivered.
        """
        name = next(self._pictures, None)
        if name is None:
            raise EndOfStream(f"{self._settings.path}: all pictures were delivered")
        self._keep_pace()
        self._resume_after = _source(name)
        pixels: Pixels | None
        fault: Reason | None
        try:
            data = (self._settings.path / name).read_bytes()
            pixels, fault = decode(data, grey=self._settings.colour == "grey"), None
        except (OSError, ValueError):
            pixels, fault = None, Reason.UNREADABLE
        return Capture(pixels, self._clock.now(), self._clock.monotonic_s(), source=_source(name), fault=fault)

    def _keep_pace(self) -> None:
        if self._settings.rate_fps is None:
            return
        now_s = self._clock.monotonic_s()
        if self._due_s is not None and now_s < self._due_s:
            self._wait(self._due_s - now_s)
        self._due_s = max(now_s, self._due_s or now_s) + 1 / self._settings.rate_fps

    # once and loop

    def _walk(self) -> Iterator[str]:
        names = self._listed() if self._settings.list_file else sorted(self._scan(), key=natural_order)
        if not names:
            where = self._settings.list_file or f"{self._settings.path}/{self._settings.pattern}"
            raise CameraError(f"{where}: there is no picture; allowed suffixes: {' '.join(sorted(SUFFIXES))}")
        this_round = self._behind(names)
        while True:
            seen_s = self._clock.monotonic_s()
            stamps = self._stamps(this_round)
            for name in this_round:
                if name in stamps:
                    self._settle(name, stamps[name], seen_s)
                yield name
            if self._settings.mode != "loop":
                return
            this_round = names

    def _behind(self, names: Sequence[str]) -> Sequence[str]:
        last = self._resume_after
        if last is None:
            return names
        for index, name in enumerate(names):
            if _source(name) == last:
                return names[index + 1 :]
        if self._settings.list_file:
            # Another list than the one that was read before: it begins at its beginning.
            return names
        return [name for name in names if natural_order(_source(name)) > natural_order(last)]

    def _listed(self) -> list[str]:
        assert self._settings.list_file is not None
        try:
            lines = self._settings.list_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise CameraError(f"{self._settings.list_file}: cannot be read as a list of pictures: {exc}") from exc
        names = [line.strip() for line in lines if line.strip()]
        for name in names:
            path = Path(name)
            if path.is_absolute() or ".." in path.parts:
                raise CameraError(f"{self._settings.list_file}: {name}: must be a path below {self._settings.path}")
        return names

    def _settle(self, name: str, stamp: _Stamp, since_s: float) -> None:
        """Wait until a file that is there, but perhaps still being written, is complete or hopeless.

        It is known to have looked like `stamp` at the monotonic time `since_s`.
        """
        path = self._settings.path / name
        try:
            while True:
                now, now_s = _Stamp.of(path), self._clock.monotonic_s()
                if now != stamp:
                    stamp, since_s = now, now_s
                if self._complete(path, now_s - since_s):
                    return
                self._wait(POLL_S)
        except OSError:
            # It is gone, or cannot be read; the reading will say so.
            return

    @staticmethod
    def _complete(path: Path, unchanged_s: float) -> bool:
        return unchanged_s >= GIVE_UP_S or (unchanged_s >= SETTLE_S and _has_end_mark(path))

    # watch

    def _watch(self) -> Iterator[str]:
        began_s = self._clock.monotonic_s()
        present = self._present()
        done = self._done_before(present)
        unsettled: dict[str, tuple[_Stamp, float]] = {}
        first_look = True
        while True:
            done = {name: stamp for name, stamp in done.items() if name in present}
            unsettled = {
                name: unsettled[name] if name in unsettled and unsettled[name][0] == stamp else (stamp, began_s)
                for name, stamp in present.items()
                if done.get(name) != stamp
            }
            found = False
            for name in _by_arrival(unsettled, present):
                # The order of arrival is what a restart goes by, so a file that is not complete holds up later ones.
                # One that is still written to is itself the latest.
                stamp, since_s = unsettled[name]
                if not self._arrived(name, began_s - since_s):
                    break
                found = True
                done[name] = stamp
                yield name
            if not found:
                spent_s = self._clock.monotonic_s() - began_s
                if first_look:
                    # After a long absence the folder is full of pictures, and all they wait for is a second look.
                    self._wait(POLL_S)
                else:
                    self._wait(max(POLL_S, spent_s if unsettled else spent_s / _SCAN_SHARE))
            first_look = False
            began_s = self._clock.monotonic_s()
            present = self._present()

    def _arrived(self, name: str, unchanged_s: float) -> bool:
        try:
            return self._complete(self._settings.path / name, unchanged_s)
        except OSError:
            # Removed, or not readable: the next look, or at last the reading, will tell.
            return unchanged_s >= GIVE_UP_S

    def _done_before(self, present: Mapping[str, _Stamp]) -> dict[str, _Stamp]:
        last = next((name for name in present if _source(name) == self._resume_after), None)
        if last is None:
            return {}
        last_ns, last_order = present[last].changed_ns, natural_order(last)
        return {
            name: stamp
            for name, stamp in present.items()
            if stamp.changed_ns < last_ns or (stamp.changed_ns == last_ns and natural_order(name) <= last_order)
        }

    def _stamps(self, names: Iterable[str]) -> dict[str, _Stamp]:
        stamps = {}
        for name in names:
            # One that was removed since it was listed has no stamp.
            with suppress(OSError):
                stamps[name] = _Stamp.of(self._settings.path / name)
        return stamps

    def _scan(self) -> list[str]:
        return [name for name, _ in self._files()]

    def _present(self) -> dict[str, _Stamp]:
        stamps = {}
        for name, file in self._files():
            with suppress(OSError):
                stamps[name] = _Stamp.of(file)
        return stamps

    def _files(self) -> Iterator[tuple[str, "Path | os.DirEntry[str]"]]:
        folder = self._settings.path
        try:
            # Neither a glob nor a walk says anything of a folder that cannot be listed.
            with os.scandir(folder):
                pass
            if self._settings.pattern == EVERYTHING:
                yield from _files_below(str(folder), "")
                return
            for path in folder.glob(self._settings.pattern):
                if _is_picture(path.name) and path.is_file():
                    yield path.relative_to(folder).as_posix(), path
        except OSError as exc:
            raise CameraError(f"{folder}: cannot be listed: {exc.strerror}") from exc


def _by_arrival(names: Iterable[str], stamps: Mapping[str, _Stamp]) -> Iterator[str]:
    def changed_ns(name: str) -> int:
        return stamps[name].changed_ns

    for _, together in groupby(sorted(names, key=changed_ns), key=changed_ns):
        yield from sorted(together, key=natural_order)


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(_SUFFIXES)


def _files_below(folder: str, prefix: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """What `EVERYTHING` matches, many times faster than a glob: a folder that was not emptied holds 100,000 files."""
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(entry.path, f"{prefix}{entry.name}/")
        elif _is_picture(entry.name) and entry.is_file():
            yield prefix + entry.name, entry


def _source(name: str) -> str:
    # A name that is not UTF-8 could not be published.
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def natural_order(name: str) -> tuple[tuple[tuple[int, int | str], ...], str]:
    """Sort key under which numbers in names compare as numbers; different names never compare as equal."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(part)) if part.isascii() and part.isdigit() else (1, part) for part in parts if part), name


def _has_end_mark(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        return has_end_mark(head, file.read(), size)
