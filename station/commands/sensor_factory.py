"""From one table to the device that it describes: `[sensors.<name>]` and `[reject.<name>]`."""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from station.adapters.csv_sensors import CsvReplay
from station.adapters.mqtt_sensors import MqttSource
from station.adapters.simulated_sensors import SimulatedSensors as SimulatedSource
from station.adapters.system_clock import SystemClock
from station.commands.station_broker import StationBroker
from station.errors import ConfigurationError
from station.ports import RejectDevice, Sensors
from station.reject_settings import RejectSettings
from station.sensor_settings import (
    CsvSensors,
    ModbusRtuSensors,
    ModbusTcpSensors,
    MqttSensors,
    OpcUaSensors,
    SensorSettings,
    SimulatedSensors,
)
from station.settings import Settings

_EXTRAS = {
    "modbus_tcp": ("modbus_sensors", "modbus"),
    "modbus_rtu": ("modbus_sensors", "modbus"),
    "opcua": ("opcua_sensors", "opcua"),
}
"""Kind → module of the adapter, extra that holds what it needs."""


def make_sensors(
    name: str,
    settings: SensorSettings,
    wanted: Sequence[str],
    broker: StationBroker,
    environment: Mapping[str, str] = os.environ,
) -> Sensors:
    """Return the source that the settings describe, not yet entered.

    Args:
        name: of the source.
        settings: its table.
        wanted: the points that the process groups ask for.
        broker: the station's own broker.
        environment: where credentials are looked up.

    Raises:
        ConfigurationError: it needs a package that is not installed, or a secret cannot be read.
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
            return _source(name, settings).ModbusSource(name, settings, clock)  # type: ignore[no-any-return]
        case OpcUaSensors():
            password = settings.read_password(environment, f"sensors.{name}")
            return _source(name, settings).OpcUaSource(name, settings, clock, password)  # type: ignore[no-any-return]
        case MqttSensors():
            access = broker.access(settings.broker, f"sensors-{name}", f"sensors.{name}.broker", environment)
            return MqttSource(name, settings, SystemClock(), access)
        case _:
            assert_never(settings)


def make_reject(name: str, settings: RejectSettings) -> RejectDevice:
    """Return the device of a reject output, not yet entered.

    Raises:
        ConfigurationError: it needs a package that is not installed.
    """
    device = optional_adapter("modbus_reject", "modbus", f"reject.{name}.kind = {settings.kind!r}")
    return device.ModbusReject(settings)  # type: ignore[no-any-return]


def need_extras(settings: Settings) -> None:
    """See that the package of each source of readings and each reject output is installed.

    Raises:
        ConfigurationError: one is not; the text names the extra.
    """
    for name, source in settings.sensors.items():
        if source.kind in _EXTRAS:
            _source(name, source)
    for name, reject in settings.reject.items():
        make_reject(name, reject)


def _source(name: str, settings: SensorSettings) -> Any:
    """The adapter of a protocol whose library is installed only where it is needed."""
    module, extra = _EXTRAS[settings.kind]
    return optional_adapter(module, extra, f"sensors.{name}.kind = {settings.kind!r}")


def optional_adapter(module: str, extra: str, needed_for: str) -> Any:
    """Return the module of an adapter that needs an extra.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    try:
        return importlib.import_module(f"station.adapters.{module}")
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        raise ConfigurationError(
            f"{needed_for} needs the package {package}, which is not installed; "
            f"install the extra: pip install 'inspection-station[{extra}]'"
        ) from exc
