"""From one `[sensors.<name>]` table to the source of readings that it describes."""

import importlib
from collections.abc import Sequence
from typing import Any

from station.adapters.csv_sensors import CsvReplay
from station.adapters.simulated_sensors import SimulatedSensors as SimulatedSource
from station.adapters.system_clock import SystemClock
from station.errors import ConfigurationError
from station.ports import Sensors
from station.sensor_settings import (
    CsvSensors,
    ModbusRtuSensors,
    ModbusTcpSensors,
    SensorSettings,
    SimulatedSensors,
)


def make_sensors(name: str, settings: SensorSettings, wanted: Sequence[str]) -> Sensors:
    """Return the source that the settings describe, not yet entered.

    Args:
        name: of the source.
        settings: its table.
        wanted: the points that the process groups ask for.

    Raises:
        ConfigurationError: it needs a package that is not installed.
    """
    clock = SystemClock()
    match settings:
        case SimulatedSensors():
            return SimulatedSource(
                name, clock, seed=settings.seed, rate_hz=settings.rate_hz, drift_after_s=settings.drift_after_s
            )
        case CsvSensors():
            return CsvReplay(name, settings, clock, wanted)
        case ModbusTcpSensors() | ModbusRtuSensors():
            return _optional(name, settings, "modbus_sensors", "modbus").ModbusSource(name, settings, clock)  # type: ignore[no-any-return]
        case _:
            raise ConfigurationError(f"sensors.{name}.kind = {settings.kind!r}: cannot be read by this version")


def _optional(name: str, settings: SensorSettings, module: str, extra: str) -> Any:
    """The adapter of a protocol whose library is installed only where it is needed."""
    try:
        return importlib.import_module(f"station.adapters.{module}")
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            f"sensors.{name}.kind = {settings.kind!r} needs the package {exc.name}, which is not installed; "
            f"install the extra: pip install 'inspection-station[{extra}]'"
        ) from exc
