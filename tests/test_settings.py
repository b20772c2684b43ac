import tomllib
from pathlib import Path
from typing import Any

import pytest

from station.broker_settings import BrokerSettings
from station.configuration_text import TEMPLATE
from station.errors import ConfigurationError
from station.settings import FolderCamera, SimulatedCamera, from_document, load

CAMERA = {"line1": {"kind": "simulated"}}


def check(document: dict[str, Any], environment: dict[str, str] | None = None) -> Any:
    return from_document({"camera": CAMERA, **document}, "station.toml", Path("/etc/station"), environment or {})


def test_everything_but_the_camera_has_a_default() -> None:
    settings = check({})
    assert isinstance(settings.camera["line1"], SimulatedCamera)
    assert settings.station.data_dir == Path("/etc/station/station-data")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"statoin": {}}, "station.toml: statoin: unknown key"),
        ({"broker": {"prot": 1}}, "station.toml: broker.prot = 1: unknown key"),
        ({"broker": {"port": "1883"}}, "station.toml: broker.port = '1883': Input should be a valid integer"),
        ({"broker": {"port": True}}, "station.toml: broker.port = True: Input should be a valid integer"),
        ({"broker": {"port": 70000}}, "station.toml: broker.port = 70000: Input should be less than or equal to 65535"),
        ({"broker": {"port": 0}}, "station.toml: broker: port must be between 1 and 65535"),
        ({"broker": {"username": "a", "embedded": True}}, "the embedded broker listens on loopback only"),
        ({"broker": {"tls": {"key_file": "k"}}}, "station.toml: broker.tls: certificate_file and key_file belong"),
        ({"version": 2}, "station.toml: version = 2: Input should be 1"),
        ({"camera": {}}, "station.toml: camera: at least one table [camera.<name>] is needed"),
        ({"camera": {"a/b": {"kind": "simulated"}}}, "a name has letters, digits, _ and -"),
        ({"camera": {"a": {}}}, "station.toml: camera.a: kind is missing; allowed: v4l2, stream"),
        ({"camera": {"a": {"kind": "usb"}}}, "station.toml: camera.a: kind = 'usb' is not known; allowed: 'v4l2'"),
        ({"camera": {"a": {"kind": "folder"}}}, "station.toml: camera.a.path: is missing"),
        ({"camera": {"a": {"kind": "folder", "path": 3}}}, "station.toml: camera.a.path = 3: must be a path"),
        ({"camera": {"a": {"kind": "simulated", "rotate_degrees": 45}}}, "rotate_degrees = 45: Input should be 0"),
        ({"station": {"name": "line 1"}}, "station.toml: station.name = 'line 1': String should match pattern"),
        ({"model": {"threshold": 1.5}}, "station.toml: model.threshold = 1.5: Input should be less than or equal to 1"),
    ],
)
def test_each_error_names_file_key_value_and_what_is_allowed(document: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        check(document)
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_all_errors_are_told_one_a_line() -> None:
    with pytest.raises(ConfigurationError) as error:
        check({"broker": {"port": "x", "host": 1}, "station": {"nam": "a"}})
    assert len(str(error.value).splitlines()) == 3


def test_secrets_do_not_show() -> None:
    with pytest.raises(ConfigurationError) as error:
        check({"broker": {"username": "a", "password": 12345}, "camera": {"a": {"kind": "stream", "url": 98765}}})
    assert "12345" not in str(error.value)
    assert "98765" not in str(error.value)
    settings = check({"broker": {"username": "a", "password": "hunter2"}})
    assert "hunter2" not in repr(settings)
    assert settings.broker.read_password({}) == "hunter2"


def test_the_environment_overrides_the_file() -> None:
    settings = check(
        {"broker": {"host": "a"}},
        {
            "STATION_BROKER__HOST": "b.example",
            "STATION_BROKER__PORT": "8884",
            "STATION_CAMERA__LINE1__SEED": "7",
            "STATION_HOME": "not a key",
            "PATH": "/bin",
        },
    )
    assert (settings.broker.host, settings.broker.port, settings.camera["line1"].seed) == ("b.example", 8884, 7)
    with pytest.raises(ConfigurationError, match=r"broker\.prot = 1: unknown key"):
        check({}, {"STATION_BROKER__PROT": "1"})


def test_relative_paths_are_relative_to_the_file() -> None:
    settings = check(
        {
            "model": {"bundle": "a.bundle"},
            "broker": {"tls": {"ca_file": "ca.pem"}},
            "camera": {"a": {"kind": "folder", "path": "in", "list_file": "/lists/x.txt"}},
        }
    )
    camera = settings.camera["a"]
    assert isinstance(camera, FolderCamera)
    assert settings.broker.tls is not None
    assert settings.model.bundle == Path("/etc/station/a.bundle")
    assert settings.broker.tls.ca_file == Path("/etc/station/ca.pem")
    assert (camera.path, camera.list_file) == (Path("/etc/station/in"), Path("/lists/x.txt"))


def test_a_password_comes_from_a_systemd_credential(tmp_path: Path) -> None:
    (tmp_path / "mqtt").write_text("s3cret\n", encoding="utf-8")
    broker = BrokerSettings(username="a", password_credential="mqtt")
    assert broker.read_password({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "s3cret"
    with pytest.raises(ConfigurationError, match="CREDENTIALS_DIRECTORY is not set"):
        broker.read_password({})
    with pytest.raises(ConfigurationError, match="cannot read"):
        broker.read_password({"CREDENTIALS_DIRECTORY": "/nowhere"})


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "cannot be read: No such file"), (b"[a\n", "is not TOML"), (b"\xff", "is not UTF-8 text")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "station.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as error:
        load(path, {})
    assert str(error.value).startswith(f"{path}: {expected}")


def test_the_template_is_a_valid_configuration_and_so_are_its_examples(tmp_path: Path) -> None:
    text = TEMPLATE.format(file="station.toml")
    path = tmp_path / "station.toml"
    path.write_text(text, encoding="utf-8")
    load(path, {})
    examples = text.split("[camera.line1]")[2:]
    assert len(examples) == 4
    for example in examples:
        lines = [line.removeprefix("# ") for line in example.split("\n\n")[0].splitlines()]
        assert check({"camera": {"line1": tomllib.loads("\n".join(lines))}})


SENSORS = {"sensors": {"plc": {"kind": "simulated"}}}


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        ({}, "process.oven.channel: is missing"),
        ({"channel": {}}, r"at least one table \[process.<group>.channel.<name>\] is needed"),
        ({"channel": {"t": {"source": "plx"}}}, r"source = 'plx' has no table \[sensors.plx\]; known: plc"),
        ({"channel": {"t": {"source": "plc", "scale": 0.0}}}, "scale must not be 0"),
        ({"channel": {"t": {"source": "plc", "scale": float("nan")}}}, "must be a finite number"),
        ({"channel": {"t": {"source": "plc", "minimum": 2.0, "maximum": 1.0}}}, "minimum = 2.0 must be below maximum"),
        ({"channel": {"t": {"source": "plc"}}, "alarm": {"a": {"watch": "p", "above": 1.0}}}, "'p' is no channel"),
        ({"channel": {"t": {"source": "plc"}}, "alarm": {"a": {"watch": "t"}}}, "needs above or below, one of the two"),
        ({"channel": {"t": {"source": "plc"}}, "alarm": {"a": {}}}, "watches the risk, which needs a bundle"),
        (
            {"bundle": "x", "channel": {"t": {"source": "plc"}}, "alarm": {"a": {"above": 1.5}}},
            "above = 1.5: a risk lies in 0 to 1",
        ),
        (
            {"bundle": "x", "channel": {"t": {"source": "plc"}}, "alarm": {"a": {"priority": "urgent"}}},
            "Input should be 'low', 'medium', 'high' or 'critical'",
        ),
    ],
)
def test_a_wrong_process_group_is_refused(process: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        check({**SENSORS, "process": {"oven": process}})


def test_a_replayed_log_cannot_be_joined_with_a_live_source() -> None:
    sensors = {"plc": {"kind": "simulated"}, "log": {"kind": "csv", "path": "log.csv"}}
    channels = {"a": {"source": "plc"}, "b": {"source": "log"}}
    with pytest.raises(ConfigurationError, match="a replayed log has times of its own"):
        check({"sensors": sensors, "process": {"oven": {"channel": channels}}})


def test_a_group_with_a_bundle_has_an_alarm_on_its_risk() -> None:
    channels = {"t": {"source": "plc"}}
    settings = check({**SENSORS, "process": {"oven": {"bundle": "x.bundle", "channel": channels}}})
    assert list(settings.process["oven"].alarms()) == ["early_warning"]
    assert settings.process["oven"].bundle == Path("/etc/station/x.bundle")
    without = check({**SENSORS, "process": {"oven": {"channel": channels}}})
    assert not without.process["oven"].alarms()
