"""From scaled readings to a risk in 0 to 1: one chart for each kind of monitor, behind one interface.

A *chart* takes one tick at a time and keeps a fixed amount of memory. It tells a *statistic*, in units of its own
limit, so that 1 is where the bundle says that normal operation ends, and each channel's part in it. The risk is

    risk = 1 − 2^(−statistic²)

so that it is one half at the limit, grows with the statistic, and never leaves 0 to 1.

`ForecastChart` compares what came with what a recurrent network had forecast some ticks before. For each channel and
horizon the residual is divided by its own spread, cut, less a slow offset, and remembered by an exponentially weighted
mean (Roberts, Technometrics 1, 1959), whose spread in normal operation is known, too. What remains is a Mahalanobis
distance: where channels move together by nature, one that leaves the others counts more than all that move. Or it is a
single part that is larger than chance allows in so many. A network cannot follow a stable channel
out of the range that it was taught, so that a lasting shift keeps its residual. A channel that wanders by nature would
keep one as well: what it has beyond that range is added to its forecasts, by as much as the channel keeps its own
deviations in the calibration log. The slow offset takes up ageing and
weather; it stands still while the mean is outside of its gate, and it is bounded, so that a drift is taken up only so
far: then it counts, however slow it is.

`LevelChart` needs no network. It compares the remembered readings with where they were taught, channel by channel and
along each direction in which channels move together. What is far is a matter of how many independent readings were
seen: a channel that wanders through its log once has shown little of where it may be, and its limit is wide.

`PcaChart` and `EwmaChart` are the plain charts that these must be worth more than.

A masked channel has no part in anything, and its memory stands still.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from station.process_bundle import EwmaMonitor, ForecastMonitor, LevelMonitor, PcaMonitor, WarnMonitor
from station.process_messages import Mask, Values

Floats = npt.NDArray[np.float64]

RESIDUAL_BOUND = 50.0
"""Scaled readings are cut to ± this: beyond, a sensor is broken, and larger numbers would only overflow."""


@dataclass(slots=True)
class Evidence:
    """What a chart says after one tick; the arrays are the chart's own and change with the next tick.

    Attributes:
        statistic: at least 0, 1 at the limit; None while it cannot tell.
        parts: `[channels]`, at least 0: each channel's part, in any unit.
        expected: `[channels]`, scaled; NaN where it cannot tell.
    """

    statistic: float | None
    parts: Floats
    expected: Floats


class Chart(Protocol):
    """One chart: O(1) memory and work for each tick."""

    def update(self, scaled: Values, mask: Mask, output: Floats | None) -> Evidence:
        """Take one tick.

        Args:
            scaled: `[channels]`; 0 where the mask is False.
            mask: `[channels]`, True where good.
            output: of the network for this tick, where there is one.
        """

    def reset(self) -> None:
        """Forget everything."""

    def memory(self) -> dict[str, Floats]:
        """What it remembers, by name, to be kept over a restart."""

    def recall(self, memory: dict[str, Floats]) -> None:
        """Go on from what `memory` gave.

        Raises:
            KeyError, ValueError: it is of another chart.
        """


def risk_of(statistic: float) -> float:
    """The risk of a statistic that is 1 at its limit."""
    return 1.0 - float(2.0 ** -(statistic * statistic))


class ForecastChart:
    """Residuals of a network's forecasts; see the theory of operation above.

    Args:
        monitor: of the bundle.
        channels: how many.
    """

    def __init__(self, monitor: ForecastMonitor, channels: int) -> None:
        judged = np.array(monitor.judged)
        horizons = np.array(monitor.horizons)
        self._channels = channels
        self._horizons = len(horizons)
        self._judged = judged
        self._shown = int(judged[np.argmax(horizons[judged])])
        self._shown_ticks = int(horizons[self._shown])
        self._ahead = horizons[judged]
        self._depth = int(horizons.max())
        self._settle = monitor.settle
        spread = np.array(monitor.residual_spread).reshape(len(horizons), channels)[judged]
        self._per_spread = 1.0 / spread
        self._per_memory = 1.0 / np.array(monitor.memory_spread).reshape(len(judged), channels)
        self._clip = monitor.memory.clip
        self._rate = monitor.memory.rate
        self._adapt_rate = monitor.memory.adapt_rate
        self._gate = monitor.memory.adapt_gate
        self._adapt_limit = monitor.memory.adapt_limit
        self._single = monitor.memory.single_weight
        self._precision = np.array(monitor.precision) if monitor.precision else None
        self._per_limit = 1.0 / monitor.limit
        self._low = np.array(monitor.low)
        self._high = np.array(monitor.high)
        self._follow = np.array(monitor.follow).reshape(len(horizons), channels)
        self._good_key = b""
        self._good_precision = np.zeros((0, 0))
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._tick = 0
        self._slots = np.zeros((self._depth, self._horizons, self._channels))
        self._mean = np.zeros((len(self._judged), self._channels))
        self._offset = np.zeros_like(self._mean)
        self._unknown = np.full(self._channels, np.nan)
        self._nothing = np.zeros(self._channels)

    def update(self, scaled: Values, mask: Mask, output: Floats | None) -> Evidence:
        """Take one tick; `output` holds the forecasts made at it, `[horizons × channels]`.

        Raises:
            ValueError: there is no output.
        """
        if output is None:
            raise ValueError("this chart needs a forecast")
        tick, depth, slots = self._tick, self._depth, self._slots
        self._tick = tick + 1
        forecast = slots[(tick - self._ahead) % depth, self._judged]
        shown = slots[(tick - self._shown_ticks) % depth, self._shown].copy()
        slot = slots[tick % depth]
        np.multiply(self._follow, scaled - np.minimum(np.maximum(scaled, self._low), self._high), out=slot)
        slot += output.reshape(self._horizons, self._channels)
        if tick < depth + self._settle:
            return Evidence(None, self._nothing, self._unknown)
        residual = scaled - forecast
        residual *= self._per_spread
        np.minimum(residual, self._clip, out=residual)
        np.maximum(residual, -self._clip, out=residual)
        residual -= self._offset
        change = residual - self._mean
        change *= mask
        change *= self._rate
        self._mean += change
        place = self._mean * self._per_memory
        size = np.abs(place)
        # The offset follows inside of the gate only, so that it never learns an anomaly as the new normal.
        residual *= size < self._gate
        residual *= mask
        residual *= self._adapt_rate
        self._offset += residual
        np.minimum(self._offset, self._adapt_limit, out=self._offset)
        np.maximum(self._offset, -self._adapt_limit, out=self._offset)
        good = int(np.count_nonzero(mask)) * len(self._judged)
        if not good:
            return Evidence(None, self._nothing, shown)
        place *= mask
        if self._precision is None:
            squares = place * place
        else:
            squares = place * (self._among_good(mask) @ place.ravel()).reshape(place.shape)
        largest = self._single * float((size * mask).max())
        statistic = max(max(float(squares.sum()) / good, 0.0) ** 0.5, largest) * self._per_limit
        # A part below zero says that the channel explains others; it is not to blame.
        parts = np.maximum(squares.sum(axis=0), 0.0)
        return Evidence(statistic, parts, shown)

    def _among_good(self, mask: Mask) -> Floats:
        """The precision of the good channels; computed anew only when the mask changes."""
        assert self._precision is not None
        key = mask.tobytes()
        if key != self._good_key:
            self._good_key = key
            self._good_precision = _marginal(self._precision, np.tile(mask, len(self._judged)))
        return self._good_precision

    def memory(self) -> dict[str, Floats]:
        """What it remembers."""
        return {
            "tick": np.array([float(self._tick)]),
            "slots": self._slots,
            "mean": self._mean,
            "offset": self._offset,
        }

    def recall(self, memory: dict[str, Floats]) -> None:
        """Go on from what `memory` gave.

        Raises:
            KeyError, ValueError: it is of another chart.
        """
        slots, mean, offset = memory["slots"], memory["mean"], memory["offset"]
        if slots.shape != self._slots.shape or mean.shape != self._mean.shape or offset.shape != mean.shape:
            raise ValueError("the memory is of another chart")
        self._tick = int(memory["tick"][0])
        self._slots, self._mean, self._offset = slots.copy(), mean.copy(), offset.copy()


def _marginal(precision: Floats, good: Mask) -> Floats:
    """The precision when some parts are not known: with whatever they are, the distance is at least this one.

    The Schur complement of the known parts, with zeros for the others. To put 0 for an unknown part instead would take
    channels that it moves together with for faulty.
    """
    if good.all():
        return precision
    known, unknown = np.flatnonzero(good), np.flatnonzero(~good)
    kept = np.zeros_like(precision)
    across = precision[np.ix_(unknown, known)]
    kept[np.ix_(known, known)] = precision[np.ix_(known, known)] - across.T @ np.linalg.solve(
        precision[np.ix_(unknown, unknown)], across
    )
    return kept


class WarnChart:
    """The smoothed log-odds of a network that was taught with labelled faults.

    The network does not say why; the parts are how far each channel stands from its usual value.
    """

    def __init__(self, monitor: WarnMonitor, channels: int) -> None:
        self._settle = monitor.settle
        self._rate = monitor.rate
        self._offset = monitor.offset
        self._unknown = np.full(channels, np.nan)
        self._nothing = np.zeros(channels)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._tick = 0
        self._mean = 0.0

    def update(self, scaled: Values, mask: Mask, output: Floats | None) -> Evidence:
        """Take one tick; `output` is the log-odds of a fault.

        Raises:
            ValueError: there is no output.
        """
        if output is None:
            raise ValueError("this chart needs the network's output")
        odds = float(output[0])
        self._tick += 1
        # The first ticks average evenly: an exponential mean would count its start for long.
        self._mean += max(self._rate, 1 / self._tick) * (odds - self._mean)
        if self._tick <= self._settle or not mask.any():
            return Evidence(None, self._nothing, self._unknown)
        return Evidence(_statistic_of_odds(self._mean - self._offset), scaled * scaled * mask, self._unknown)

    def memory(self) -> dict[str, Floats]:
        """What it remembers."""
        return {"tick": np.array([float(self._tick)]), "mean": np.array([self._mean])}

    def recall(self, memory: dict[str, Floats]) -> None:
        """Go on from what `memory` gave.

        Raises:
            KeyError, ValueError: it is of another chart.
        """
        self._tick, self._mean = int(memory["tick"][0]), float(memory["mean"][0])


def _statistic_of_odds(log_odds: float) -> float:
    """The statistic whose risk is the probability that belongs to the log-odds: `risk_of(s)` = sigmoid(log-odds)."""
    return float(np.sqrt(np.logaddexp(0.0, log_odds) / np.log(2.0)))


class PcaChart:
    """Hotelling's T² and the squared prediction error Q, the larger against its limit.

    A masked channel stands at its mean, and its own error counts for nothing.
    """

    def __init__(self, monitor: PcaMonitor) -> None:
        self._mean = np.array(monitor.mean)
        self._components = np.array(monitor.components)
        self._per_variance = 1.0 / np.array(monitor.variances)
        self._rate = monitor.rate
        self._per_limit = 1.0 / np.array([monitor.t2_limit, monitor.q_limit])
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._tick = 0
        self._smooth = np.zeros(2)

    def update(self, scaled: Values, mask: Mask, output: Floats | None) -> Evidence:  # noqa: ARG002
        """Take one tick."""
        centred = (scaled - self._mean) * mask
        scores = self._components @ centred
        model = scores @ self._components
        error = (centred - model) * mask
        squares = error * error
        now = np.array([float(scores @ (scores * self._per_variance)), float(squares.sum())])
        self._tick += 1
        self._smooth += max(self._rate, 1 / self._tick) * (now - self._smooth)
        ratios = self._smooth * self._per_limit
        if not mask.any():
            return Evidence(None, squares, self._mean + model)
        # Both are squares; the statistic is an amplitude as that of the other charts.
        directions = (scores * self._per_variance) @ self._components
        parts = squares if ratios[1] >= ratios[0] else np.maximum(directions * centred, 0.0)
        return Evidence(float(ratios.max() ** 0.5), parts, self._mean + model)

    def memory(self) -> dict[str, Floats]:
        """What it remembers."""
        return {"tick": np.array([float(self._tick)]), "smooth": self._smooth}

    def recall(self, memory: dict[str, Floats]) -> None:
        """Go on from what `memory` gave.

        Raises:
            KeyError, ValueError: it is of another chart.
        """
        if memory["smooth"].shape != self._smooth.shape:
            raise ValueError("the memory is of another chart")
        self._tick, self._smooth = int(memory["tick"][0]), memory["smooth"].copy()


class EwmaChart:
    """An exponentially weighted moving average of each channel, the one that is farthest from its usual value."""

    def __init__(self, monitor: EwmaMonitor) -> None:
        self._rate = monitor.rate
        self._per_limit = 1.0 / (np.array(monitor.spread) * monitor.limit)
        self._expected = np.zeros(len(monitor.spread))
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._tick = np.zeros_like(self._expected)
        self._mean = np.zeros_like(self._expected)

    def update(self, scaled: Values, mask: Mask, output: Floats | None) -> Evidence:  # noqa: ARG002
        """Take one tick."""
        self._tick += mask
        self._mean += np.maximum(self._rate, 1 / np.maximum(self._tick, 1)) * mask * (scaled - self._mean)
        size = np.abs(self._mean) * self._per_limit * mask
        if not mask.any():
            return Evidence(None, size, self._expected)
        return Evidence(float(size.max()), size * size, self._expected)

    def memory(self) -> dict[str, Floats]:
        """What it remembers."""
        return {"tick": self._tick, "mean": self._mean}

    def recall(self, memory: dict[str, Floats]) -> None:
        """Go on from what `memory` gave.

        Raises:
            KeyError, ValueError: it is of another chart.
        """
        if memory["tick"].shape != self._tick.shape or memory["mean"].shape != self._mean.shape:
            raise ValueError("the memory is of another chart")
        self._tick, self._mean = memory["tick"].copy(), memory["mean"].copy()


class LevelChart:
    """The distance of remembered readings from their training mean, in units of each feature's own limit.

    A feature is a channel, or the score along a direction. A masked channel is taken for what makes the distance
    smallest, given the others: with whatever it is, the distance is at least this one.
    """

    def __init__(self, monitor: LevelMonitor) -> None:
        channels = len(monitor.mean)
        directions = np.array(monitor.directions).reshape(-1, channels)
        self._usual = np.array(monitor.mean)
        self._rate = monitor.rate
        limits = np.array(monitor.limits)
        self._features = np.concatenate([np.eye(channels), directions])
        self._per_limit = self._features / limits[:, None]
        self._precision = self._per_limit.T @ self._per_limit
        self._good_key = b""
        self._good_per_limit: Floats = self._per_limit
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._mean = np.zeros_like(self._usual)

    def update(self, scaled: Values, mask: Mask, output: Floats | None) -> Evidence:  # noqa: ARG002
        """Take one tick."""
        mean = self._mean
        change = scaled - self._usual
        change -= mean
        change *= mask
        change *= self._rate
        mean += change
        places = self._among_good(mask) @ mean
        farthest = int(np.abs(places).argmax())
        feature = self._features[farthest]
        along = feature * mean
        expected = self._usual + mean
        expected -= feature * float(along.sum())
        if not mask.any():
            return Evidence(None, np.zeros_like(mean), expected)
        place = float(places[farthest])
        parts = along * mask
        return Evidence(abs(place), np.maximum(parts if place >= 0 else -parts, 0.0), expected)

    def _among_good(self, mask: Mask) -> Floats:
        """Features by channels, over limits, with the bad channels put where the good ones expect them."""
        key = mask.tobytes()
        if key != self._good_key:
            self._good_key = key
            self._good_per_limit = self._per_limit
            if not mask.all():
                good, bad = np.flatnonzero(mask), np.flatnonzero(~mask)
                filled = np.zeros((len(mask), len(mask)))
                filled[good, good] = 1.0
                filled[np.ix_(bad, good)] = -np.linalg.solve(
                    self._precision[np.ix_(bad, bad)], self._precision[np.ix_(bad, good)]
                )
                self._good_per_limit = self._per_limit @ filled
        return self._good_per_limit

    def memory(self) -> dict[str, Floats]:
        """What it remembers."""
        return {"mean": self._mean}

    def recall(self, memory: dict[str, Floats]) -> None:
        """Go on from what `memory` gave.

        Raises:
            KeyError, ValueError: it is of another chart.
        """
        if memory["mean"].shape != self._mean.shape:
            raise ValueError("the memory is of another chart")
        self._mean = memory["mean"].copy()


def chart_of(monitor: ForecastMonitor | WarnMonitor | PcaMonitor | EwmaMonitor | LevelMonitor, channels: int) -> Chart:
    """The chart of a bundle's monitor, with nothing remembered."""
    match monitor:
        case ForecastMonitor():
            return ForecastChart(monitor, channels)
        case WarnMonitor():
            return WarnChart(monitor, channels)
        case PcaMonitor():
            return PcaChart(monitor)
        case EwmaMonitor():
            return EwmaChart(monitor)
        case LevelMonitor():
            return LevelChart(monitor)
