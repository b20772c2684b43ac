"""From `[changeover]` to the sources of orders that it describes."""

import os
from collections.abc import Mapping

from station.adapters.mqtt_orders import MqttOrders
from station.adapters.system_clock import SystemClock
from station.changeover_settings import ChangeoverSettings
from station.commands.sensor_factory import optional_adapter
from station.commands.station_broker import StationBroker
from station.ports import Orders
from station.sensor_settings import ModbusTcpSensors

MODBUS = "modbus"
MQTT = "mqtt"


def make_orders(
    settings: ChangeoverSettings, broker: StationBroker, environment: Mapping[str, str] = os.environ
) -> dict[str, tuple[Orders, str]]:
    """The sources of orders, not yet entered: name → source, and who orders there for the record.

    Raises:
        ConfigurationError: one needs a package that is not installed, or a secret cannot be read.
    """
    sources: dict[str, tuple[Orders, str]] = {}
    if settings.mqtt is not None:
        access = broker.access(settings.mqtt.broker, "orders", "changeover.mqtt.broker", environment)
        sources[MQTT] = (MqttOrders(settings.mqtt, SystemClock(), access), f"topic {settings.mqtt.topic}")
    if (modbus := settings.modbus) is not None:
        adapter = optional_adapter("modbus_sensors", "modbus", f"changeover.modbus.kind = {modbus.kind!r}")
        where = f"{modbus.host}:{modbus.port}" if isinstance(modbus, ModbusTcpSensors) else modbus.device
        (point,) = modbus.points.values()
        source = adapter.ModbusSource("changeover", modbus, SystemClock())
        sources[MODBUS] = (source, f"register {where} {point.table} {point.address}")
    return sources


def need_order_extras(settings: ChangeoverSettings) -> None:
    """See that the package of each source is installed.

    Raises:
        ConfigurationError: one is not; the text names the extra.
    """
    if settings.modbus is not None:
        optional_adapter("modbus_sensors", "modbus", f"changeover.modbus.kind = {settings.modbus.kind!r}")
