"""Part ids in the registers of a Modbus device, polled on a fixed schedule.

An id has no time of its own: it came between the look that found it and the look before. Where that is longer than the
window, because the device was slow or away, nobody can say which part it belongs to, and it is not used. What stands
in the registers at the first look may have stood there for any time, and is not used either.
"""

import logging
import re
import struct
from collections.abc import Sequence

from station.adapters._live_source import LiveSource, next_due
from station.adapters._modbus_client import ModbusClient, NoAnswer
from station.errors import SensorError
from station.modbus_registers import EXCEPTIONS, ordered_bytes
from station.part_id_messages import SeenId
from station.part_id_settings import ModbusRtuPartId, ModbusTcpPartId
from station.part_id_text import read_id
from station.ports import Clock

logger = logging.getLogger(__name__)

_INTEGERS = {1: "h", 2: "i", 4: "q"}


class ModbusPartIds(LiveSource[SeenId]):
    """The ids of one camera's parts, from registers.

    Args:
        camera: the camera's name.
        settings: its table `part_id`.
        clock: monotonic time.
    """

    def __init__(self, camera: str, settings: ModbusTcpPartId | ModbusRtuPartId, clock: Clock) -> None:
        super().__init__(camera, settings, clock, "part-ids")
        self._settings = settings
        self._pattern = re.compile(settings.pattern) if settings.pattern is not None else None
        self._client = ModbusClient(settings, settings.timeout_s)
        self._slow = False

    def _serve(self) -> None:
        with self._client as client:
            self._poll(client)

    def _interrupt(self) -> None:
        self._client.interrupt()

    def _poll(self, client: ModbusClient) -> None:
        wanted = self._settings
        before: tuple[Sequence[int], float] | None = None
        due_s = self.clock.monotonic_s()
        while not self._stopping.is_set():
            asked_s = self.clock.monotonic_s()
            registers = self._registers(client)
            answered_s = self.clock.monotonic_s()
            self._running()
            if before is not None and self._is_new(before[0], registers):
                self._hand_on(registers, before[1], answered_s)
            before = (registers, asked_s)
            due_s = next_due(due_s, answered_s, wanted.poll_s)
            self._stopping.wait(due_s - answered_s)

    def _registers(self, client: ModbusClient) -> Sequence[int]:
        """All registers that are of interest, from one answer.

        Raises:
            SensorError: the device does not answer, or refuses.
        """
        wanted = self._settings
        first, count = wanted.span
        try:
            answer = client.read(wanted.table, first, count, wanted.unit_id)
        except NoAnswer as exc:
            raise SensorError(f"{client.where}: unit {wanted.unit_id}: {exc}") from exc
        if answer.isError():
            code = answer.exception_code
            what = f"Modbus exception {code} ({EXCEPTIONS.get(code, 'unknown')})"
            span = f"{wanted.table} {first} to {first + count - 1}"
            raise SensorError(f"{client.where}: unit {wanted.unit_id}: {what} for {span}")
        if len(answer.registers) < count:
            raise SensorError(f"{client.where}: answers {len(answer.registers)} registers where {count} were asked for")
        return answer.registers[:count]

    def _is_new(self, before: Sequence[int], now: Sequence[int]) -> bool:
        wanted = self._settings
        if wanted.sequence is None:
            return self._id_in(before) != self._id_in(now)
        place = wanted.sequence - wanted.span[0]
        return before[place] != now[place]

    def _id_in(self, registers: Sequence[int]) -> Sequence[int]:
        start = self._settings.address - self._settings.span[0]
        return registers[start : start + self._settings.width]

    def _hand_on(self, registers: Sequence[int], after_s: float, until_s: float) -> None:
        at_s = (after_s + until_s) / 2
        if until_s - after_s > 2 * self._settings.window_s:
            if not self._slow:
                logger.warning(
                    "part-ids %s: %.3f s lay between two looks; an id that came then is not used: nobody knows when",
                    self.name,
                    until_s - after_s,
                )
            self._slow = True
            return
        self._slow = False
        try:
            self._put(SeenId(read_id(self._text(self._id_in(registers)), self._pattern), at_s))
        except ValueError as exc:
            self._put(SeenId(None, at_s, str(exc)))

    def _text(self, registers: Sequence[int]) -> str:
        """What the registers hold, as text.

        Raises:
            ValueError: it is not ASCII.
        """
        raw = ordered_bytes(registers, self._settings.order)
        if self._settings.type == "text":
            return raw.decode("ascii")
        form = _INTEGERS[len(registers)]
        return str(struct.unpack(f">{form.upper() if self._settings.type.startswith('u') else form}", raw)[0])
