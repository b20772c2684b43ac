"""What process groups and part counters remember over a restart: one small file each, replaced whole."""

from pathlib import Path

from station.errors import StorageError
from station.whole_file import write_whole


class StateFiles:
    """Keeps one state a name below a folder.

    Args:
        folder: made when something is saved.
        of: what the names are names of, for error texts.
    """

    def __init__(self, folder: Path, of: str) -> None:
        self._folder = folder
        self._of = of

    def load(self, name: str) -> bytes | None:
        """The newest state; None: there is none.

        Raises:
            StorageError: there is one, and it cannot be read.
        """
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StorageError(f"{self._of} {name}: {self._path(name)} cannot be read: {exc.strerror}") from exc

    def save(self, name: str, state: bytes) -> None:
        """Replace the state; it is on the disk when this returns, and never half of it.

        Raises:
            StorageError: the former one is still there.
        """
        path = self._path(name)
        try:
            write_whole(path, state)
        except OSError as exc:
            raise StorageError(f"{self._of} {name}: {path} cannot be written: {exc.strerror}") from exc

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.state"
