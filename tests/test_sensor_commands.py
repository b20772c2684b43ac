"""Sources of readings as a user meets them: `station check`, and what it says when a package or a device is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
from modbus_server import ModbusServer

from station.adapters.embedded_broker import free_port
from station.commands.exit_codes import ExitCode
from station.commands.looks import sensors
from station.commands.sensor_factory import need_extras
from station.errors import ConfigurationError
from station.settings import from_document

CAMERA = {"line": {"kind": "simulated"}}


def findings(source: dict[str, object], folder: Path, **tables: object) -> list[tuple[str, ExitCode]]:
    document = {"camera": CAMERA, "sensors": {"press": source}, **tables}
    found = sensors(from_document(document, "station.toml", folder, {}), running=False)
    return [(one.line, one.code) for one in found]


def test_a_reading_is_taken_from_a_device_and_what_is_wrong_is_told(tmp_path: Path) -> None:
    with ModbusServer() as server:
        modbus: dict[str, object] = {"kind": "modbus_tcp", "host": "127.0.0.1", "port": server.port}
        good = findings({**modbus, "points": {"count": {"address": 0}}}, tmp_path)
        bad = findings({**modbus, "points": {"count": {"address": 0}, "hole": {"address": 5}}}, tmp_path)
    assert good == [("ok    sensors press: count = 7", ExitCode.OK)]
    text = "WRONG sensors press: hole: Modbus exception 2 (illegal data address) for holding 5"
    assert bad == [(text, ExitCode.SENSORS)]


def test_a_source_that_is_away_is_told_with_the_reason(tmp_path: Path) -> None:
    ((line, code),) = findings(
        {"kind": "modbus_tcp", "host": "127.0.0.1", "port": free_port(), "points": {"a": {"address": 0}}}, tmp_path
    )
    assert code is ExitCode.SENSORS
    assert "Connection refused" in line
    ((line, code),) = findings({"kind": "csv", "path": "absent.csv"}, tmp_path)
    assert code is ExitCode.SENSORS
    assert "absent.csv: cannot be read: No such file or directory" in line


def test_a_log_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("time,T\n2026-01-31,80\n", encoding="utf-8")
    assert findings({"kind": "csv", "path": "log.csv"}, tmp_path) == [("ok    sensors press: T = 80", ExitCode.OK)]


def test_topics_of_the_embedded_broker_cannot_be_looked_at_from_outside(tmp_path: Path) -> None:
    ((line, code),) = findings({"kind": "mqtt", "points": {"a": {"topic": "t"}}}, tmp_path, broker={"embedded": True})
    assert code is ExitCode.OK
    assert "embedded broker, which runs only within the station" in line


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [
        ({"kind": "modbus_rtu", "device": "/dev/ttyS0", "points": {"a": {"address": 0}}}, "pymodbus", "modbus"),
        ({"kind": "opcua", "server_url": "opc.tcp://h:1", "points": {"a": {"node": "i=1"}}}, "asyncua", "opcua"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    source: dict[str, object], package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for adapter in (f"{extra}_sensors", "_modbus_client"):
        monkeypatch.delitem(sys.modules, f"station.adapters.{adapter}", raising=False)
    for name in [one for one in sys.modules if one.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    settings = from_document({"camera": CAMERA, "sensors": {"press": source}}, "station.toml", tmp_path, {})
    with pytest.raises(ConfigurationError) as caught:
        need_extras(settings)
    assert f"needs the package {package}, which is not installed" in str(caught.value)
    assert f"pip install 'inspection-station[{extra}]'" in str(caught.value)


def test_a_run_without_the_package_ends_with_exit_78(tmp_path: Path) -> None:
    path = tmp_path / "station.toml"
    path.write_text(
        '[camera.line]\nkind = "simulated"\n[sensors.press]\nkind = "modbus_tcp"\nhost = "h"\n'
        "points.a = { address = 0 }\n",
        encoding="utf-8",
    )
    hidden = (
        'import sys; sys.modules["pymodbus"] = None; from station.__main__ import main; sys.exit(main(sys.argv[1:]))'
    )
    ended = subprocess.run(
        [sys.executable, "-c", hidden, "run", "--config", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=Path(__file__).parents[1],
    )
    assert ended.returncode == ExitCode.CONFIGURATION, ended.stderr
    assert f"{path}: sensors.press.kind = 'modbus_tcp' needs the package pymodbus" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_is_installed_is_accepted(tmp_path: Path) -> None:
    document = {
        "camera": CAMERA,
        "sensors": {
            "a": {"kind": "modbus_tcp", "host": "h", "points": {"a": {"address": 0}}},
            "b": {"kind": "opcua", "server_url": "opc.tcp://h:1", "points": {"a": {"node": "i=1"}}},
        },
    }
    try:
        need_extras(from_document(document, "station.toml", tmp_path, {}))
    except ConfigurationError as exc:
        pytest.fail(str(exc))
