"""The embedded broker's own process: runs until it is ended, or until its parent is gone.

Run as a file with an rumqttd configuration as its only argument; imports nothing of the station.
"""

import logging
import os
import sys
import tempfile
import threading

from iotcore import Broker

from station.heap import keep_the_heap_small


def _leave_with_the_parent() -> None:
    """The parent holds the other end of standard input and never writes; the end of the file means that it is gone."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Serve MQTT for ever."""
    keep_the_heap_small()
    logging.basicConfig(level=logging.WARNING, format="embedded broker: %(levelname)s %(message)s")
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)  # it logs every packet as an error
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    # It takes its configuration from a file only, and reads that once: here and now.
    with tempfile.NamedTemporaryFile("w", prefix="station-broker-", suffix=".toml", encoding="utf-8") as file:
        file.write(sys.argv[1])
        file.flush()
        broker = Broker(config_path=file.name)
    broker.run_forever()


if __name__ == "__main__":
    main()
