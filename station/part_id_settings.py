"""`[camera.<name>.part_id]`: where the ids of a camera's parts come from, told apart by `kind`."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from station.broker_settings import BrokerSettings
from station.section import Region, Section
from station.sensor_settings import BaseSensors, JsonPathText, ModbusPort, SerialPort, TcpPort, Topic

LONGEST_WAIT_S = 60.0
"""A verdict must not wait longer for its id."""


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as exc:
        raise ValueError(f"is no regular expression: {exc}") from None
    return value


Expression = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_expression)]
"""A regular expression of Python's `re`."""


class BasePartId(Section):
    """Keys that every kind has."""

    required: bool = False
    """A part without an id of its own (missing, doubled, ambiguous, unreadable …) is `unknown` (`part_id`); a defect
    stays `ng`. By default `part_id_state` says so and the outcome stays."""
    doubled_memory: int = Field(default=1000, ge=0, le=100_000)
    """An id that one of so many ids before it had is `doubled`, also over a restart (10,000 verdicts back at most); 0:
    nobody looks."""
    doubled_within_s: float | None = Field(default=None, gt=0)
    """Only ids of this long ago count for `doubled`; default: `doubled_memory` alone."""


class CounterPartId(BasePartId):
    """The station counts the parts."""

    kind: Literal["counter"]
    """Marks this kind."""
    start: int = Field(default=1, ge=0, le=10**15)
    """The first number ever; a restart goes on behind the last one."""
    format: str = Field(default="{number}", max_length=60)
    """The id: `{number}`, or `{number:08}` for eight digits, with other text around it."""

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if not re.fullmatch(r"[^{}]*\{number(:0\d{1,2})?\}[^{}]*", self.format) or not self.format.isprintable():
            raise ValueError(
                f"format = {self.format!r}: must hold {{number}} or {{number:08}} once, and no other braces"
            )
        return self


class FileNamePartId(BasePartId):
    """The id stands in the name of the picture's file; for cameras of the kind `folder`."""

    kind: Literal["file_name"]
    """Marks this kind."""
    pattern: Expression
    """Regular expression that the whole file name (without folders) must match; its group `id`, or else its first, is
    the id: `part_(\\d+)\\.png`."""

    @model_validator(mode="after")
    def _has_a_group(self) -> Self:
        if not re.compile(self.pattern).groups:
            raise ValueError(f"pattern = {self.pattern!r}: needs a group that is the id, such as part_(\\d+)\\.png")
        return self


class CodePartId(BasePartId):
    """A QR code or barcode in the picture."""

    kind: Literal["code"]
    """Marks this kind."""
    symbols: Literal["qr", "barcode", "any"] = "any"
    """What to look for: QR codes; EAN-13, EAN-8, UPC-A and UPC-E barcodes; or both, which takes longer."""
    region: Region | None = None
    """`[camera.<name>.part_id.region]`: look only there, in pixels of the picture that is judged; much faster."""
    pattern: Expression | None = None
    """Regular expression that the whole text must match, or it is `unreadable`; a group in it is the id."""


class JoinedPartId(BasePartId):
    """Ids that come by themselves, and are joined to frames by time."""

    lead_s: float = Field(default=0.0, ge=-LONGEST_WAIT_S, le=LONGEST_WAIT_S)
    """The frame is taken so long after its id's time; negative: the id comes behind the frame."""
    window_s: float = Field(default=0.1, ge=0.001, le=10)
    """A frame and an id belong together when they are at most so far apart, once `lead_s` is taken off. Must cover the
    jitter of both, and be smaller than the time between two parts less that jitter."""
    pattern: Expression | None = None
    """Regular expression that the whole text must match, or it is `unreadable`; a group in it is the id."""

    @property
    def arrival_s(self) -> float:
        """An id that tells no time of its own has arrived when its time has come."""
        return 0.0

    @model_validator(mode="after")
    def _wait_is_bounded(self) -> Self:
        if (wait_s := max(0.0, -self.lead_s) + 2 * self.window_s + self.arrival_s) > LONGEST_WAIT_S:
            raise ValueError(f"a verdict would wait up to {wait_s:g} s for its id; allowed are {LONGEST_WAIT_S:g} s")
        return self


class MqttPartId(JoinedPartId, BaseSensors):
    """Messages on an MQTT topic."""

    kind: Literal["mqtt"]
    """Marks this kind."""
    topic: Topic
    """The topic, without wildcards."""
    path: JsonPathText | None = None
    """Where the id stands in a JSON message: `part.id`, `ids[0]`. Without it the message is the id."""
    time_path: JsonPathText | None = None
    """Where the id's time stands, in ISO 8601 or counted since 1970; default: the time of arrival."""
    arrival_within_s: float = Field(default=0.2, ge=0, le=30)
    """With `time_path`: a message may arrive this long after the time that it tells."""
    qos: Literal[0, 1] = 1
    """Quality of service of the subscription."""
    broker: BrokerSettings | None = None
    """`[camera.<name>.part_id.broker]`, with the keys of `[broker]`; default: the station's own broker."""

    @property
    def arrival_s(self) -> float:
        """How long after its time an id may arrive."""
        return self.arrival_within_s if self.time_path is not None else 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.time_path is not None and self.path is None:
            raise ValueError("time_path needs path: a message that is the id itself has no time")
        if self.broker is not None and self.broker.embedded:
            raise ValueError("broker.embedded: the embedded broker is the station's; leave [part_id.broker] out")
        return self


class ModbusPartId(JoinedPartId, ModbusPort):
    """Registers of a Modbus device, polled."""

    poll_s: float = Field(default=0.02, ge=0.005, le=10)
    """The registers are read this often; no longer than `window_s`, since nobody knows when between two looks an id
    came."""
    table: Literal["holding", "input"] = "holding"
    """Holding registers (function 3) or input registers (4)."""
    address: int = Field(ge=0, le=65_535)
    """The id's first register, in the protocol, from 0."""
    type: Literal["uint16", "int16", "uint32", "int32", "uint64", "int64", "text"] = "uint16"
    """What they hold: a whole number, or text, two ASCII characters a register, filled up with NUL or blanks."""
    registers: int | None = Field(default=None, ge=1, le=32)
    """With `type = "text"`: how many."""
    order: Literal["ABCD", "CDAB", "BADC", "DCBA"] = "ABCD"
    """Order of the bytes, as for sensors; in text, BADC swaps the two characters of each register."""
    sequence: int | None = Field(default=None, ge=0, le=65_535)
    """A register of the same table whose every change means a new part (a counter, or a bit that toggles), so that the
    same id twice in a row is seen. It must change after the id. Default: a new part is seen by a new id."""

    @property
    def width(self) -> int:
        """Registers that the id takes."""
        if self.type == "text":
            return self.registers or 0
        return int(self.type.lstrip("uint")) // 16

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.type == "text") != (self.registers is not None):
            raise ValueError('type = "text" and registers belong together')
        if self.type == "text" and self.order in ("CDAB", "DCBA"):
            raise ValueError(f"order = {self.order!r}: text has its registers in order; ABCD or BADC")
        if self.poll_s > self.window_s:
            raise ValueError(f"poll_s = {self.poll_s:g} must not be longer than window_s = {self.window_s:g}")
        first, count = self.span
        if first + count > 65_536:  # noqa: PLR2004
            raise ValueError(f"address = {self.address}: reaches beyond register 65535")
        if count > 125:  # noqa: PLR2004
            raise ValueError("sequence: must lie within 125 registers of the id, so that one request reads both")
        return self

    @property
    def span(self) -> tuple[int, int]:
        """First register and number of registers to read, with the sequence."""
        addresses = [self.address, self.address + self.width - 1]
        if self.sequence is not None:
            addresses.append(self.sequence)
        return min(addresses), max(addresses) - min(addresses) + 1


class ModbusTcpPartId(TcpPort, ModbusPartId):
    """A Modbus device or gateway on the network. Needs the extra `modbus`."""

    kind: Literal["modbus_tcp"]
    """Marks this kind."""


class ModbusRtuPartId(SerialPort, ModbusPartId):
    """A Modbus device on a serial line. Needs the extra `modbus`."""

    kind: Literal["modbus_rtu"]
    """Marks this kind."""


PartIdSettings = Annotated[
    CounterPartId | FileNamePartId | CodePartId | MqttPartId | ModbusTcpPartId | ModbusRtuPartId,
    Field(discriminator="kind"),
]
