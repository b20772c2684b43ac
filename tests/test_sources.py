"""What every source of readings promises (`station.ports.Sensors`), the simulated one included."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from modbus_server import ModbusServer
from mosquitto import Mosquitto
from opcua_server import OpcUaServer
from sensor_helpers import listen
from test_mqtt_sensors import Device

from station.broker_settings import BrokerSettings
from station.commands.sensor_factory import make_sensors
from station.commands.station_broker import StationBroker
from station.messages import SourceStateName
from station.ports import Sensors
from station.process_messages import ChannelQuality
from station.settings import from_document

Bench = Callable[[Path], AbstractContextManager[Sensors]]


def source(folder: Path, broker_port: int = 1883, **table: object) -> Sensors:
    document = {"camera": {"line": {"kind": "simulated"}}, "sensors": {"press": table}}
    settings = from_document(document, "station.toml", folder, {}).sensors["press"]
    broker = StationBroker(BrokerSettings(port=broker_port), "127.0.0.1", broker_port, "inspection-line")
    return make_sensors("press", settings, ("T",), broker, {})


@contextmanager
def simulated(folder: Path) -> Iterator[Sensors]:
    yield source(folder, kind="simulated", rate_hz=50.0)


@contextmanager
def log(folder: Path) -> Iterator[Sensors]:
    (folder / "log.csv").write_text("time,T\n" + "".join(f"{at},80\n" for at in range(100)), encoding="utf-8")
    yield source(folder, kind="csv", path="log.csv", speed=50.0)


@contextmanager
def modbus(folder: Path) -> Iterator[Sensors]:
    with ModbusServer() as server:
        points = {"T": {"address": 10, "type": "float32"}}
        yield source(folder, kind="modbus_tcp", host="127.0.0.1", port=server.port, poll_s=0.05, points=points)


@contextmanager
def opcua(folder: Path) -> Iterator[Sensors]:
    with OpcUaServer() as server:
        points = {"T": {"node": "ns=2;s=Temperature"}}
        yield source(folder, kind="opcua", server_url=server.url, refresh_s=0.1, points=points)


@contextmanager
def topics(folder: Path) -> Iterator[Sensors]:
    with Mosquitto(folder) as broker:
        for number in range(3):
            Device(broker.port).say(f"plant/{number}", "80", retain=True)
        points = {"T": {"topic": "plant/0"}, "second": {"topic": "plant/1"}, "third": {"topic": "plant/2"}}
        yield source(folder, broker.port, kind="mqtt", accept_retained=True, points=points)


@pytest.mark.parametrize("bench", [simulated, log, modbus, opcua, topics])
def test_each_source_delivers_whole_rows_in_order_and_is_left_at_once(bench: Bench, tmp_path: Path) -> None:
    with bench(tmp_path) as made:
        with made as entered:
            heard = listen(entered, lambda so_far: len(so_far.rows) >= 3)
            points = entered.points
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 5
    assert len(set(points)) == len(points) >= 1
    assert SourceStateName.DOWN not in heard.states
    for row in heard.rows:
        assert row.source == "press"
        assert len(row.values) == len(points)
        assert row.qualities is None or len(row.qualities) == len(points)
        assert {ChannelQuality.GOOD} >= set(row.qualities or ()) - {ChannelQuality.ABSENT}
    arrivals = [row.received_monotonic_s for row in heard.rows]
    assert arrivals == sorted(arrivals)
