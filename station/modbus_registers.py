"""What a Modbus device's registers mean, and which to read together."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from station.sensor_settings import ModbusPoint

MAX_BITS = 2000
"""Coils or discrete inputs in one request (Modbus application protocol V1.1b3, 6.1)."""
_FORMS = {
    "int16": ">h",
    "uint16": ">H",
    "int32": ">i",
    "uint32": ">I",
    "int64": ">q",
    "uint64": ">Q",
    "float32": ">f",
    "float64": ">d",
}
EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge",
    6: "device busy",
    7: "negative acknowledge",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "the device behind the gateway does not answer",
}
"""Exception codes of Modbus application protocol V1.1b3, section 7."""
_OF_ADDRESS = frozenset({1, 2, 3, 4})


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive registers or bits that one request reads.

    Attributes:
        unit_id: the device.
        table: holding, input, coil or discrete.
        address: of the first one.
        count: how many.
        points: names of the values that lie in it, by address.
    """

    unit_id: int
    table: str
    address: int
    count: int
    points: tuple[str, ...]


def decode(registers: Sequence[int], point: ModbusPoint) -> float:
    """Return the value that registers hold.

    Args:
        registers: `point.width` numbers of 16 bits, as they came; of a coil or discrete input, one 0 or 1.
        point: says how to read them.
    """
    kind = point.effective_type
    if kind == "bit":
        return float(registers[0] >> (point.bit or 0) & 1)
    return float(struct.unpack(_FORMS[kind], ordered_bytes(registers, point.order))[0])


def ordered_bytes(registers: Sequence[int], order: str) -> bytes:
    """The bytes of registers, the highest first.

    Args:
        registers: numbers of 16 bits, as they came.
        order: ABCD, CDAB, BADC or DCBA, as in the settings.
    """
    words = list(registers)
    if order in ("CDAB", "DCBA"):
        words.reverse()
    # As they come, the bytes of each word stand highest first; "<H" swaps them.
    swapped = order in ("BADC", "DCBA")
    return struct.pack(f"{'<' if swapped else '>'}{len(words)}H", *words)


def plan(points: Mapping[str, ModbusPoint], *, unit_id: int, max_gap: int, max_registers: int) -> tuple[Block, ...]:
    """Choose the requests: as few as the limits allow, in the order of units, tables and addresses.

    Args:
        points: name → where it stands.
        unit_id: the device of points that name none.
        max_gap: unused registers (or bits) between two values that are read along.
        max_registers: registers in one request.
    """
    of_table: dict[tuple[int, str], list[str]] = {}
    for name, point in points.items():
        of_table.setdefault((unit_id if point.unit_id is None else point.unit_id, point.table), []).append(name)
    blocks = []
    for (unit, table), names in sorted(of_table.items()):
        limit = MAX_BITS if table in ("coil", "discrete") else max_registers
        group: list[str] = []
        for name in sorted(names, key=lambda name: points[name].address):
            if group:
                first, end = _extent(points, group)
                point = points[name]
                if point.address - end > max_gap or max(end, point.address + point.width) - first > limit:
                    blocks.append(_block(points, unit, table, group))
                    group = []
            group.append(name)
        blocks.append(_block(points, unit, table, group))
    return tuple(blocks)


def split(block: Block, points: Mapping[str, ModbusPoint]) -> tuple[Block, ...]:
    """Halve a block that a device refuses, to find the part that it does not have; () where nothing can be halved."""
    if len(block.points) == 1:
        return ()
    middle = len(block.points) // 2
    halves = (block.points[:middle], block.points[middle:])
    return tuple(_block(points, block.unit_id, block.table, half) for half in halves)


def concerns_address(code: int) -> bool:
    """Whether an exception may come from one register of a request only; busy devices and gateways refuse them all."""
    return code in _OF_ADDRESS


def _extent(points: Mapping[str, ModbusPoint], names: Iterable[str]) -> tuple[int, int]:
    chosen = [points[name] for name in names]
    return min(one.address for one in chosen), max(one.address + one.width for one in chosen)


def _block(points: Mapping[str, ModbusPoint], unit_id: int, table: str, names: Sequence[str]) -> Block:
    first, end = _extent(points, names)
    return Block(unit_id, table, first, end - first, tuple(names))
