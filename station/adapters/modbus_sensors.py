"""Modbus devices, over TCP or a serial line, polled on a fixed schedule.

Values that stand near each other are read with one request. An exception that a device answers with makes bad what it
concerns: where a request for several values is refused for its address, it is halved until the value is found that the
device does not have, and the others are read without it until the next connection. A device that does not answer makes
its own points bad; when none of a source's devices answers, the source is down and connected to anew.
"""

import math
from dataclasses import dataclass, field

from station.adapters._live_source import FIRST_PAUSE_S, next_due
from station.adapters._modbus_client import ModbusClient, NoAnswer
from station.adapters._sensor_source import SensorSource
from station.errors import SensorError
from station.modbus_registers import EXCEPTIONS, Block, concerns_address, decode, plan, split
from station.ports import Clock
from station.process_messages import ChannelQuality
from station.sensor_settings import ModbusRtuSensors, ModbusTcpSensors


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
        self._client = ModbusClient(settings, settings.timeout_s)

    def _serve(self) -> None:
        with self._client as client:
            self._poll(client)

    def _interrupt(self) -> None:
        self._client.interrupt()

    def _poll(self, client: ModbusClient) -> None:
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
                raise SensorError(f"{client.where}: {silent[0]}")
            self._hand_on(row)
            now_s = self.clock.monotonic_s()
            due_s = next_due(due_s, now_s, wanted.poll_s)
            self._stopping.wait(due_s - now_s)

    def _ask(self, client: ModbusClient, number: int, unit: _Unit, row: _Row) -> None:
        """Read all of one device's blocks."""
        now_s = self.clock.monotonic_s()
        if unit.silent is None or now_s >= unit.again_s:
            try:
                unit.blocks = [part for block in unit.blocks for part in self._read(client, block, row)]
            except NoAnswer as exc:
                client.drop()
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

    def _read(self, client: ModbusClient, block: Block, row: _Row) -> list[Block]:
        """Read a block into the row; return what to read in its place from now on.

        Raises:
            NoAnswer: the device did not answer.
        """
        answer = client.read(block.table, block.address, block.count, block.unit_id)
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
            raise NoAnswer(f"answers {len(content)} where {block.count} were asked for ({_shown(block)})")
        for name in block.points:
            point = self._settings.points[name]
            start = point.address - block.address
            value = decode(content[start : start + point.width], point)
            if math.isfinite(value):
                row.values[name] = value
            else:
                row.bad[name] = (ChannelQuality.NOT_A_NUMBER, f"the registers hold {value}")
        return [block]

    def _hand_on(self, row: _Row) -> None:
        if not row.bad:
            self._deliver([row.values[name] for name in self.points])
            return
        self._deliver(
            [row.values.get(name, math.nan) for name in self.points],
            [row.bad[name][0] if name in row.bad else ChannelQuality.GOOD for name in self.points],
            {name: reason for name, (_, reason) in row.bad.items()},
        )


def _shown(block: Block) -> str:
    last = block.address + block.count - 1
    span = str(block.address) if last == block.address else f"{block.address} to {last}"
    return f"{block.table} {span}"
