"""Tries a bundle out in a process of its own before the station loads it.

Of damaged model files some are refused by the runtime, some run and give nonsense, and some end the process: hash,
golden set and this process are one answer to each.
"""

import os
import subprocess
import sys

from station.errors import BundleError

WITHIN_S = 60.0
"""A bundle that takes longer than this is not loaded."""


def try_out(data: bytes, origin: str, threads: int) -> None:
    """Load a bundle elsewhere and replay its golden set; one for pictures or one for a process group.

    Args:
        data: the bundle file's bytes, which were let in already (`station.bundle_file.open_members`).
        origin: where they come from, for error texts.
        threads: for one invocation.

    Raises:
        BundleError: it cannot be used; the text says why in one line.
    """
    folders = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)  # noqa: PTH100  # of strings, for strings
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "station.adapters._bundle_child", origin, str(threads)],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": folders},
            timeout=WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise BundleError(f"bundle {origin}: is not loaded within {WITHIN_S:g} s") from exc
    except OSError as exc:
        raise BundleError(f"bundle {origin}: no process could be started to try it out: {exc.strerror}") from exc
    if ended.returncode == 1 and (told := ended.stdout.decode(errors="replace").strip().splitlines()):
        raise BundleError(told[-1])
    if ended.returncode != 0:
        raise BundleError(f"bundle {origin}: ended the process that tried it out, with code {ended.returncode}")
