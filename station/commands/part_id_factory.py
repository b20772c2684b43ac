"""From one `[camera.<name>.part_id]` table to what gives that camera's verdicts their part ids."""

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from station.adapters.code_reader import OpenCvCodeReader
from station.adapters.mqtt_part_ids import MqttPartIds
from station.adapters.system_clock import SystemClock
from station.commands.sensor_factory import optional_adapter
from station.commands.station_broker import StationBroker
from station.part_id_settings import CodePartId, ModbusRtuPartId, ModbusTcpPartId, MqttPartId, PartIdSettings
from station.part_ids import PartIds
from station.ports import PartIdSource, StateStore
from station.settings import BaseCamera


def make_part_ids(
    camera: str,
    settings: BaseCamera,
    broker: StationBroker,
    *,
    fault: Callable[[str | None], None],
    store: StateStore,
    used: Iterable[tuple[str, datetime]],
    environment: Mapping[str, str] = os.environ,
) -> PartIds | None:
    """Return what the settings describe, not yet entered; None: the camera's parts have no ids.

    Args:
        camera: the camera's name.
        settings: its table.
        broker: the station's own broker.
        fault: told what is wrong with the source, and None when all is well again.
        store: keeps counters over a restart.
        used: ids of former runs with the times of their frames, oldest first.
        environment: where credentials are looked up.

    Raises:
        ConfigurationError: it needs a package that is not installed, or a secret cannot be read.
    """
    wanted = settings.part_id
    if wanted is None:
        return None
    return PartIds(
        camera,
        wanted,
        late_after_ms=settings.late_after_ms,
        clock=SystemClock(),
        fault=fault,
        source=make_part_id_source(camera, wanted, broker, environment),
        reader=OpenCvCodeReader(wanted.symbols) if isinstance(wanted, CodePartId) else None,
        store=store,
        used=used,
    )


def make_part_id_source(
    camera: str, settings: PartIdSettings, broker: StationBroker, environment: Mapping[str, str] = os.environ
) -> PartIdSource | None:
    """Return the source that ids come from by themselves, not yet entered; None: they are found in the frame.

    Raises:
        ConfigurationError: it needs a package that is not installed, or a secret cannot be read.
    """
    match settings:
        case ModbusTcpPartId() | ModbusRtuPartId():
            adapter = optional_adapter("modbus_part_ids", "modbus", f"camera.{camera}.part_id.kind = {settings.kind!r}")
            source: PartIdSource = adapter.ModbusPartIds(camera, settings, SystemClock())
            return source
        case MqttPartId():
            table = f"camera.{camera}.part_id.broker"
            access = broker.access(settings.broker, f"part-ids-{camera}", table, environment)
            return MqttPartIds(camera, settings, SystemClock(), access)
        case _:
            return None


def need_part_id_extras(cameras: Mapping[str, BaseCamera]) -> None:
    """See that the package of each source is installed.

    Raises:
        ConfigurationError: one is not; the text names the extra.
    """
    for camera, settings in cameras.items():
        if isinstance(settings.part_id, ModbusTcpPartId | ModbusRtuPartId):
            optional_adapter("modbus_part_ids", "modbus", f"camera.{camera}.part_id.kind = {settings.part_id.kind!r}")
