"""The process bundle's contract: what early warning on one group of channels needs, in one zip file.

Beside `manifest.json` it holds a golden sequence (a stretch of normal readings with the risks that they must give) and,
where a network forecasts, `model.tflite`: one recurrent step whose state is an explicit input and output. Everything
else, scaling, calibration and limits, stands in the manifest as plain numbers. Members are checked as those of every
bundle (`station.bundle_file`).
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from station.bundle_file import (
    MANIFEST,
    MODEL,
    Part,
    check_members,
    head_of,
    open_members,
    parse_json,
    read_file,
)
from station.errors import BundleError
from station.messages import ModelRef
from station.trust import ANYONE, Trust

GOLDEN_READINGS = "golden/readings.npy"
"""float64 `[ticks, channels]` in the channels' units, NaN where a channel is bad."""
GOLDEN_RISKS = "golden/risks.npy"
"""float64 `[ticks]`, NaN while the model warms up."""
MAX_GOLDEN_TICKS = 100_000
MAX_STATE = 4096
"""Units of a state tensor."""

Floats = npt.NDArray[np.float64]
Cell = Literal["gru", "lstm", "simple_rnn"]


class ProcessChannel(Part):
    """A channel of the group, and how it is scaled: scaled = (value − center) / scale.

    Attributes:
        name, unit: as in the training logs; unit "" where they name none.
        center, scale: median and robust spread of the training part, in the channel's unit.
        flat_after_s: the channel stood still for a fraction of this at most in the training logs; None: no such limit.
    """

    name: str = Field(min_length=1, max_length=128)
    unit: str = Field(default="", max_length=32)
    center: float = Field(allow_inf_nan=False)
    scale: float = Field(gt=0, allow_inf_nan=False)
    flat_after_s: float | None = Field(default=None, gt=0)


class Memory(Part):
    """How the risk remembers residuals, each in units of its own spread; see `station.risk`.

    Attributes:
        clip: one residual counts at most this much.
        rate: of the exponentially weighted mean, per tick.
        adapt_rate: of the slow offset that ageing and weather are allowed, per tick.
        adapt_gate: a mean beyond this many spreads is not adapted to.
        adapt_limit: largest offset, in spreads of the residual: a slow drift beyond it counts.
        single_weight: the largest single part counts this much against the mean of all.
    """

    clip: float = Field(default=4.0, gt=0)
    rate: float = Field(default=0.1, gt=0, le=1)
    adapt_rate: float = Field(default=0.005, ge=0, le=1)
    adapt_gate: float = Field(default=3.0, gt=0)
    adapt_limit: float = Field(default=2.0, ge=0)
    single_weight: float = Field(default=0.4, ge=0, le=1)


class ForecastMonitor(Part):
    """Residuals of a recurrent network's forecasts.

    Attributes:
        cell: of the network.
        states: units of each state tensor.
        horizons: ticks ahead of each forecast; the output `forecast` is `[1, horizons × channels]`.
        judged: which of the horizons count for the risk, as indices.
        input_clip: scaled readings are cut to ± this before the network sees them.
        settle: ticks after a reset whose forecasts do not count.
        residual_spread: `[horizons × channels]`, of the cross-fitted residuals, in scaled units; this is the forecast's
            own uncertainty.
        memory_spread: `[judged × channels]`, of the remembered residuals.
        precision: `[judged × channels][judged × channels]`, inverse of the shrunk correlation of the remembered
            residuals, in units that make the mean square of normal operation 1; empty: they count one by one.
        low, high: `[channels]`, the range that was taught, scaled.
        follow: `[horizons × channels]`, 0..1: how much of what a reading has beyond that range its forecasts get added.
        limit: value of the statistic at which the risk is one half.
    """

    kind: Literal["forecast"] = "forecast"
    cell: Cell
    states: tuple[int, ...] = Field(min_length=1, max_length=2)
    horizons: tuple[int, ...] = Field(min_length=1, max_length=8)
    judged: tuple[int, ...] = Field(min_length=1, max_length=8)
    input_clip: float = Field(gt=0)
    settle: int = Field(ge=0)
    memory: Memory
    residual_spread: tuple[float, ...]
    memory_spread: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...] = ()
    low: tuple[float, ...]
    high: tuple[float, ...]
    follow: tuple[float, ...]
    limit: float = Field(gt=0)

    @model_validator(mode="after")
    def _indices(self) -> Self:
        if any(not 0 < units <= MAX_STATE for units in self.states):
            raise ValueError(f"states must be of 1 to {MAX_STATE} units")
        if any(not 0 < horizon <= MAX_GOLDEN_TICKS for horizon in self.horizons):
            raise ValueError("horizons must be at least 1")
        if any(not 0 <= index < len(self.horizons) for index in self.judged):
            raise ValueError("judged must be indices of horizons")
        return self

    def check(self, channels: int) -> None:
        """Raise ValueError when a list has another length than the channels ask for."""
        _length("residual_spread", self.residual_spread, len(self.horizons) * channels)
        _length("memory_spread", self.memory_spread, len(self.judged) * channels)
        _length("low", self.low, channels)
        _length("high", self.high, channels)
        _length("follow", self.follow, len(self.horizons) * channels)
        if min(*self.residual_spread, *self.memory_spread) <= 0:
            raise ValueError("spreads must be above 0")
        if self.precision:
            _length("precision", self.precision, len(self.memory_spread))
            for row in self.precision:
                _length("precision", row, len(self.memory_spread))


class WarnMonitor(Part):
    """A recurrent network that was taught with labelled faults.

    Attributes:
        cell, states, input_clip, settle: as of `ForecastMonitor`.
        rate: of the exponentially weighted mean of the log-odds, per tick.
        offset: log-odds at which the risk is one half.
    """

    kind: Literal["warn"] = "warn"
    cell: Cell
    states: tuple[int, ...] = Field(min_length=1, max_length=2)
    input_clip: float = Field(gt=0)
    settle: int = Field(ge=0)
    rate: float = Field(gt=0, le=1)
    offset: float = Field(allow_inf_nan=False)

    def check(self, channels: int) -> None:
        """Nothing in it depends on the channels."""


class PcaMonitor(Part):
    """Principal components of the scaled readings: Hotelling's T² and the squared prediction error Q.

    Jackson and Mudholkar, Control Procedures for Residuals Associated With PCA, Technometrics 21 (1979).

    Attributes:
        mean: `[channels]`, scaled units.
        components: `[kept][channels]`, orthonormal rows.
        variances: `[kept]`.
        rate: of the exponentially weighted mean of T² and Q, per tick; 1 remembers nothing.
        t2_limit, q_limit: values at which the risk is one half.
    """

    kind: Literal["pca"] = "pca"
    mean: tuple[float, ...]
    components: tuple[tuple[float, ...], ...] = Field(min_length=1)
    variances: tuple[float, ...] = Field(min_length=1)
    rate: float = Field(default=1.0, gt=0, le=1)
    t2_limit: float = Field(gt=0)
    q_limit: float = Field(gt=0)

    def check(self, channels: int) -> None:
        """Raise ValueError when a list has another length than the channels ask for."""
        _length("mean", self.mean, channels)
        _length("variances", self.variances, len(self.components))
        for row in self.components:
            _length("components", row, channels)
        if min(self.variances) <= 0:
            raise ValueError("variances must be above 0")


class EwmaMonitor(Part):
    """An exponentially weighted moving average chart for each channel (Roberts, Technometrics 1, 1959).

    Attributes:
        rate: weight of the newest reading.
        spread: `[channels]`, of the averages in the training part, scaled units.
        limit: number of spreads at which the risk is one half.
    """

    kind: Literal["ewma"] = "ewma"
    rate: float = Field(gt=0, le=1)
    spread: tuple[float, ...]
    limit: float = Field(gt=0)

    def check(self, channels: int) -> None:
        """Raise ValueError when a list has another length than the channels ask for."""
        _length("spread", self.spread, channels)


class LevelMonitor(Part):
    """How far readings stand from where they were taught, against what so few independent readings can promise.

    Each channel, and each direction in which channels move together, has a limit of its own; see `station.risk`.

    Attributes:
        rate: of the exponentially weighted mean of the readings, per tick.
        mean: `[channels]`, scaled units.
        directions: `[kept][channels]`, orthonormal rows.
        limits: `[channels + kept]`, distances from the mean at which the risk is one half, scaled units.
    """

    kind: Literal["level"] = "level"
    rate: float = Field(gt=0, le=1)
    mean: tuple[float, ...]
    directions: tuple[tuple[float, ...], ...] = ()
    limits: tuple[float, ...]

    def check(self, channels: int) -> None:
        """Raise ValueError when a list has another length than the channels ask for."""
        _length("mean", self.mean, channels)
        _length("limits", self.limits, channels + len(self.directions))
        for row in self.directions:
            _length("directions", row, channels)
        if min(self.limits) <= 0:
            raise ValueError("limits must be above 0")


Monitor = Annotated[
    ForecastMonitor | WarnMonitor | PcaMonitor | EwmaMonitor | LevelMonitor, Field(discriminator="kind")
]


def _length(name: str, values: tuple[Any, ...], wanted: int) -> None:
    if len(values) != wanted:
        raise ValueError(f"{name} has {len(values)} numbers, {wanted} are needed")


class ProcessLimits(Part):
    """When the risk becomes an alarm; the bound of false alarms holds for these."""

    risk: float = Field(default=0.5, gt=0, lt=1)
    deadband: float = Field(default=0.1, ge=0, lt=1)
    on_delay_s: float = Field(default=0.0, ge=0)
    off_delay_s: float = Field(default=0.0, ge=0)


class FalseAlarmBound(Part):
    """What the calibration log supports: with no alarm in T hours, at most 3/T an hour at 95 % confidence.

    Attributes:
        hours: normal operation that was scored by what the other half of the logs teaches.
        alarms: that came in it.
        hours_per_alarm: at most one false alarm in so many hours on data like the calibration log, 95 %.
        text: the same for people.
    """

    hours: float = Field(ge=0)
    alarms: int = Field(ge=0)
    hours_per_alarm: float = Field(ge=0)
    text: str


class GoldenSequence(Part):
    """The stored stretch of readings, and by how much a risk may differ on another processor."""

    first_at_s: float
    tolerance: float = Field(gt=0, lt=1)


class ProcessManifest(Part):
    """`manifest.json`.

    Attributes:
        step_s: the fixed step, seconds.
        reset_after_s: gap after which training began anew.
        channels: in the model's order.
        excluded: channel of the training logs → why it is not watched.
        monitor: what makes the risk.
        metrics: figures by name, of the deployed path and of what it is compared with.
        dataset: fingerprint and counts of the logs.
        versions: of the tools that made it.
        configuration: the resolved knobs.
        members: sha256 (hexadecimal) of every other member of the zip.
    """

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    version: str = Field(min_length=1, max_length=64)
    task: Literal["forecast", "warn"]
    created_at: datetime
    step_s: float = Field(ge=0.001, le=86_400)
    reset_after_s: float = Field(gt=0)
    channels: tuple[ProcessChannel, ...] = Field(min_length=1, max_length=512)
    excluded: Mapping[str, str] = Field(default_factory=dict)
    monitor: Monitor
    limits: ProcessLimits
    bound: FalseAlarmBound
    golden: GoldenSequence
    metrics: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)
    dataset: Mapping[str, Any] = Field(default_factory=dict)
    versions: Mapping[str, str] = Field(default_factory=dict)
    configuration: Mapping[str, Any] = Field(default_factory=dict)
    members: Mapping[str, str]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [channel.name for channel in self.channels]
        if len(set(names)) != len(names):
            raise ValueError("two channels have the same name")
        if (self.monitor.kind == "warn") != (self.task == "warn"):
            raise ValueError(f"task {self.task} does not go with the monitor {self.monitor.kind}")
        self.monitor.check(len(names))
        return self

    @property
    def has_network(self) -> bool:
        """Whether a model belongs to it."""
        return self.monitor.kind in ("forecast", "warn")


@dataclass(frozen=True, slots=True, eq=False)
class ProcessBundle:
    """A process bundle whose bytes were checked.

    Attributes:
        manifest: the contract.
        model: bytes of the `.tflite` file; empty where no network belongs to it.
        readings: float64 `[ticks, channels]` of the golden sequence.
        risks: float64 `[ticks]` that it must give.
        sha256: of the whole file, hexadecimal.
        origin: where it was read from, for messages.
        signed_by: id of a trusted key that signed it; None: nobody did, or no key is known to check with.
    """

    manifest: ProcessManifest
    model: bytes
    readings: Floats
    risks: Floats
    sha256: str
    origin: str
    signed_by: str | None = None

    @property
    def ref(self) -> ModelRef:
        """What messages say of their model."""
        return ModelRef(name=self.manifest.name, version=self.manifest.version, sha256=self.sha256)


def read_process_bundle(path: Path, trust: Trust = ANYONE) -> ProcessBundle:
    """Read and check a process bundle.

    Raises:
        BundleError: the file is missing, cut short, altered, too large, not trusted, or its manifest does not hold.
    """
    return open_process_bundle(read_file(path), str(path), trust)


def open_process_bundle(data: bytes, origin: str, trust: Trust = ANYONE) -> ProcessBundle:
    """Check the bytes of a process bundle.

    Raises:
        BundleError: as for `read_process_bundle`.
    """
    contents = open_members(data, origin, trust)
    members = contents.members
    manifest = parse_json(ProcessManifest, members.pop(MANIFEST, None), origin)
    needed = {GOLDEN_READINGS, GOLDEN_RISKS} | ({MODEL} if manifest.has_network else set())
    check_members(manifest.members, needed, members, origin)
    if extra := sorted(set(members) - needed):
        raise BundleError(f"bundle {origin}: member {extra[0]} does not belong into a bundle for {manifest.task}")
    readings = _table(members[GOLDEN_READINGS], GOLDEN_READINGS, origin)
    risks = _table(members[GOLDEN_RISKS], GOLDEN_RISKS, origin)
    if readings.ndim != 2 or readings.shape[1] != len(manifest.channels) or risks.shape != readings.shape[:1]:  # noqa: PLR2004
        raise BundleError(
            f"bundle {origin}: the golden sequence has shapes {list(readings.shape)} and {list(risks.shape)}; "
            f"[ticks, {len(manifest.channels)}] and [ticks] are needed"
        )
    if not np.isfinite(risks).any():
        raise BundleError(f"bundle {origin}: the golden sequence is too short to give a risk")
    return ProcessBundle(
        manifest, members.get(MODEL, b""), readings, risks, contents.sha256, origin, contents.signed_by
    )


def is_process_bundle(path: Path) -> bool:
    """Whether a bundle's manifest names a task of this module; its members are not checked yet.

    Raises:
        BundleError: the file is missing, cut short or too large.
    """
    return head_of(open_members(read_file(path), str(path)), str(path)).is_process


def _table(content: bytes, name: str, origin: str) -> Floats:
    try:
        table = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as exc:
        raise BundleError(f"bundle {origin}: member {name} is no table: {exc}") from exc
    if not isinstance(table, np.ndarray) or table.dtype != np.float64 or len(table) > MAX_GOLDEN_TICKS:
        raise BundleError(f"bundle {origin}: member {name} must be float64 of at most {MAX_GOLDEN_TICKS} rows")
    return table
