"""A simulated oven and press, deterministic: what the demo watches, and what its bundle was trained on.

Boards pass an oven at 180 °C and a hydraulic press. A controller holds the oven's temperature; ambient and load wander,
so that its output wanders in normal operation, too. The press closes every two seconds.

When the heater begins to fail (`drift_after_s`), its power falls by `POWER_LOSS_PER_S`. The controller makes up for it:
for a while the temperature stays where it was, and only the relation of output, current and temperature changes. Then
the controller is at its end, the oven cools, and boards are cured too cold: `DEFECTS_AFTER_S` after the heater began to
fail the simulated line's share of defects rises. Whoever watches the relation knows before.

A lumped model: one heat capacity for the oven, one for the exit zone, first-order hydraulics. The figures are chosen to
look like such a machine at a pace at which a demonstration does not bore; they are no particular machine's.
"""

import math
from collections.abc import Iterator

import numpy as np

CHANNELS = (
    ("heater_output", "%"),
    ("heater_current", "A"),
    ("oven_temperature", "°C"),
    ("exit_temperature", "°C"),
    ("press_pressure", "bar"),
    ("press_force", "kN"),
    ("pump_current", "A"),
    ("belt_speed", "m/min"),
)
"""(name, unit) in the order of a row."""
DEFECTS_AFTER_S = 20.0
"""The share of defects rises this long after the heater began to fail."""
POWER_LOSS_PER_S = 0.02
"""Share of the heater's power that is lost each second, once it fails."""
POWER_LEFT = 0.45
"""A failing heater keeps at least this share of its power."""
PRESS_CYCLE_S = 2.0

_SETPOINT_C = 180.0
_AMBIENT_C = 25.0
_CURRENT_A = 42.0
_POWER_C_PER_S = 14.5
"""Heating rate at full output."""
_LOSS_PER_S = 0.055
_INTEGRATION_S = 0.05
"""Longest step of the integration."""
_BLOCK = 512


class SimulatedProcess:
    """Rows of readings at a fixed rate, one after the other; row k is the state at k / rate seconds.

    Args:
        seed: chooses the noise, the course of ambient and load, and the press's phase.
        rate_hz: rows a second.
        drift_after_s: the heater begins to fail at this time; None: never.

    Raises:
        ValueError: a value is not allowed.
    """

    def __init__(self, seed: int, rate_hz: float = 10.0, drift_after_s: float | None = None) -> None:
        if not rate_hz > 0:
            raise ValueError(f"rate_hz = {rate_hz}; allowed: more than 0")
        if drift_after_s is not None and not drift_after_s >= 0:
            raise ValueError(f"drift_after_s = {drift_after_s}; allowed: 0 or more")
        self._period_s = 1.0 / rate_hz
        self._parts = max(1, math.ceil(self._period_s / _INTEGRATION_S))
        self._drift_after_s = math.inf if drift_after_s is None else drift_after_s
        self._random = np.random.default_rng((0x0FE7, seed))
        self._row = 0
        self._normal: Iterator[list[float]] = iter(())
        self._phase_s = float(self._random.uniform(0, PRESS_CYCLE_S))
        self._ambient_c = _AMBIENT_C
        self._load = 0.0
        self._oven_c = _SETPOINT_C
        self._exit_c = _SETPOINT_C - 12.0
        self._integral = _LOSS_PER_S * (_SETPOINT_C - _AMBIENT_C) / _POWER_C_PER_S
        self._output = self._integral
        self._pressure_bar = 10.0
        self._belt = 6.0

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the values of a row."""
        return tuple(name for name, _ in CHANNELS)

    def next(self) -> tuple[float, ...]:
        """The next row, in the order of `CHANNELS`."""
        at_s = self._row * self._period_s
        self._row += 1
        noise = next(self._normal, None)
        if noise is None:
            self._normal = iter(self._random.standard_normal((_BLOCK, 12)).tolist())
            noise = next(self._normal)
        power = max(POWER_LEFT, 1.0 - POWER_LOSS_PER_S * max(0.0, at_s - self._drift_after_s))
        self._wander(noise)
        before_bar = self._pressure_bar
        part_s = self._period_s / self._parts
        for part in range(self._parts):
            self._move(at_s + part * part_s, part_s, power)
        rising = max(0.0, self._pressure_bar - before_bar) / self._period_s
        return (
            100.0 * self._output + 0.15 * noise[3],
            _CURRENT_A * self._output * power + 0.08 * noise[4],
            self._oven_c + 0.12 * noise[5],
            self._exit_c + 0.12 * noise[6],
            self._pressure_bar + 0.35 * noise[7],
            0.85 * self._pressure_bar + 0.4 * noise[8],
            8.0 + 0.05 * self._pressure_bar + 0.02 * rising + 0.1 * noise[9],
            self._belt + 0.01 * noise[10],
        )

    def _wander(self, noise: list[float]) -> None:
        """Ambient and load: first-order random walks that come back, with 3 °C and 0.35 °C/s standard deviation."""
        slow, fast = self._period_s / 600.0, self._period_s / 60.0
        self._ambient_c += slow * (_AMBIENT_C - self._ambient_c) + 3.0 * math.sqrt(2 * slow) * noise[0]
        self._load += -fast * self._load + 0.35 * math.sqrt(2 * fast) * noise[1]
        self._belt += fast * (6.0 - self._belt) + 0.05 * math.sqrt(2 * fast) * noise[2]

    def _move(self, at_s: float, step_s: float, power: float) -> None:
        error_c = _SETPOINT_C - self._oven_c
        wanted = self._integral + 0.06 * error_c
        self._output = min(1.0, max(0.0, wanted))
        if 0.0 < wanted < 1.0:  # no wind-up at the end of the range
            self._integral += 0.012 * error_c * step_s
        heat = _POWER_C_PER_S * self._output * power - _LOSS_PER_S * (self._oven_c - self._ambient_c) - self._load
        self._oven_c += heat * step_s
        self._exit_c += (self._oven_c - 12.0 - self._exit_c) / 4.0 * step_s
        target_bar = 120.0 if (at_s + self._phase_s) % PRESS_CYCLE_S < 0.55 * PRESS_CYCLE_S else 10.0
        self._pressure_bar += (target_bar - self._pressure_bar) * min(1.0, step_s / 0.15)
