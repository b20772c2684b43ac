"""`[reject.<name>]`: a signal to a PLC that a part must be thrown out, or may pass, at its moment."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from station.messages import Name
from station.process_settings import Finite
from station.section import Section
from station.sensor_settings import SerialPort, TcpPort

COUNTS_OF_16_BITS = 1 << 15
"""Half a turn of a 16-bit counter: a longer way cannot be told from one backwards."""


class CountsSettings(Section):
    """`[reject.<name>.counts]`: where the encoder's counts stand."""

    table: Literal["holding", "input"] = "holding"
    """Holding registers (function 3) or input registers (4)."""
    address: int = Field(ge=0, le=65_535)
    """Its first register, in the protocol, from 0."""
    type: Literal["uint16", "uint32"] = "uint32"
    """What the registers hold; the counter may overflow."""
    order: Literal["ABCD", "CDAB", "BADC", "DCBA"] = "ABCD"
    """Order of the bytes, as for sensors."""
    poll_s: Finite = Field(default=0.02, ge=0.002, le=1)
    """The counts are read this often; between two readings they are interpolated."""

    @property
    def width(self) -> int:
        """Registers that it takes."""
        return 2 if self.type == "uint32" else 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.address + self.width > 65_536:  # noqa: PLR2004
            raise ValueError(f"address = {self.address}: a {self.type} would reach beyond register 65535")
        return self


class HeartbeatSettings(Section):
    """`[reject.<name>.heartbeat]`: a holding register that counts up while the station works."""

    address: int = Field(ge=0, le=65_535)
    """The register, in the protocol, from 0. It counts from 0 to 65535 and begins anew."""
    every_s: Finite = Field(default=0.5, ge=0.05, le=60)
    """It is written this often."""


class BaseReject(Section):
    """Keys that both kinds have."""

    cameras: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Whose parts; default: those of all cameras."""
    reject: Annotated[tuple[Literal["ng", "unknown", "skipped"], ...], Field(strict=False, min_length=1)] = (
        "ng",
        "unknown",
    )
    """Outcomes that throw a part out; `skipped` are frames that were not judged (`latest`, `max_rate_fps`, a pause)."""
    signal: Literal["reject", "pass"] = "reject"
    """reject: the output is switched on for parts to throw out. pass: for parts that may pass, and the PLC throws out
    all others, so that a dead station, cable or network lets nothing pass."""
    without_verdict: Literal["reject", "pass"] = "reject"
    """What becomes of a part whose moment comes before its verdict."""
    delay_s: Finite | None = Field(default=None, ge=0.001, le=600)
    """The part's moment: this long after its exposure."""
    delay_counts: int | None = Field(default=None)
    """The part's moment: so many counts of an encoder after its exposure; negative where the counter runs down."""
    counts: CountsSettings | None = None
    """With `delay_counts`: where the counts stand."""
    table: Literal["coil", "holding"] = "coil"
    """The output: a coil (function 5) or a holding register (6)."""
    address: int = Field(ge=0, le=65_535)
    """Its address in the protocol, from 0."""
    value: int = Field(default=1, ge=0, le=65_535)
    """What a register holds while the output is on."""
    rest_value: int = Field(default=0, ge=0, le=65_535)
    """What it holds otherwise."""
    pulse_s: Finite = Field(default=0.1, ge=0, le=60)
    """How long the output is on for one part; 0: the PLC takes it back itself."""
    overlap: Literal["extend", "separate"] = "extend"
    """Two parts whose signals overlap. extend: the output stays on. separate: it is off for `gap_s` before the
    second."""
    gap_s: Finite = Field(default=0.02, ge=0.001, le=1)
    """With `separate`: how long it is off."""
    late_after_ms: Finite = Field(default=10.0, gt=0, le=10_000)
    """A signal that the device acknowledges later than this after its moment counts as late."""
    too_late_ms: Finite = Field(default=100.0, gt=0, le=60_000)
    """A signal that is not given by then is not given at all: it would hit another part."""
    fail_safe_s: Finite = Field(default=5.0, ge=0, le=3600)
    """With `signal = "reject"`: after a signal that was not given the heartbeat stands still for this long, and the PLC
    throws everything out; 0: never."""
    heartbeat: HeartbeatSettings | None = None
    """Present: write a heartbeat."""
    unit_id: int = Field(default=1, ge=0, le=255)
    """The device's number, 1 to 247; devices of their own on TCP often take 0 or 255 as well."""
    timeout_s: Finite = Field(default=0.5, ge=0.02, le=10)
    """A request that is not answered for this long has failed."""
    reconnect_max_s: Finite = Field(default=2.0, ge=0.1, le=60)
    """Longest pause between two attempts to reach the device; pauses double from 0.1 s."""

    @model_validator(mode="after")
    def _one_delay(self) -> Self:
        if (self.delay_s is None) == (self.delay_counts is None):
            raise ValueError("give one of delay_s and delay_counts")
        if (self.delay_counts is None) != (self.counts is None):
            raise ValueError("delay_counts and counts belong together")
        if self.delay_counts == 0:
            raise ValueError("delay_counts = 0: a part cannot be thrown out where it is photographed")
        if (
            self.counts is not None
            and self.counts.type == "uint16"
            and abs(self.delay_counts or 0) >= COUNTS_OF_16_BITS
        ):
            raise ValueError(f"delay_counts = {self.delay_counts}: a uint16 can tell {COUNTS_OF_16_BITS - 1} at most")
        return self

    @model_validator(mode="after")
    def _values(self) -> Self:
        if self.table == "coil" and {"value", "rest_value"} & self.model_fields_set:
            raise ValueError("value and rest_value are for a register; a coil is on or off")
        if self.value == self.rest_value:
            raise ValueError(f"value and rest_value are both {self.value}: nobody could see the signal")
        if self.too_late_ms < self.late_after_ms:
            raise ValueError(f"too_late_ms = {self.too_late_ms}: less than late_after_ms = {self.late_after_ms}")
        if self.heartbeat is not None and self.table == "holding" and self.heartbeat.address == self.address:
            raise ValueError(f"heartbeat.address = {self.address} is the output's own register")
        return self


class TcpReject(TcpPort, BaseReject):
    """A PLC or a remote input/output on the network. Needs the extra `modbus`."""

    kind: Literal["modbus_tcp"]
    """Marks this kind."""


class RtuReject(SerialPort, BaseReject):
    """The same on a serial line, which the station must have for itself. Needs the extra `modbus`."""

    kind: Literal["modbus_rtu"]
    """Marks this kind."""


RejectSettings = Annotated[TcpReject | RtuReject, Field(discriminator="kind")]


def check_rejects(rejects: Mapping[str, TcpReject | RtuReject], cameras: Mapping[str, object]) -> None:
    """See that the outputs name cameras that exist and do not get into each other's way.

    Raises:
        ValueError: with the keys concerned.
    """
    owners: dict[tuple[object, ...], str] = {}
    ports: dict[str, str] = {}
    for name, reject in rejects.items():
        for camera in reject.cameras:
            if camera not in cameras:
                raise ValueError(f"reject.{name}.cameras: there is no camera {camera!r}; known: {', '.join(cameras)}")
        if isinstance(reject, RtuReject):
            if (other := ports.setdefault(reject.device, name)) != name:
                raise ValueError(f"reject.{name}.device = {reject.device!r} is that of reject.{other}, too")
            continue
        device = (reject.host, reject.port, reject.unit_id)
        writes = [((*device, reject.table, reject.address), "address")]
        if reject.heartbeat is not None:
            writes.append(((*device, "holding", reject.heartbeat.address), "heartbeat.address"))
        for place, key in writes:
            if (former := owners.setdefault(place, f"reject.{name}.{key}")) != f"reject.{name}.{key}":
                raise ValueError(
                    f"reject.{name}.{key} = {place[-1]}: {former} writes the same {place[-2]} of {reject.host}"
                )
