"""The process in which a bundle is tried out: ``python -m station.adapters._bundle_child ORIGIN THREADS < BUNDLE``.

It ends with 0 when the bundle passes its golden set, and with 1 and one line on its output when it does not. Whatever
else a model file does to the runtime happens here and not in the station. It gets the very bytes that the station has
let in and will load.
"""

import os
import sys

_NICENESS = 10
"""The line's own work goes first."""


def main() -> int:
    """Try the bundle."""
    os.nice(_NICENESS)
    # To load these takes a core for about a second, more than all that follows: not at the station's own priority.
    from station.adapters.litert_model import load_model  # noqa: PLC0415
    from station.adapters.litert_step import load_step_model  # noqa: PLC0415
    from station.bundle_file import head_of, open_members  # noqa: PLC0415
    from station.errors import ModelError  # noqa: PLC0415
    from station.manifest import open_bundle  # noqa: PLC0415
    from station.process_bundle import open_process_bundle  # noqa: PLC0415

    origin, threads = sys.argv[1], int(sys.argv[2])
    data = sys.stdin.buffer.read()
    try:
        if head_of(open_members(data, origin), origin).is_process:
            load_step_model(open_process_bundle(data, origin))
        else:
            load_model(open_bundle(data, origin), threads)
    except ModelError as exc:
        print(exc)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
