"""What the process groups remember over a restart: one small file each, replaced whole."""

import os
from pathlib import Path

from station.errors import StorageError


class ProcessFiles:
    """Keeps one state a group below a folder.

    Args:
        folder: made when something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, group: str) -> bytes | None:
        """The newest state; None: there is none.

        Raises:
            StorageError: there is one, and it cannot be read.
        """
        try:
            return self._path(group).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StorageError(f"process {group}: {self._path(group)} cannot be read: {exc.strerror}") from exc

    def save(self, group: str, state: bytes) -> None:
        """Replace the state; it is on the disk when this returns, and never half of it.

        Raises:
            StorageError: the former one is still there.
        """
        path = self._path(group)
        new = path.with_suffix(".new")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with new.open("wb") as file:
                file.write(state)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as exc:
            raise StorageError(f"process {group}: {path} cannot be written: {exc.strerror}") from exc

    def _path(self, group: str) -> Path:
        return self._folder / f"{group}.state"
