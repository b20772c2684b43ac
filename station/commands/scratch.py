"""A folder for the data of one run, which goes away with it, and at the latest when the next one begins."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
"""Held by the run whose folder it is; a folder whose lock nobody holds was left behind by a kill."""


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Make a folder in the system's temporary folder, and remove those of the same prefix that a kill left behind."""
    _sweep(prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    # The lock is held before it has its name: nobody can find it free.
    unnamed = folder / f"{LOCK}.new"
    handle = os.open(unnamed, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        unnamed.rename(folder / LOCK)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _sweep(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # Anybody may put things here: only what is a folder of our own, and not a link to one, is touched.
        with suppress(OSError):
            if folder.is_symlink() or folder.lstat().st_uid != os.getuid():
                continue
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(handle)
