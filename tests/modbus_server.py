"""A real Modbus server in a process of its own, over TCP or on a pseudo terminal, that tests may kill, stop and start.

Run as a program it is the server: `modbus_server.py tcp PORT` or `modbus_server.py rtu DEVICE`.
"""

import asyncio
import os
import pty
import selectors
import struct
import subprocess
import sys
import threading
import tty
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from child_server import OwnServer
from pymodbus import FramerType
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from station.adapters.embedded_broker import free_port

TEMPERATURE = 81.25
PRESSURE = -123_456
BUSY = 600
"""This holding register always answers that the device is busy."""
SILENT = 77
"""This unit never answers."""
PLC = 3
"""This unit has the holding registers 0 to 31, for others to write into."""
HOLDING = {0: 7, 1: 0xFFFE, **dict(zip((10, 11), struct.unpack(">2H", struct.pack(">f", TEMPERATURE)), strict=True))}
"""Registers 0 and 1: 7 and -2; 10 and 11: the temperature. There is nothing between 2 and 9, and nothing from 12 on."""
INPUT = dict(zip((21, 20), struct.unpack(">2H", struct.pack(">i", PRESSURE)), strict=True))
"""20 and 21: the pressure, with the words swapped."""


async def _busy(
    _code: int, _start: int, address: int, count: int, _now: list[int], _new: list[int] | list[bool] | None
) -> ExcCodes | None:
    return ExcCodes.DEVICE_BUSY if address <= BUSY < address + count else None


async def _silent(
    _code: int, _start: int, _address: int, _count: int, _now: list[int], _new: list[int] | list[bool] | None
) -> ExcCodes | None:
    await asyncio.Event().wait()
    return None


def _device(unit_id: int) -> SimDevice:
    def registers(content: dict[int, int]) -> list[SimData]:
        return [SimData(at, values=value, datatype=DataType.REGISTERS) for at, value in sorted(content.items())]

    if unit_id == PLC:
        return SimDevice(unit_id, [SimData(0, values=[0] * 32, datatype=DataType.REGISTERS)])
    bits = [SimData(0, values=[True, False, True], datatype=DataType.BITS)]
    return SimDevice(
        unit_id,
        (bits, bits, registers({**HOLDING, BUSY: 1}), registers(INPUT)),
        action=_silent if unit_id == SILENT else _busy,
    )


async def _serve(kind: str, where: str) -> None:
    devices = [_device(1), _device(2), _device(PLC), _device(SILENT)]
    server: ModbusTcpServer | ModbusSerialServer
    if kind == "tcp":
        server = ModbusTcpServer(devices, address=("127.0.0.1", int(where)))
    else:
        server = ModbusSerialServer(devices, framer=FramerType.RTU, port=where, baudrate=115_200)
    await server.serve_forever(background=True)
    print("serving", flush=True)
    await asyncio.Event().wait()


class ModbusServer(OwnServer):
    """The server as a child process; started on entry, ended on exit."""

    def __init__(self, kind: str = "tcp", where: str | None = None) -> None:
        self.port = free_port() if kind == "tcp" else 0
        super().__init__(__file__, kind, where or str(self.port), stderr=subprocess.DEVNULL)


class SerialLine:
    """Two serial ports joined by a cable: what is written to one comes out of the other."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        ends = []
        for _ in range(2):
            master, slave = pty.openpty()
            for one in (master, slave):
                tty.setraw(one)
                self._stack.callback(os.close, one)
            ends.append((master, os.ttyname(slave)))
        (self._first, self.first), (self._second, self.second) = ends
        self._read_stop, self._write_stop = os.pipe()
        self._stack.callback(os.close, self._read_stop)
        self._stack.callback(os.close, self._write_stop)
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._write_stop, b"x")
        self._thread.join()
        self._stack.close()

    def _carry(self) -> None:
        other = {self._first: self._second, self._second: self._first}
        with selectors.DefaultSelector() as selector:
            for one in (*other, self._read_stop):
                selector.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == self._read_stop:
                        return
                    os.write(other[key.fd], os.read(key.fd, 4096))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2]))
