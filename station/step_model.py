"""Early warning on one group: scaling, the recurrent network's step, the chart, and what is remembered."""

import io
import zipfile
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from station.errors import GoldenMismatch
from station.messages import ModelRef
from station.process_bundle import ForecastMonitor, ProcessBundle, WarnMonitor
from station.process_messages import AlarmLimits, Mask, StepRisk, Values
from station.risk import RESIDUAL_BOUND, chart_of, risk_of

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
_OWNER = "owner"
_STATE = "state."
_CHART = "chart."


class StepNetwork(Protocol):
    """One step of a recurrent network; it holds its state between the calls."""

    def step(self, values: Singles, mask: Singles) -> Floats:
        """Take `[channels]` scaled readings and their mask (1 good, 0 not); return the output, flat.

        Raises:
            InferenceError: the runtime failed.
        """

    def reset(self) -> None:
        """Set the state to zeros."""

    def state(self) -> list[Singles]:
        """A copy of the state tensors."""

    def set_state(self, state: Sequence[Singles]) -> None:
        """Go on from a state.

        Raises:
            ValueError: the shapes are others.
        """


class ProcessModel:
    """A process bundle at work: the `StepModel` of the ports.

    Args:
        bundle: read and checked by `station.process_bundle.read_process_bundle`.
        network: for the bundles that have one.
    """

    def __init__(self, bundle: ProcessBundle, network: StepNetwork | None) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._network = network
        channels = manifest.channels
        self._center = np.array([channel.center for channel in channels])
        self._scale = np.array([channel.scale for channel in channels])
        self._per_scale = 1.0 / self._scale
        monitor = manifest.monitor
        self._clip = monitor.input_clip if isinstance(monitor, ForecastMonitor | WarnMonitor) else 0.0
        self._chart = chart_of(monitor, len(channels))
        self._named = tuple((channel.name, channel.unit) for channel in channels)
        limits = manifest.limits
        self._limits = AlarmLimits(limits.risk, limits.deadband, limits.on_delay_s, limits.off_delay_s)

    @property
    def bundle(self) -> ProcessBundle:
        """With its calibration and figures."""
        return self._bundle

    @property
    def ref(self) -> ModelRef:
        """Which bundle this is."""
        return self._bundle.ref

    @property
    def channels(self) -> tuple[tuple[str, str], ...]:
        """(name, unit) of each channel in the model's order; unit "" where the bundle knows none."""
        return self._named

    @property
    def step_s(self) -> float:
        """The fixed step that it was trained on, in seconds."""
        return self._bundle.manifest.step_s

    @property
    def limits(self) -> AlarmLimits:
        """When its risk becomes an alarm."""
        return self._limits

    @property
    def reset_after_s(self) -> float:
        """The gap after which its training began anew, in seconds."""
        return self._bundle.manifest.reset_after_s

    @property
    def flat_after_s(self) -> tuple[float | None, ...]:
        """How long each channel may stand still before it is bad, as the training logs show; None: for ever."""
        return tuple(channel.flat_after_s for channel in self._bundle.manifest.channels)

    def step(self, at_s: float, values: Values, mask: Mask) -> StepRisk:  # noqa: ARG002
        """Take the readings of one step, and say what they are worth.

        Raises:
            InferenceError: the runtime failed; the model must be reset before the next step.
        """
        scaled = values - self._center
        scaled *= self._per_scale
        scaled *= mask
        np.minimum(scaled, RESIDUAL_BOUND, out=scaled)
        np.maximum(scaled, -RESIDUAL_BOUND, out=scaled)
        output = None
        if self._network is not None:
            clip = self._clip
            cut = np.minimum(np.maximum(scaled, -clip), clip)
            output = self._network.step(cut.astype(np.float32), mask.astype(np.float32))
        evidence = self._chart.update(scaled, mask, output)
        expected = evidence.expected * self._scale
        expected += self._center
        if evidence.statistic is None:
            return StepRisk(None, expected, np.zeros(len(mask)))
        total = float(evidence.parts.sum())
        shares = evidence.parts / total if total > 0 else np.zeros(len(mask))
        return StepRisk(risk_of(evidence.statistic), expected, shares)

    def reset(self) -> None:
        """Forget everything: the next ticks warm up."""
        self._chart.reset()
        if self._network is not None:
            self._network.reset()

    def snapshot(self) -> bytes:
        """What it remembers; says by itself which bundle it belongs to."""
        tables: dict[str, npt.NDArray[np.generic]] = {_OWNER: np.frombuffer(self.ref.sha256.encode(), np.uint8)}
        for name, table in self._chart.memory().items():
            tables[_CHART + name] = table
        for place, state in enumerate(self._network.state() if self._network is not None else []):
            tables[f"{_STATE}{place}"] = state
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **tables)
        return stream.getvalue()

    def restore(self, snapshot: bytes) -> bool:
        """Go on from a snapshot; False, and forgetting everything, when it is not of this very model."""
        self.reset()
        try:
            with np.load(io.BytesIO(snapshot), allow_pickle=False) as kept:
                tables = {name: kept[name] for name in kept.files}
            if tables[_OWNER].tobytes() != self.ref.sha256.encode():
                return False
            self._chart.recall(
                {name.removeprefix(_CHART): table for name, table in tables.items() if name.startswith(_CHART)}
            )
            if self._network is not None:
                count = sum(name.startswith(_STATE) for name in tables)
                self._network.set_state([tables[f"{_STATE}{place}"] for place in range(count)])
        except (KeyError, ValueError, OSError, EOFError, IndexError, TypeError, zipfile.BadZipFile):
            self.reset()
            return False
        return True


def replay(model: ProcessModel, readings: Floats, first_at_s: float) -> Floats:
    """Run `[ticks, channels]` readings, NaN where bad, from a fresh start; return the risks, NaN where none."""
    model.reset()
    step_s = model.step_s
    risks = np.full(len(readings), np.nan)
    for place, row in enumerate(readings):
        mask = np.isfinite(row)
        risk = model.step(first_at_s + place * step_s, np.where(mask, row, 0.0), mask).risk
        if risk is not None:
            risks[place] = risk
    model.reset()
    return risks


def check_golden_sequence(model: ProcessModel) -> None:
    """Replay the stored readings through this very path, and forget them.

    Raises:
        GoldenMismatch: a risk differs from what was validated.
    """
    bundle = model.bundle
    golden = bundle.manifest.golden
    risks = replay(model, bundle.readings, golden.first_at_s)
    if not np.array_equal(np.isnan(risks), np.isnan(bundle.risks)):
        raise GoldenMismatch(f"bundle {bundle.origin}: golden sequence: it warms up otherwise than validated")
    apart = np.abs(np.nan_to_num(risks) - np.nan_to_num(bundle.risks))
    worst = int(apart.argmax())
    if apart[worst] > golden.tolerance:
        raise GoldenMismatch(
            f"bundle {bundle.origin}: golden sequence: tick {worst}: the risk is {risks[worst]:.4f}, "
            f"validated was {bundle.risks[worst]:.4f} ± {golden.tolerance:.4f}"
        )
