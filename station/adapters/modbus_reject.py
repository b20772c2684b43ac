"""A reject output in a Modbus device: a coil or a register, a heartbeat register, and the counts of an encoder.

The requests are made once; a write is then one small packet on a connection that stays open.
"""

from types import TracebackType
from typing import Self

from pymodbus.pdu import ModbusPDU
from pymodbus.pdu.bit_message import WriteSingleCoilRequest
from pymodbus.pdu.register_message import WriteSingleRegisterRequest

from station.adapters._modbus_client import ModbusClient, NoAnswer
from station.errors import OutputError, OutputRefused, SensorError
from station.modbus_registers import EXCEPTIONS, decode
from station.reject_settings import RtuReject, TcpReject
from station.sensor_settings import ModbusPoint


class ModbusReject:
    """The RejectDevice port over Modbus; connected while it is entered.

    Args:
        settings: the output's table.
    """

    def __init__(self, settings: TcpReject | RtuReject) -> None:
        self._settings = settings
        self._client = ModbusClient(settings, settings.timeout_s)
        self._requests = {on: self._request(on=on) for on in (False, True)}
        counts = settings.counts
        self._point = (
            None
            if counts is None
            else ModbusPoint(table=counts.table, address=counts.address, type=counts.type, order=counts.order)
        )

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            OutputError: the port cannot be opened.
        """
        try:
            self._client.__enter__()
        except SensorError as exc:
            raise OutputError(str(exc)) from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._client.__exit__(kind, error, trace)

    def set(self, *, on: bool) -> None:
        """Switch the output on or off."""
        self._execute(self._requests[on], f"{self._settings.table} {self._settings.address}")

    def beat(self, count: int) -> None:
        """Write the heartbeat register."""
        heartbeat = self._settings.heartbeat
        assert heartbeat is not None
        request = WriteSingleRegisterRequest(
            address=heartbeat.address, registers=[count], dev_id=self._settings.unit_id
        )
        self._execute(request, f"holding {heartbeat.address}")

    def count(self) -> int:
        """Read the encoder's counts."""
        point = self._point
        assert point is not None
        answer = self._read(point.table, point.address, point.width)
        return int(decode(answer.registers, point))

    def look(self) -> str:
        """Read the output, the heartbeat and the counts."""
        wanted = self._settings
        answer = self._read(wanted.table, wanted.address, 1)
        now = int(answer.bits[0]) if wanted.table == "coil" else answer.registers[0]
        shown = [f"{wanted.table} {wanted.address} = {now}"]
        if wanted.heartbeat is not None:
            beat = self._read("holding", wanted.heartbeat.address, 1).registers[0]
            shown.append(f"heartbeat {wanted.heartbeat.address} = {beat}")
        if wanted.counts is not None:
            shown.append(f"counts {wanted.counts.address} = {self.count()}")
        return ", ".join(shown)

    def _request(self, *, on: bool) -> ModbusPDU:
        wanted = self._settings
        if wanted.table == "coil":
            return WriteSingleCoilRequest(address=wanted.address, bits=[on], dev_id=wanted.unit_id)
        value = wanted.value if on else wanted.rest_value
        return WriteSingleRegisterRequest(address=wanted.address, registers=[value], dev_id=wanted.unit_id)

    def _execute(self, request: ModbusPDU, what: str) -> ModbusPDU:
        try:
            answer = self._client.execute(request)
        except NoAnswer as exc:
            raise OutputError(f"{self._client.where}: {exc}") from exc
        return self._understood(answer, what)

    def _read(self, table: str, address: int, count: int) -> ModbusPDU:
        try:
            answer = self._client.read(table, address, count, self._settings.unit_id)
        except NoAnswer as exc:
            raise OutputError(f"{self._client.where}: {exc}") from exc
        if not answer.isError() and len(answer.bits if table == "coil" else answer.registers) < count:
            raise OutputError(f"{self._client.where}: a short answer for {table} {address}")
        return self._understood(answer, f"{table} {address}")

    def _understood(self, answer: ModbusPDU, what: str) -> ModbusPDU:
        if answer.isError():
            code = answer.exception_code
            raise OutputRefused(
                f"{self._client.where}: Modbus exception {code} ({EXCEPTIONS.get(code, 'unknown')}) for {what} of unit "
                f"{self._settings.unit_id}"
            )
        return answer
