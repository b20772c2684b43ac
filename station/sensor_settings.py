"""`[sensors.<name>]`: where readings come from, one table for each source, told apart by `kind`.

A source has *points*, in the order of its table: what it reads, raw, by the protocol's own address. A channel of a
process group refers to a source and a point, and says what the raw number means (unit, scale, range, age).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, field_validator, model_validator

from station.broker_settings import BrokerSettings, Login
from station.json_path import parse_json_path
from station.section import FilePath, Section

PointName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A point's or a channel's name; anything printable, since logs name their columns as they like."""


NODE_ID = re.compile(r"^(?:(?:ns=\d{1,5}|nsu=[^;\s]+);)?(?:i=\d{1,10}|s=.+|g=[0-9a-fA-F-]{36}|b=[A-Za-z0-9+/=]+)$")
"""OPC UA Part 6, 5.3.1.10."""


def _node_id(value: str) -> str:
    if not NODE_ID.match(value):
        raise ValueError("is no node id; write it as ns=2;s=Press.Temperature or ns=3;i=1001")
    return value


def _topic(value: str) -> str:
    if not value or "+" in value or "#" in value or "\0" in value or len(value.encode()) > 65_535:  # noqa: PLR2004
        raise ValueError("must be one MQTT topic without the wildcards + and #")
    return value


def _json_path(value: str) -> str:
    parse_json_path(value)
    return value


Topic = Annotated[str, AfterValidator(_topic)]
"""One MQTT topic."""
JsonPathText = Annotated[str, AfterValidator(_json_path)]
"""Where something stands in a JSON message, see `station.json_path`."""


class BaseSensors(Section):
    """Keys that every kind of source has."""

    reconnect_max_s: float = Field(default=10.0, ge=0.1, le=600)
    """Longest pause between two attempts to reach the source; pauses double from 0.25 s and are jittered."""
    silence_s: float | None = Field(default=None, gt=0)
    """A source that delivers nothing for this long is down; default: only the protocol's own signs count."""


class LogForm(Section):
    """How a sensor log in CSV is written; the defaults find most of it out by themselves."""

    separator: Literal["auto", ";", ",", "\t", "|"] = "auto"
    """Between the cells; auto: by the heading."""
    decimal: Literal["auto", ".", ","] = "auto"
    """Decimal sign; auto: by the first rows."""
    time_column: str | None = Field(default=None, min_length=1)
    """Heading of the column with the time; default: by its name (`timestamp`, `datetime`, `time`, `date` …) or by what
    stands in it."""
    time_format: str | None = Field(default=None, min_length=1)
    """Form of the times as Python's strptime takes it, such as `%d.%m.%Y %H:%M:%S`; default: ISO 8601, or a count since
    1970 in seconds, milli-, micro- or nanoseconds by its size."""
    time_zone: str = "UTC"
    """Zone of times that name none, such as Europe/Berlin."""
    backwards: Literal["error", "keep"] = "error"
    """What to do with a time before that of the row above: refuse the log, or keep its rows as they stand."""

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("this computer knows no such time zone; write UTC, or a name as Europe/Berlin") from None
        return value


class ModbusPoint(Section):
    """A value in a Modbus device."""

    table: Literal["holding", "input", "coil", "discrete"] = "holding"
    """Holding registers (function 3), input registers (4), coils (1) or discrete inputs (2)."""
    address: int = Field(ge=0, le=65_535)
    """Address in the protocol, from 0: a manual's register 40001 or 30001 is 0."""
    type: Literal["int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "bit"] | None = None
    """What the registers hold; default: `uint16`, in coils and discrete inputs `bit`. A 64-bit integer above 2⁵³ loses
    its last digits."""
    order: Literal["ABCD", "CDAB", "BADC", "DCBA"] = "ABCD"
    """Order of the bytes of a 32-bit value, A being the highest: CDAB swaps the words, BADC the bytes within each, DCBA
    both. 64 bits likewise (CDAB: the lowest word first); of 16 bits, BADC and DCBA swap the bytes."""
    bit: int | None = Field(default=None, ge=0, le=15)
    """With `type = "bit"` in a register: which bit of it, 0 being the lowest."""
    unit_id: int | None = Field(default=None, ge=0, le=255)
    """The device, where it is not the source's `unit_id`."""

    @property
    def effective_type(self) -> str:
        """The type, with the default filled in."""
        return self.type or ("bit" if self.table in ("coil", "discrete") else "uint16")

    @property
    def width(self) -> int:
        """Registers (or bits, in coils and discrete inputs) that the value takes."""
        return {"32": 2, "64": 4}.get(self.effective_type[-2:], 1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        bits = self.table in ("coil", "discrete")
        if bits and self.effective_type != "bit":
            raise ValueError(f"type = {self.type!r}: coils and discrete inputs hold bits")
        if bits and self.bit is not None:
            raise ValueError("bit is for registers; a coil or discrete input is a bit by itself")
        if not bits and (self.effective_type == "bit") != (self.bit is not None):
            raise ValueError('type = "bit" in a register and bit = 0 to 15 belong together')
        if self.address + self.width > 65_536:  # noqa: PLR2004
            raise ValueError(f"address = {self.address}: a {self.effective_type} would reach beyond register 65535")
        return self


class ModbusPort(BaseSensors):
    """Keys of whoever reads a Modbus device."""

    unit_id: int = Field(default=1, ge=0, le=255)
    """The device's number, 1 to 247; devices of their own on TCP often take 0 or 255 as well."""
    timeout_s: float = Field(default=1.0, ge=0.05, le=10)
    """A request that is not answered for this long has failed."""


class TcpPort(Section):
    """A Modbus device or gateway on the network."""

    host: str = Field(min_length=1)
    """Name or address of the device."""
    port: int = Field(default=502, ge=1, le=65_535)
    """TCP port."""


class SerialPort(Section):
    """A serial line with Modbus devices."""

    device: str = Field(min_length=1)
    """The serial port, best a stable path such as /dev/serial/by-id/usb-…."""
    baud: int = Field(default=19_200, ge=300, le=4_000_000)
    """Bits a second."""
    parity: Literal["none", "even", "odd"] = "even"
    """Modbus asks for even; `none` is common with two stop bits."""
    stop_bits: Literal[1, 2] = 1
    """1 or 2."""
    local_echo: bool = False
    """The adapter hears what it sends (some RS-485 adapters with two wires)."""


class BaseModbus(ModbusPort):
    """Keys of both kinds of Modbus."""

    poll_s: float = Field(default=1.0, ge=0.01, le=3600)
    """The points are read this often, on a fixed schedule."""
    max_gap: int = Field(default=8, ge=0, le=124)
    """Unused registers that are read along, so that fewer requests are needed. 0 where a device refuses gaps."""
    max_registers: int = Field(default=125, ge=4, le=125)
    """Registers in one request, at most."""
    points: Mapping[PointName, ModbusPoint] = Field(min_length=1)
    """`[sensors.<name>.points.<point>]`, one table for each value."""


class ModbusTcpSensors(TcpPort, BaseModbus):
    """A Modbus device or gateway on the network. Needs the extra `modbus`."""

    kind: Literal["modbus_tcp"]
    """Marks this kind."""


class ModbusRtuSensors(SerialPort, BaseModbus):
    """Modbus devices on a serial line. Needs the extra `modbus`."""

    kind: Literal["modbus_rtu"]
    """Marks this kind."""


class MqttPoint(Section):
    """A value in the messages of a topic."""

    topic: Topic
    """The topic, without wildcards."""
    path: JsonPathText | None = None
    """Where the number stands in a JSON message: `press.temperature`, `values[0].v`, `["a key with.dots"]`. Without it
    the message is the number."""
    time_path: JsonPathText | None = None
    """Where the time stands, in ISO 8601 or counted since 1970; default: the time of arrival."""

    @model_validator(mode="after")
    def _time_needs_json(self) -> Self:
        if self.time_path is not None and self.path is None:
            raise ValueError("time_path needs path: a message that is a plain number has no time")
        return self


class MqttSensors(BaseSensors):
    """Topics of an MQTT broker."""

    kind: Literal["mqtt"]
    """Marks this kind."""
    broker: BrokerSettings | None = None
    """`[sensors.<name>.broker]`, with the keys of `[broker]`; default: the station's own broker."""
    qos: Literal[0, 1] = 0
    """Quality of service of the subscriptions."""
    accept_retained: bool = False
    """Take a retained message that tells no time (`time_path`) as new. It may be of any age, so by default it is passed
    over."""
    points: Mapping[PointName, MqttPoint] = Field(min_length=1)
    """`[sensors.<name>.points.<point>]`, one table for each value."""

    @model_validator(mode="after")
    def _a_broker_elsewhere(self) -> Self:
        if self.broker is not None and self.broker.embedded:
            raise ValueError("broker.embedded: the embedded broker is the station's; leave [sensors.<name>.broker] out")
        return self


class OpcUaPoint(Section):
    """A variable in an OPC UA server."""

    node: Annotated[str, AfterValidator(_node_id)]
    """Its node id: `ns=2;s=Press.Temperature`, `ns=3;i=1001`, `nsu=http://…;s=…`."""


class OpcUaSensors(BaseSensors, Login):
    """Variables of an OPC UA server, by subscription. Needs the extra `opcua`."""

    kind: Literal["opcua"]
    """Marks this kind."""
    server_url: str = Field(pattern=r"^opc\.tcp://[^\s/@:]+(:\d+)?(/\S*)?$")
    """Address, opc.tcp://host:port/path; user and password stand in keys of their own."""
    publish_s: float = Field(default=0.5, ge=0.01, le=3600)
    """How often the server reports changes."""
    refresh_s: float = Field(default=1.0, ge=0.1, le=3600)
    """All points are read this often as well: an unchanged value stays fresh, and a dead connection shows."""
    timeout_s: float = Field(default=4.0, ge=0.1, le=60)
    """A request that is not answered for this long has failed."""
    accept_uncertain: bool = False
    """Take values whose status is uncertain as good."""
    security: Literal["none", "sign", "sign_and_encrypt"] = "none"
    """Security of the messages."""
    security_policy: Literal["Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"] = "Basic256Sha256"
    """With `sign` or `sign_and_encrypt`: which policy."""
    certificate_file: FilePath | None = None
    """With security: the station's own certificate, PEM or DER, whose URI is urn:inspection-station."""
    key_file: FilePath | None = None
    """Private key of `certificate_file`."""
    server_certificate_file: FilePath | None = None
    """The server's certificate: any other server is refused."""
    points: Mapping[PointName, OpcUaPoint] = Field(min_length=1)
    """`[sensors.<name>.points.<point>]`, one table for each value."""

    @model_validator(mode="after")
    def _security_needs_files(self) -> Self:
        files = {"certificate_file", "key_file", "server_certificate_file"}
        given = {name for name in files if getattr(self, name) is not None}
        if self.security != "none" and given != files:
            raise ValueError(f"security = {self.security!r} needs {', '.join(sorted(files - given))}")
        if self.security == "none" and given:
            raise ValueError(f'{", ".join(sorted(given))}: set security to "sign" or "sign_and_encrypt" as well')
        return self


class CsvPoint(Section):
    """A column of the file."""

    column: str | None = Field(default=None, min_length=1)
    """Heading of the column; default: the point's name."""


class CsvSensors(BaseSensors, LogForm):
    """Replay of a log. The times are the log's own, not ours."""

    kind: Literal["csv"]
    """Marks this kind."""
    path: FilePath
    """The file."""
    speed: float = Field(default=1.0, ge=0)
    """1: in real time. 10: ten times as fast. 0: as fast as it can be taken."""
    loop: bool = False
    """Begin again at the end, with the times going on."""
    points: Mapping[PointName, CsvPoint] = Field(default_factory=dict)
    """The columns to read; default: each column that is not the time, by its heading."""


class SimulatedSensors(BaseSensors):
    """The simulated oven and press, see `station.simulated_process`. Its points are fixed."""

    kind: Literal["simulated"]
    """Marks this kind."""
    seed: int = Field(default=1, ge=0)
    """Which course of noise and load; the same seed gives the same readings."""
    rate_hz: float = Field(default=10.0, gt=0, le=1000)
    """Rows a second."""
    drift_after_s: float | None = Field(default=None, ge=0)
    """The oven's heater begins to fail this long after the start; default: never."""


SensorSettings = Annotated[
    ModbusTcpSensors | ModbusRtuSensors | OpcUaSensors | MqttSensors | CsvSensors | SimulatedSensors,
    Field(discriminator="kind"),
]

REPLAYED = (CsvSensors,)
"""Sources whose rows have times of their own: a group of such sources lives by the rows' times, not by our clock."""
