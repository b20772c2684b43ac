"""The library of bundles on the disk: `<data folder>/bundles`, one file a bundle, named after its sha256.

    bundles/objects/<sha256>.bundle    as it came
    bundles/objects/<sha256>.sealed    encrypted, see `station.seal`
    bundles/index.json                 what is in it, and what is active where
    bundles/incoming/<sha256>.bundle   handed in by the command line; visible to nobody until it is installed

A file gets its name only when it is whole and on the disk, and a bundle is in the library only when the index says so;
the index is replaced whole. What a crash leaves beside it is removed by the next change. Several processes may use it:
changes are made under a lock that the kernel takes back from a process that ends.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from station.bundle_file import read_file
from station.bundle_index import Entry, Index
from station.errors import BundleError, BundleLocked, StorageError
from station.seal import NO_KEY, seal, unseal
from station.whole_file import write_whole

FOLDER = "bundles"
"""Below the data folder."""
_PLAIN, _SEALED = ".bundle", ".sealed"


class BundleLibrary:
    """Bundles in a folder.

    Args:
        data_dir: the data folder.
        key: encrypts and decrypts, 32 bytes; None: there is none.
        max_bytes: all bundles together.
    """

    def __init__(self, data_dir: Path, key: bytes | None, max_bytes: int) -> None:
        self._folder = data_dir / FOLDER
        self._objects = self._folder / "objects"
        self._incoming = self._folder / "incoming"
        self._key = key
        self._max_bytes = max_bytes

    def index(self) -> Index:
        """What the library holds now.

        Raises:
            StorageError: the index cannot be read.
        """
        path = self._folder / "index.json"
        try:
            return Index.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Index()
        except OSError as exc:
            raise StorageError(f"{path}: cannot be read: {exc.strerror}") from exc
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(str(level) for level in first["loc"]) or "file"
            raise StorageError(f"{path}: is damaged: {where}: {first['msg']}; move it away to begin anew") from None

    def read(self, sha256: str) -> bytes:
        """The plain bytes of a bundle file.

        Raises:
            BundleError: it is not there, or was altered.
            BundleLocked: it is encrypted, and the key is missing or another one.
        """
        plain, sealed = self._objects / f"{sha256}{_PLAIN}", self._objects / f"{sha256}{_SEALED}"
        is_sealed = sealed.exists()
        data = unseal(read_file(sealed), self._key, sha256, str(sealed)) if is_sealed else read_file(plain)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BundleError(f"bundle {plain}: was altered in the library: its sha256 is another one")
        return data

    def add(self, data: bytes, entry: Entry) -> Entry:
        """Put a bundle in, encrypted if its entry says so; one that is there already stays as it is.

        Returns:
            Its entry, with its size on the disk.

        Raises:
            StorageError: it cannot be written; the library is as it was.
            BundleLocked: it should be encrypted, and there is no key.
        """
        content, suffix = data, _PLAIN
        if entry.sealed:
            if self._key is None:
                raise BundleLocked(f"bundle {entry.shown}: {NO_KEY}, and it should be encrypted")
            content, suffix = seal(data, self._key, entry.sha256), _SEALED
        entry = entry.model_copy(update={"size_bytes": len(content)})
        path = self._objects / f"{entry.sha256}{suffix}"
        with self._changing() as index:
            known = index.entries.get(entry.sha256)
            if known is not None and self._is_there(known):
                return known
            self._sweep(index)
            try:
                _write(path, content)
                self._put(index.with_entry(entry), entry.sha256)
            except StorageError:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                raise
        return entry

    def change(self, how: Callable[[Index], Index]) -> Index:
        """Change what is active or noted; durable when it returns.

        Raises:
            StorageError: it cannot be written; all is as it was.
        """
        with self._changing() as index:
            changed = how(index)
            if changed != index:
                self._put(changed)
        return changed

    def hand_in(self, data: bytes) -> str:
        """Leave a file for a station to install; return its sha256.

        Raises:
            StorageError: it cannot be written.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        _write(self._incoming / f"{sha256}{_PLAIN}", data)
        return sha256

    def handed_in(self, sha256: str) -> bytes:
        """A file that was handed in.

        Raises:
            BundleError: there is none, or it is another one than its name says.
        """
        path = self._incoming / f"{sha256}{_PLAIN}"
        data = read_file(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BundleError(f"bundle {path}: is not what was handed in: its sha256 is another one")
        return data

    def discard(self, sha256: str) -> None:
        """Remove what was handed in."""
        with suppress(OSError):
            (self._incoming / f"{sha256}{_PLAIN}").unlink(missing_ok=True)

    @contextmanager
    def _changing(self) -> Iterator[Index]:
        try:
            for folder in (self._objects, self._incoming):
                folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as exc:
            raise StorageError(f"{self._folder}: cannot be written: {exc.strerror}") from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.index()
        finally:
            os.close(lock)

    def _put(self, index: Index, *keep: str) -> None:
        pruned, gone = index.pruned(self._max_bytes, keep)
        _write(self._folder / "index.json", pruned.model_dump_json(indent=1).encode())
        for sha256 in gone:
            for suffix in (_PLAIN, _SEALED):
                with suppress(OSError):
                    (self._objects / f"{sha256}{suffix}").unlink(missing_ok=True)

    def _is_there(self, entry: Entry) -> bool:
        return (self._objects / f"{entry.sha256}{_SEALED if entry.sealed else _PLAIN}").exists()

    def _sweep(self, index: Index) -> None:
        """Remove what a crash left: no index names it."""
        with suppress(OSError):
            for path in self._objects.iterdir():
                if path.stem not in index.entries:
                    path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as exc:
        raise StorageError(f"{path}: cannot be written: {exc.strerror}") from exc
