"""Small files that are replaced whole and survive a power cut."""

import os
from pathlib import Path


def replace_durably(path: Path, content: bytes) -> None:
    """Replace a file; it is on the disk when this returns, and never half of it.

    Raises:
        OSError: the former file is still there.
    """
    new = path.with_suffix(".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
