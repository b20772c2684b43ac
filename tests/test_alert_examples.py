"""What the README says that one can do with alerts, done: with a real broker, a real Modbus server, jq and node."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from modbus_server import ModbusServer
from mosquitto import Listener, Mosquitto, wait_for
from pymodbus.client import ModbusTcpClient
from test_docs import README

from station import wire
from station.alert_messages import Alert
from station.alerts import AlertBook, Instant
from station.messages import Outcome
from station.settings import from_document

SECTION = README.partition("### Alerts")[2].partition("\n### ")[0]
LAMP, MAIL = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
(COIL,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
(FLOW,) = re.findall(r"```json\n(.*?)```", SECTION, re.DOTALL)
SETTINGS = re.findall(r"```toml\n(.*?)```", SECTION, re.DOTALL)


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def raised_and_cleared() -> tuple[Alert, Alert]:
    settings = from_document({"camera": {"top": {"kind": "simulated"}}}, "test", Path("/"), {})
    book = AlertBook("line1", 1, settings.alert, settings.camera)
    at = Instant(datetime(2026, 1, 1, tzinfo=UTC), 0.0)
    told = [alert for outcome in [Outcome.NG] * 5 + [Outcome.OK] * 5 for alert in book.judged("top", outcome, at)]
    raised, cleared = told
    return raised, cleared


@contextmanager
def pipe(folder: Path, command: str, port: int) -> Iterator[None]:
    """Run a pipe of the README in a shell, with the programs in `folder` first on its path."""
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    text = command.replace("mosquitto_sub ", f"mosquitto_sub -p {port} ")
    process = subprocess.Popen(["bash", "-c", text], cwd=folder, env=environment, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def test_the_examples_of_settings_are_valid() -> None:
    for example in SETTINGS:
        cameras = "".join(f'[camera.{name}]\nkind = "simulated"\n' for name in ("top", "side"))
        assert from_document(tomllib.loads(cameras + example), "README.md", Path("/"), {}).alert["scrap"]


def test_the_lamp_at_a_plc_follows_what_stands(tmp_path: Path) -> None:
    need("mosquitto_sub", "jq")
    (tmp_path / "coil.py").write_text(COIL, encoding="utf-8")
    with (
        Mosquitto(tmp_path) as broker,
        ModbusServer() as plc,
        Listener(broker.port) as client,
        ModbusTcpClient("127.0.0.1", port=plc.port) as reader,
    ):
        command = LAMP.replace("192.0.2.20 502 7", f"127.0.0.1 {plc.port} 2").replace("python ", f"{sys.executable} ")

        def coil() -> bool:
            return bool(reader.read_coils(2, count=1).bits[0])

        def publish(priorities: list[str]) -> None:
            alerts = [{"priority": one} for one in priorities]
            client.publish(wire.health_topic("line1"), json.dumps({"alerts": alerts}).encode())

        assert coil()
        with pipe(tmp_path, command, broker.port):
            for priorities, expected in ((["low"], False), (["low", "high"], True), ([], False), (["critical"], True)):

                def shows(priorities: list[str] = priorities, expected: bool = expected) -> bool:
                    publish(priorities)
                    return coil() == expected

                wait_for(shows)


def test_an_email_is_sent_for_each_alert(tmp_path: Path) -> None:
    need("mosquitto_sub", "jq")
    mail = tmp_path / "mail"
    mail.write_text('#!/bin/sh\necho "$2|$(cat)" >> sent\n', encoding="utf-8")
    mail.chmod(0o755)
    sent = tmp_path / "sent"
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as client, pipe(tmp_path, MAIL, broker.port):
        first, second = (wire.outgoing_alert(alert) for alert in raised_and_cleared())

        def arrived() -> bool:
            # Until the subscription stands nothing arrives.
            client.publish(first.topic, first.payload)
            return sent.exists()

        wait_for(arrived)
        client.publish(second.topic, second.payload)
        wait_for(lambda: "cleared" in sent.read_text(encoding="utf-8"))
    lines = sent.read_text(encoding="utf-8").splitlines()
    line = "high raised: line1 top: 5 ng in a row (limit 5); look at the parts and at the machine before the camera"
    assert lines[0] == f"{line}|{line}"
    assert lines[-1].startswith("high cleared: line1 top: ok again; ")


def test_the_flow_has_the_form_that_node_red_imports() -> None:
    nodes = json.loads(FLOW)
    identifiers = {node["id"] for node in nodes}
    assert len(identifiers) == len(nodes)
    assert {node["type"] for node in nodes} == {"tab", "mqtt-broker", "mqtt in", "function", "mqtt out", "debug"}
    for node in nodes:
        assert {target for output in node.get("wires", []) for target in output} <= identifiers
        assert {node[key] for key in ("z",) if key in node} <= identifiers
        if node["type"].startswith("mqtt "):
            assert node["broker"] in identifiers
        if node["type"] == "function":
            assert len(node["wires"]) == node["outputs"]
    (source,) = (node for node in nodes if node["type"] == "mqtt in")
    assert source["topic"] == wire.alert_topic("+")


def test_the_function_of_the_flow_does_what_it_says(tmp_path: Path) -> None:
    need("node")
    (body,) = (node["func"] for node in json.loads(FLOW) if node["type"] == "function")
    alerts = [alert.model_dump(mode="json") for alert in raised_and_cleared()]
    program = (
        "const kept = {}; const context = {get: (key) => kept[key], set: (key, value) => { kept[key] = value; }};\n"
        f"const work = new Function('msg', 'context', {json.dumps(body)});\n"
        f"console.log(JSON.stringify({json.dumps(alerts)}.map((payload) => work({{payload}}, context))));\n"
    )
    (tmp_path / "flow.js").write_text(program, encoding="utf-8")
    ran = subprocess.run(["node", "flow.js"], cwd=tmp_path, capture_output=True, text=True, check=True)
    (lamp_on, said), (lamp_off, said_again) = json.loads(ran.stdout)
    assert (lamp_on, lamp_off) == (
        {"topic": "plant/lamp", "payload": True},
        {"topic": "plant/lamp", "payload": False},
    )
    assert said["topic"] == "high raised: line1 top: 5 ng in a row (limit 5)"
    assert said_again["topic"].startswith("high cleared: line1 top: ")
