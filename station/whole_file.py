"""Files that are whole or not there, also after a power cut."""

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes, *, sync_folder: bool = True) -> None:
    """Write a file so that nobody ever sees a part of it; it is on the disk when this returns. Its folder is made.

    Args:
        path: the file; what was there before is replaced.
        content: all of it.
        sync_folder: make its name durable as well; without, a power cut may bring back what was there before, or
            nothing.

    Raises:
        OSError: the disk does not take it; what was there before still is, and nothing else is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if sync_folder:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
