"""The README names every setting, topic and reason that the code knows."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from station import wire
from station.alert_messages import AlertKind
from station.alert_settings import AlertSettings
from station.messages import PartIdState, Reason, SkipReason, Verb
from station.part_id_settings import BasePartId, PartIdSettings
from station.process_settings import AlarmSettings, ChannelSettings, ProcessSettings
from station.product_settings import DefectRule, ProductSettings
from station.reject_settings import BaseReject
from station.requests import REQUESTS
from station.section import Section
from station.sensor_settings import BaseSensors, SensorSettings
from station.settings import BaseCamera, CameraSettings, Settings, from_document

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
KINDS: tuple[type[BaseCamera], ...] = get_args(get_args(CameraSettings)[0])
SOURCES: tuple[type[BaseSensors], ...] = get_args(get_args(SensorSettings)[0])


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a table, with its path."""
    for name, field in section.model_fields.items():
        inner = [one for one in (field.annotation, *get_args(field.annotation)) if _is_section(one)]
        if name in ("camera", "sensors", "process", "channel", "alarm", "alert", "reject", "product", "modbus"):
            continue
        if inner:
            yield from keys(inner[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


@pytest.mark.parametrize("key", sorted(key for key in keys(Settings) if ".mqtt.broker." not in key))
def test_the_readme_explains_each_setting(key: str) -> None:
    assert f"| `{key}` |" in README


@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_explains_each_key_of_a_camera(kind: type[BaseCamera]) -> None:
    for name in keys(kind):
        if name in keys(BaseCamera):
            assert f"| `{name}` |" in README, name
        elif name != "kind":
            assert f"`{name}`" in README, name


@pytest.mark.parametrize("kind", SOURCES)
def test_the_readme_explains_each_key_of_a_source(kind: type[BaseSensors]) -> None:
    for name in keys(kind):
        if name in keys(BaseSensors):
            assert f"| `{name}` |" in README, name
        elif name != "kind":
            assert f"`{name.removeprefix('points.')}`" in README, name


@pytest.mark.parametrize("table", [ProcessSettings, ChannelSettings, AlarmSettings])
def test_the_readme_explains_each_key_of_a_process_group(table: type[Section]) -> None:
    for name in keys(table):
        assert f"| `{name}` |" in README, name


@pytest.mark.parametrize("table", get_args(get_args(AlertSettings)[0]))
def test_the_readme_explains_each_key_of_an_alert(table: type[Section]) -> None:
    for name in keys(table):
        assert name == "kind" or f"| `{name}` |" in README, name


@pytest.mark.parametrize("name", sorted(keys(BaseReject)))
def test_the_readme_explains_each_key_of_a_reject_output(name: str) -> None:
    assert f"| `{name}` |" in README


def test_the_example_of_reject_outputs_is_valid() -> None:
    (example,) = re.findall(r"```toml\n(\[reject\..*?)```", README, re.DOTALL)
    document = tomllib.loads('[camera.line]\nkind = "simulated"\n' + example)
    assert set(from_document(document, "README.md", Path("/"), {}).reject) == {"gate", "far"}


@pytest.mark.parametrize("kind", AlertKind)
def test_the_readme_explains_each_kind_of_alert(kind: AlertKind) -> None:
    assert f"| `{kind}` |" in README


@pytest.mark.parametrize("name", [*ProductSettings.model_fields, *(f"allow.{key}" for key in DefectRule.model_fields)])
def test_the_readme_explains_each_key_of_a_product(name: str) -> None:
    assert f"| `{name}` |" in README.partition("### Products")[2].partition("\n### ")[0]


def test_the_example_of_products_is_valid() -> None:
    (example,) = re.findall(r"```toml\n(\[product\..*?)```", README, re.DOTALL)
    document = tomllib.loads('[camera.top]\nkind = "v4l2"\ncontrols.exposure = 120\n' + example)
    assert from_document(document, "README.md", Path("/"), {}).product


@pytest.mark.parametrize("reason", Reason)
def test_the_readme_explains_each_reason(reason: Reason) -> None:
    assert reason is Reason.DEFECT or f"`{reason.value}`" in README


@pytest.mark.parametrize("reason", SkipReason)
def test_the_readme_explains_each_reason_for_skipping(reason: SkipReason) -> None:
    assert f"`{reason.value}`" in README


def test_the_readme_names_each_topic() -> None:
    for topic in (
        wire.status_topic("<station>"),
        wire.verdict_topic("<station>", "<camera>"),
        wire.camera_state_topic("<station>", "<camera>"),
        wire.health_topic("<station>"),
        wire.gap_topic("<station>"),
        wire.alert_topic("<station>"),
        wire.risk_topic("<station>", "<group>"),
        wire.alarm_topic("<station>", "<group>", "<alarm>"),
        wire.request_topic("<station>", "<verb>"),
        wire.response_topic("<station>", "<verb>"),
    ):
        assert f"| `{topic}` |" in README


@pytest.mark.parametrize("verb", Verb)
def test_the_readme_explains_each_command_with_its_keys(verb: Verb) -> None:
    (line,) = (one for one in README.splitlines() if one.startswith("|") and f"`{verb}`" in one.split("|")[1])
    for key in REQUESTS[verb].model_fields:
        assert key in ("transaction", "valid_until") or f"`{key}`" in line, key


PART_IDS: tuple[type[BasePartId], ...] = get_args(get_args(PartIdSettings)[0])


@pytest.mark.parametrize("kind", PART_IDS)
def test_the_readme_explains_each_key_of_part_ids(kind: type[BasePartId]) -> None:
    for name in keys(kind):
        known = name.partition(".")[0] in ("region", "broker") or name in {**BaseSensors.model_fields, "kind": None}
        assert known or f"`{name}`" in README, name
    assert f"`{get_args(kind.model_fields['kind'].annotation)[0]}`" in README


@pytest.mark.parametrize("state", PartIdState)
def test_the_readme_explains_each_state_of_a_part_id(state: PartIdState) -> None:
    assert f"| `{state}` |" in README


def test_the_examples_of_part_ids_are_valid() -> None:
    examples = re.findall(r"```toml\n(.*?)```", README.partition("### Part ids")[2].partition("\n### ")[0], re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        lines = "".join(f'[camera.line{number}]\nkind = "simulated"\n' for number in (1, 2, 3))
        document = tomllib.loads((lines if "[camera.line4]" not in example else "") + example)
        assert any(camera.part_id for camera in from_document(document, "README.md", Path("/"), {}).camera.values())


SENSOR_EXAMPLES = re.findall(
    r"```toml\n(\[sensors\..*?)```", README.partition("### Connect sensors")[2].partition("\n### ")[0], re.DOTALL
)


@pytest.mark.parametrize("example", SENSOR_EXAMPLES)
def test_the_examples_of_sources_are_valid(example: str) -> None:
    document = tomllib.loads('[camera.line]\nkind = "simulated"\n' + example)
    assert from_document(document, "README.md", Path("/"), {}).sensors


def test_each_kind_of_source_but_the_simulated_one_has_an_example() -> None:
    told = "".join(SENSOR_EXAMPLES)
    for kind in ("modbus_tcp", "modbus_rtu", "opcua", "mqtt", "csv"):
        assert f'"{kind}"' in told
