"""Modbus devices, over TCP or a serial line, polled on a fixed schedule.

Values that stand near each other are read with one request. An exception that a device answers with makes bad what it
concerns: where a request for several values is refused for its address, it is halved until the value is found that the
device does not have, and the others are read without it until the next connection. A device that does not answer makes
its own points bad; when none of a source's devices answers, the source is down and connected to anew.
"""

import contextlib
import logging
import math
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.client.base import ModbusBaseSyncClient
from pymodbus.exceptions import ConnectionException, ModbusException
from pymodbus.pdu import ModbusPDU

from station.adapters._sensor_source import FIRST_PAUSE_S, SensorSource, next_due
from station.errors import SensorError
from station.modbus_registers import EXCEPTIONS, Block, concerns_address, decode, plan, split
from station.ports import Clock
from station.process_messages import ChannelQuality
from station.sensor_settings import ModbusRtuSensors, ModbusTcpSensors

logger = logging.getLogger(__name__)

# The library logs each failed attempt as an error; what concerns the user is told once, by us.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

_PARITY = {"none": "N", "even": "E", "odd": "O"}


class _NoAnswer(Exception):
    """A device did not answer, or not in the protocol."""


@dataclass(slots=True)
class _Unit:
    """A device: what is read from it, and when it may be asked again after it gave no answer."""

    blocks: list[Block] = field(default_factory=list)
    silent: str | None = None
    pause_s: float = FIRST_PAUSE_S
    again_s: float = -math.inf


@dataclass(slots=True)
class _Row:
    """A row on its way."""

    values: dict[str, float] = field(default_factory=dict)
    bad: dict[str, tuple[ChannelQuality, str]] = field(default_factory=dict)


class ModbusSource(SensorSource):
    """The points of one `[sensors.<name>]` table with kind `modbus_tcp` or `modbus_rtu`.

    Args:
        name: the source's name.
        settings: its table.
        clock: wall and monotonic time.
    """

    def __init__(self, name: str, settings: ModbusTcpSensors | ModbusRtuSensors, clock: Clock) -> None:
        super().__init__(name, settings, tuple(settings.points), clock)
        self._settings = settings
        self._client: ModbusBaseSyncClient | None = None

    def _serve(self) -> None:
        client = self._open()
        self._client = client
        try:
            self._connect(client)
            self._poll(client)
        finally:
            self._client = None
            client.close()  # type: ignore[no-untyped-call]

    def _interrupt(self) -> None:
        client = self._client
        if isinstance(client, ModbusTcpClient) and client.socket is not None:
            with contextlib.suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)

    def _open(self) -> ModbusBaseSyncClient:
        match self._settings:
            case ModbusTcpSensors() as wanted:
                return ModbusTcpClient(wanted.host, port=wanted.port, timeout=wanted.timeout_s, retries=0)
            case ModbusRtuSensors() as wanted:
                return ModbusSerialClient(
                    wanted.device,
                    baudrate=wanted.baud,
                    parity=_PARITY[wanted.parity],
                    stopbits=wanted.stop_bits,
                    handle_local_echo=wanted.local_echo,
                    timeout=wanted.timeout_s,
                    retries=0,
                )

    def _connect(self, client: ModbusBaseSyncClient) -> None:
        match self._settings:
            case ModbusTcpSensors() as wanted:
                # The library's own `connect` keeps to itself why it failed.
                assert isinstance(client, ModbusTcpClient)
                try:
                    client.socket = socket.create_connection((wanted.host, wanted.port), timeout=wanted.timeout_s)
                except OSError as exc:
                    raise SensorError(f"{self._where}: {exc.strerror or exc}") from exc
            case ModbusRtuSensors() as wanted:
                if not client.connect():
                    raise SensorError(f"{self._where}: {_why_not(wanted.device)}")

    def _poll(self, client: ModbusBaseSyncClient) -> None:
        wanted = self._settings
        units: dict[int, _Unit] = {}
        for block in plan(
            wanted.points, unit_id=wanted.unit_id, max_gap=wanted.max_gap, max_registers=wanted.max_registers
        ):
            units.setdefault(block.unit_id, _Unit()).blocks.append(block)
        due_s = self.clock.monotonic_s()
        while not self._stopping.is_set():
            row = _Row()
            for number, unit in units.items():
                self._ask(client, number, unit, row)
            if self._stopping.is_set():
                return
            silent = [unit.silent for unit in units.values() if unit.silent is not None]
            if len(silent) == len(units):
                raise SensorError(f"{self._where}: {silent[0]}")
            self._hand_on(row)
            now_s = self.clock.monotonic_s()
            due_s = next_due(due_s, now_s, wanted.poll_s)
            self._stopping.wait(due_s - now_s)

    def _ask(self, client: ModbusBaseSyncClient, number: int, unit: _Unit, row: _Row) -> None:
        """Read all of one device's blocks."""
        now_s = self.clock.monotonic_s()
        if unit.silent is None or now_s >= unit.again_s:
            try:
                unit.blocks = [part for block in unit.blocks for part in self._read(client, block, row)]
            except _NoAnswer as exc:
                if not self._serial:
                    # What it may yet say must not be taken for the answer to something else.
                    client.close()  # type: ignore[no-untyped-call]
                unit.silent = f"unit {number}: {exc}"
                unit.again_s = now_s + unit.pause_s
                unit.pause_s = min(2 * unit.pause_s, self._settings.reconnect_max_s)
            else:
                unit.silent, unit.pause_s = None, FIRST_PAUSE_S
        if unit.silent is not None:
            for block in unit.blocks:
                for point in block.points:
                    row.values.pop(point, None)
                    row.bad[point] = (ChannelQuality.SOURCE_FAULT, unit.silent)

    def _read(self, client: ModbusBaseSyncClient, block: Block, row: _Row) -> list[Block]:
        """Read a block into the row; return what to read in its place from now on.

        Raises:
            _NoAnswer: the device did not answer.
        """
        answer = self._request(client, block)
        if answer.isError():
            code = answer.exception_code
            halves = split(block, self._settings.points) if concerns_address(code) else ()
            if halves:
                return [part for half in halves for part in self._read(client, half, row)]
            reason = f"Modbus exception {code} ({EXCEPTIONS.get(code, 'unknown')}) for {_shown(block)}"
            row.bad.update(dict.fromkeys(block.points, (ChannelQuality.BAD_STATUS, reason)))
            return [block]
        content = [int(bit) for bit in answer.bits] if block.table in ("coil", "discrete") else answer.registers
        if len(content) < block.count:
            raise _NoAnswer(f"answers {len(content)} where {block.count} were asked for ({_shown(block)})")
        for name in block.points:
            point = self._settings.points[name]
            start = point.address - block.address
            value = decode(content[start : start + point.width], point)
            if math.isfinite(value):
                row.values[name] = value
            else:
                row.bad[name] = (ChannelQuality.NOT_A_NUMBER, f"the registers hold {value}")
        return [block]

    def _request(self, client: ModbusBaseSyncClient, block: Block) -> ModbusPDU:
        read = {
            "holding": client.read_holding_registers,
            "input": client.read_input_registers,
            "coil": client.read_coils,
            "discrete": client.read_discrete_inputs,
        }[block.table]
        try:
            return read(block.address, count=block.count, device_id=block.unit_id)
        except (ModbusException, OSError) as exc:
            raise _NoAnswer(self._describe(exc)) from exc
        except Exception as exc:
            logger.debug("Modbus client", exc_info=True)
            raise _NoAnswer(f"answers something that is not Modbus: {type(exc).__name__}: {exc}") from exc

    def _describe(self, exc: Exception) -> str:
        text = str(exc)
        if "No response" in text:
            return f"no answer within {self._settings.timeout_s:g} s"
        if isinstance(exc, ConnectionException):
            return "the connection was lost" if "closed" in text else "no connection"
        if isinstance(exc, OSError) and exc.strerror:
            return exc.strerror
        return text.removeprefix("Modbus Error: ")

    def _hand_on(self, row: _Row) -> None:
        if not row.bad:
            self._deliver([row.values[name] for name in self.points])
            return
        self._deliver(
            [row.values.get(name, math.nan) for name in self.points],
            [row.bad[name][0] if name in row.bad else ChannelQuality.GOOD for name in self.points],
            {name: reason for name, (_, reason) in row.bad.items()},
        )

    @property
    def _serial(self) -> bool:
        return isinstance(self._settings, ModbusRtuSensors)

    @property
    def _where(self) -> str:
        match self._settings:
            case ModbusTcpSensors() as wanted:
                return f"Modbus {wanted.host}:{wanted.port}"
            case ModbusRtuSensors() as wanted:
                return f"Modbus {wanted.device}"


def _why_not(device: str) -> str:
    """Why a serial port could not be opened; the library keeps it to itself."""
    path = Path(device)
    if not path.exists():
        present = ", ".join(sorted(str(one) for one in Path("/dev/serial/by-id").glob("*")))
        return f"there is no such device; this computer has {present or 'no serial port by id'}"
    if not os.access(path, os.R_OK | os.W_OK):
        return "may not be used by this user; add it to the group dialout: usermod -aG dialout USER"
    return "cannot be opened as a serial port; is it one, and does no other program use it?"


def _shown(block: Block) -> str:
    last = block.address + block.count - 1
    span = str(block.address) if last == block.address else f"{block.address} to {last}"
    return f"{block.table} {span}"
