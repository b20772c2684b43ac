"""What TensorFlow prints while it is imported, whatever its log level: lines that look like errors and are none."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

CHATTER = (b"All log messages before absl::InitializeLog()", b"oneDNN custom operations are on")


@contextmanager
def without_chatter() -> Iterator[None]:
    """Hold back what is written to the process's standard error meanwhile, and then pass on all lines but these."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not any(text in line for text in CHATTER):
                    os.write(2, line)
