"""A PLC for tests: a real Modbus server in a process of its own that notes when each write came, and an encoder in it.

Run as a program it is the server: `plc.py PORT LOG`. It has 100 coils and 100 holding registers. Of each write it notes
the table, address, value, and CLOCK_MONOTONIC when the packet came out of the socket and when the server was about to
set the value, one line each. Registers 50 and 51 hold an encoder that counts `COUNTS_A_S` a second; coil 90 refuses.
"""

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from child_server import OwnServer
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from station.adapters.embedded_broker import free_port

ENCODER = 50
COUNTS_A_S = 10_000
ENCODER_EVERY_S = 0.002
REFUSED_COIL = 90
_WRITES = {5: "coil", 6: "holding", 15: "coil", 16: "holding"}


@dataclass(frozen=True, slots=True)
class Write:
    """One write as the server saw it."""

    table: str
    address: int
    value: int
    came_s: float
    set_s: float


async def _serve(port: int, log: Path) -> None:
    came_s = 0.0
    with log.open("w", encoding="ascii", buffering=1) as notes:

        def arrived(sending: bool, packet: bytes) -> bytes:
            nonlocal came_s
            if not sending:
                came_s = time.monotonic()
            return packet

        async def act(
            code: int, _start: int, address: int, _count: int, _now: list[int], new: list[int] | list[bool] | None
        ) -> ExcCodes | None:
            if code in _WRITES and new is not None:
                if code == 5 and address == REFUSED_COIL:
                    return ExcCodes.ILLEGAL_ADDRESS
                print(_WRITES[code], address, int(new[0]), came_s, time.monotonic(), file=notes)
            return None

        bits = [SimData(0, values=[False] * 112, datatype=DataType.BITS)]
        registers = [SimData(0, count=100, values=0, datatype=DataType.REGISTERS)]
        device = SimDevice(1, (bits, bits, registers, registers), action=act)
        server = ModbusTcpServer([device], address=("127.0.0.1", port), trace_packet=arrived)
        await server.serve_forever(background=True)
        print("serving", flush=True)
        while True:
            counts = int(time.monotonic() * COUNTS_A_S) % (1 << 32)
            # Function 3 names the table; a value that the server sets itself is no write of a client.
            await server.async_setValues(1, 3, ENCODER, [counts >> 16, counts & 0xFFFF])
            await asyncio.sleep(ENCODER_EVERY_S)


class Plc(OwnServer):
    """The server as a child process; started on entry, ended on exit."""

    def __init__(self, folder: Path, *, niceness: int = 0) -> None:
        self.port = free_port()
        self._log = folder / "plc.log"
        self._niceness = niceness
        super().__init__(__file__, str(self.port), str(self._log))

    def _wait_until_it_serves(self) -> None:
        if self._niceness:
            os.setpriority(os.PRIO_PROCESS, self.process.pid, self._niceness)
        super()._wait_until_it_serves()

    @property
    def writes(self) -> list[Write]:
        """Everything that was written so far, in order."""
        found = []
        for line in self._log.read_text(encoding="ascii").splitlines():
            parts = line.split()
            if len(parts) == 5:
                found.append(Write(parts[0], int(parts[1]), int(parts[2]), float(parts[3]), float(parts[4])))
        return found

    def of(self, table: str, address: int) -> list[Write]:
        """The writes to one place."""
        return [one for one in self.writes if (one.table, one.address) == (table, address)]


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Path(sys.argv[2])))
