"""A connection to Modbus devices, over TCP or a serial line; shared by the adapters that speak Modbus."""

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, assert_never

from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.client.base import ModbusBaseSyncClient
from pymodbus.exceptions import ConnectionException, ModbusException
from pymodbus.pdu import ModbusPDU

from station.errors import SensorError
from station.sensor_settings import SerialPort, TcpPort

logger = logging.getLogger(__name__)

# The library logs each failed attempt as an error; what concerns the user is told once, by us.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

_PARITY = {"none": "N", "even": "E", "odd": "O"}


class NoAnswer(Exception):
    """A device did not answer, or not in the protocol."""


class ModbusClient:
    """Reads devices at one port; connected while it is entered.

    Args:
        port: where they are.
        timeout_s: a request that is not answered for this long has failed.
    """

    def __init__(self, port: TcpPort | SerialPort, timeout_s: float) -> None:
        self._port = port
        self._timeout_s = timeout_s
        self._client: ModbusBaseSyncClient | None = None

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            SensorError: the port cannot be opened; the text says why.
        """
        client = self._made()
        self._client = client
        try:
            self._connect(client)
        except SensorError:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._close()

    @property
    def is_serial(self) -> bool:
        """Whether several devices answer at one line."""
        return isinstance(self._port, SerialPort)

    @property
    def where(self) -> str:
        """The port, for error texts."""
        match self._port:
            case TcpPort() as wanted:
                return f"Modbus {wanted.host}:{wanted.port}"
            case SerialPort() as wanted:
                return f"Modbus {wanted.device}"
            case _:
                assert_never(self._port)

    def interrupt(self) -> None:
        """Let a request that waits for its answer end; any thread."""
        client = self._client
        if isinstance(client, ModbusTcpClient) and client.socket is not None:
            with contextlib.suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Forget what a device may yet say, so that it is not taken for the answer to something else."""
        if self._client is not None and not self.is_serial:
            self._client.close()  # type: ignore[no-untyped-call]

    def read(self, table: str, address: int, count: int, unit_id: int) -> ModbusPDU:
        """Ask one device for consecutive registers or bits; the answer may be an exception of the device.

        Args:
            table: holding, input, coil or discrete.
            address: of the first one.
            count: how many.
            unit_id: the device.

        Raises:
            NoAnswer: the device did not answer.
        """
        client = self._entered
        ask = {
            "holding": client.read_holding_registers,
            "input": client.read_input_registers,
            "coil": client.read_coils,
            "discrete": client.read_discrete_inputs,
        }[table]
        return self._answer(lambda: ask(address, count=count, device_id=unit_id))

    def execute(self, request: ModbusPDU) -> ModbusPDU:
        """Send a request that was made before; the answer may be an exception of the device.

        Raises:
            NoAnswer: the device did not answer.
        """
        client = self._entered
        return self._answer(lambda: client.execute(False, request))

    @property
    def _entered(self) -> ModbusBaseSyncClient:
        assert self._client is not None
        return self._client

    def _answer(self, ask: Callable[[], ModbusPDU]) -> ModbusPDU:
        try:
            return ask()
        except (ModbusException, OSError) as exc:
            raise NoAnswer(self._describe(exc)) from exc
        except Exception as exc:
            logger.debug("Modbus client", exc_info=True)
            raise NoAnswer(f"answers something that is not Modbus: {type(exc).__name__}: {exc}") from exc

    def _made(self) -> ModbusBaseSyncClient:
        match self._port:
            case TcpPort() as wanted:
                return ModbusTcpClient(wanted.host, port=wanted.port, timeout=self._timeout_s, retries=0)
            case SerialPort() as wanted:
                return ModbusSerialClient(
                    wanted.device,
                    baudrate=wanted.baud,
                    parity=_PARITY[wanted.parity],
                    stopbits=wanted.stop_bits,
                    handle_local_echo=wanted.local_echo,
                    timeout=self._timeout_s,
                    retries=0,
                )
            case _:
                assert_never(self._port)

    def _connect(self, client: ModbusBaseSyncClient) -> None:
        match self._port:
            case TcpPort() as wanted:
                # The library's own `connect` keeps to itself why it failed.
                assert isinstance(client, ModbusTcpClient)
                try:
                    client.socket = socket.create_connection((wanted.host, wanted.port), timeout=self._timeout_s)
                    # A request is one small packet, and must not wait for the one before it to be acknowledged.
                    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                except OSError as exc:
                    raise SensorError(f"{self.where}: {exc.strerror or exc}") from exc
            case SerialPort() as wanted:
                if not client.connect():
                    raise SensorError(f"{self.where}: {_why_not(wanted.device)}")
            case _:
                assert_never(self._port)

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()  # type: ignore[no-untyped-call]

    def _describe(self, exc: Exception) -> str:
        text = str(exc)
        if "No response" in text:
            return f"no answer within {self._timeout_s:g} s"
        if isinstance(exc, ConnectionException):
            return "the connection was lost" if "closed" in text else "no connection"
        if isinstance(exc, OSError) and exc.strerror:
            return exc.strerror
        return text.removeprefix("Modbus Error: ")


def _why_not(device: str) -> str:
    """Why a serial port could not be opened; the library keeps it to itself."""
    path = Path(device)
    if not path.exists():
        present = ", ".join(sorted(str(one) for one in Path("/dev/serial/by-id").glob("*")))
        return f"there is no such device; this computer has {present or 'no serial port by id'}"
    if not os.access(path, os.R_OK | os.W_OK):
        return "may not be used by this user; add it to the group dialout: usermod -aG dialout USER"
    return "cannot be opened as a serial port; is it one, and does no other program use it?"
