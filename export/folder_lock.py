"""One command at a time writes into a folder: two trainings would take turns in overwriting each other's checkpoint."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.samples import DatasetError


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Make a folder and keep other commands out of it until this one has left, in whatever way it ends.

    The folder itself is locked: no file is left behind. Who deletes it and makes it anew is not kept out, and a file
    system that knows no locks, as some network ones, takes several.

    Yields:
        The descriptor that holds the lock: a program that is started with it holds the folder as well.

    Raises:
        DatasetError: another command is at work in it, or something else has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as exc:
        # A file, a link that leads nowhere, or a path through a file.
        raise DatasetError(f"{folder}: is not a folder and cannot be made one; give another for --out") from exc
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise DatasetError(
                f"{folder}: another command is at work in it; wait until it has ended, or give another for --out"
            ) from exc
        except OSError:
            pass
        yield descriptor
    finally:
        os.close(descriptor)
