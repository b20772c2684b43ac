"""The process in which a bundle is tried out: ``python -m station.adapters._bundle_child PATH THREADS``.

It ends with 0 when the bundle passes its golden set, and with 1 and one line on its output when it does not. Whatever
else a model file does to the runtime happens here and not in the station.
"""

import sys
from pathlib import Path

from station.adapters.litert_model import load_model
from station.errors import ModelError
from station.manifest import read_bundle


def main() -> int:
    """Try the bundle."""
    try:
        load_model(read_bundle(Path(sys.argv[1])), int(sys.argv[2]))
    except ModelError as exc:
        print(exc)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
