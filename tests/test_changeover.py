"""Changeover of the whole station: real cameras, bundles, journal and broker."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from modbus_server import PLC, ModbusServer
from mosquitto import Listener, Mosquitto, Received
from pymodbus.client import ModbusTcpClient
from requester import Requester
from test_station import eventually, has_verdicts, running, statuses, verdicts

from station.adapters.control_folder import ask
from station.adapters.embedded_broker import free_port
from station.adapters.litert_model import LitertModel
from station.adapters.product_file import FILE
from station.commands.exit_codes import ExitCode
from station.commands.looks import orders
from station.messages import (
    ChangeoverResult,
    Origin,
    Outcome,
    Pixels,
    Reason,
    Response,
    Scores,
    Verb,
    Verdict,
)
from station.settings import SHIPPED_BUNDLE, from_document
from station.wire import decode

CAMERA = {"kind": "simulated", "rate_fps": 20.0}


def document(port: int, products: dict[str, Any], cameras: tuple[str, ...] = ("c",)) -> dict[str, Any]:
    return {
        "broker": {"port": port},
        "commands": {"allow": ["change-product", "set-threshold"]},
        "camera": dict.fromkeys(cameras, CAMERA),
        "product": products,
    }


def under(product: str) -> Any:
    """Whether the newest verdict was made under this product."""
    return lambda got: bool(found := verdicts(got)) and found[-1].product == product


def faults(received: list[Received]) -> dict[str, str]:
    newest = statuses(received)[-1:]
    return {one.what: one.reason for status in newest for one in status.faults}


def judged(received: list[Received], product: str) -> list[Verdict]:
    """Verdicts under a product on what was seen: neither between two products nor for want of a free buffer."""
    unseen = {Reason.CHANGEOVER, Reason.OVERLOAD}
    return [one for one in verdicts(received) if one.product == product and not unseen & {*one.reasons}]


def test_a_changeover_is_on_record_named_once_and_survives_a_restart(tmp_path: Path) -> None:
    other = tmp_path / "other.bundle"
    shutil.copy(SHIPPED_BUNDLE, other)
    products = {
        "bolt": {"number": 1},
        "nut": {"number": 2, "bundle": str(other), "threshold": 0.9, "cameras": ["c", "d"]},
    }
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        wanted = document(broker.port, products, ("c", "d"))
        with running(tmp_path, wanted), Requester(broker.port) as requester:
            listener.wait_until(under("bolt"))
            assert statuses(listener.received)[-1].product == "bolt"
            requester.ask("set-threshold", camera="c", threshold=0.8)
            answer = requester.ask("change-product", number=2, by="shift 2")
            assert isinstance(answer.result, ChangeoverResult)
            assert (answer.result.product, answer.result.former, answer.origin) == ("nut", "bolt", Origin.MQTT)
            received = listener.wait_until(lambda got: {one.camera for one in judged(got, "nut")} == {"c", "d"})
            for camera in ("c", "d"):
                own = [one for one in verdicts(received) if one.camera == camera]
                told = [one for one in own if one.changeover is not None]
                assert len(told) == 1
                assert told[0] == next(one for one in own if one.product == "nut")
                assert told[0].changeover is not None
                assert (told[0].changeover.former, told[0].changeover.by) == ("bolt", "shift 2")
                assert told[0].changeover.command == answer.id
                assert [one.product for one in own] == sorted(one.product or "" for one in own)
                between = [one for one in own if Reason.CHANGEOVER in one.reasons]
                assert all((one.outcome, one.product) == (Outcome.UNKNOWN, "bolt") for one in between)
            # A threshold that was set for the former product has ended with it.
            last = [one for one in judged(received, "nut") if one.camera == "c"][-1]
            assert last.override == ()
            again = requester.ask("change-product", product="nut")
            assert isinstance(again.result, ChangeoverResult)
            assert again.result.former == "nut"
            assert statuses(listener.received)[-1].product == "nut"
        count = len(verdicts(listener.received))
        with running(tmp_path, wanted):
            received = listener.wait_until(has_verdicts(count + 2))
        later = verdicts(received)[count:]
        assert {(one.product, one.changeover) for one in later} == {("nut", None)}


def test_a_model_is_ready_for_the_cameras_pictures_before_it_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the runtime does at the first picture of another size is not done by the camera's thread."""
    runs: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
    infer = LitertModel.infer

    def noted(model: LitertModel, pixels: Pixels, reference: Pixels | None = None) -> Scores:
        runs.setdefault(id(model), []).append((threading.current_thread().name, pixels.shape))
        return infer(model, pixels, reference)

    def first_of_the_size() -> list[str]:
        return [next(name for name, shape in seen if shape == (640, 640)) for seen in runs.values()]

    monkeypatch.setattr(LitertModel, "infer", noted)
    wanted = {**document(0, {}), "broker": {"port": free_port()}, "commands": {}}
    del wanted["product"]
    with running(tmp_path, wanted) as station:

        def judged() -> int:
            return station.health().cameras["c"].account.judged

        eventually(lambda: judged() >= 2)
        assert first_of_the_size() == ["camera-c"]
        answer = ask(tmp_path / "data", Verb.RELOAD_BUNDLE, {}, 60.0)
        assert answer.accepted, answer.reason
        seen = judged()
        eventually(lambda: judged() >= seen + 2)
    assert first_of_the_size() == ["camera-c", "commands"]


def test_what_cannot_be_had_is_refused_and_the_former_product_goes_on(tmp_path: Path) -> None:
    products = {
        "bolt": {"number": 1},
        "gone": {"bundle": "gone.bundle"},
        "odd": {"thresholds": {"dent": 0.5}},
    }
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        running(tmp_path, document(broker.port, products)),
        Requester(broker.port) as requester,
    ):
        listener.wait_until(lambda got: {"product gone", "product odd"} <= faults(got).keys())
        refused = requester.ask("change-product", product="gone")
        assert "the changeover to gone failed and bolt goes on: bundle" in str(refused.reason)
        assert "gone.bundle: cannot be read: No such file or directory" in str(refused.reason)
        listener.wait_until(lambda got: faults(got).get("product") == refused.reason)
        refused = requester.ask("change-product", product="odd")
        assert "product.odd.thresholds.dent: bundle boards 1 has no class 'dent'" in str(refused.reason)
        refused = requester.ask("change-product", product="screw")
        assert refused.reason == "there is no product screw; there are bolt, gone, odd"
        refused = requester.ask("change-product", number=7)
        assert refused.reason == "no product has the number 7; there are 1 = bolt"
        assert "give either product or number" in str(requester.ask("change-product").reason)
        # What is mended is loaded by itself.
        shutil.copy(SHIPPED_BUNDLE, tmp_path / "new")
        (tmp_path / "new").rename(tmp_path / "gone.bundle")
        listener.wait_until(lambda got: "product gone" not in faults(got))
        assert requester.ask("change-product", product="gone").accepted
        listener.wait_until(lambda got: under("gone")(got) and "product" not in faults(got))
    assert not [one for one in verdicts(listener.received) if one.product == "odd"]


def test_regions_and_rules_decide_what_counts(tmp_path: Path) -> None:
    """The same web, once as it is, once with one half ignored and small defects let pass."""
    everywhere = {"x_px": 0, "y_px": 0, "width_px": 640, "height_px": 640}
    products = {
        "strict": {},
        "blind": {"ignore": {"all": everywhere}},
        "lax": {"allow": {"any": {"max_count": 100}}},
        "wide": {"inspect": {"all": {**everywhere, "width_px": 700}}},
    }
    camera = {"kind": "simulated", "rate_fps": 20.0, "defect_share": 0.9, "seed": 3}
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        wanted = {**document(broker.port, products), "camera": {"c": camera}}
        with running(tmp_path, wanted), Requester(broker.port) as requester:
            listener.wait_until(lambda got: any(one.outcome is Outcome.NG for one in judged(got, "strict")))
            for product in ("blind", "lax", "wide"):
                assert requester.ask("change-product", product=product).accepted
                listener.wait_until(lambda got, product=product: len(judged(got, product)) >= 12)  # type: ignore[misc]
    blind, lax, wide = (judged(listener.received, product) for product in ("blind", "lax", "wide"))
    assert {one.outcome for one in blind} == {Outcome.OK}
    assert {one.score for one in blind} == {0.0}
    assert {one.outcome for one in lax} == {Outcome.OK}
    assert any(one.allowed and not one.defects for one in lax)
    assert {one.reasons for one in wide} == {(Reason.WRONG_SIZE,)}


def station(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "station", "product", *arguments, "--config", "station.toml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_line_changes_over_a_running_station_or_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "station.toml").write_text(
        '[station]\nname = "s"\ndata_dir = "data"\n[camera.c]\nkind = "simulated"\nrate_fps = 20.0\n'
        "[product.bolt]\nnumber = 1\n[product.nut]\nnumber = 2\n",
        encoding="utf-8",
    )
    shown = station(tmp_path, "change", "2")
    assert (shown.returncode, shown.stdout.endswith("its next start begins with nut\n")) == (0, True), shown.stderr
    assert json.loads((tmp_path / "data" / FILE).read_bytes())["product"] == "nut"
    assert station(tmp_path, "list").stdout == "  bolt  1\n* nut   2\n"
    wrong = station(tmp_path, "change", "screw")
    assert (wrong.returncode, "there are bolt (1), nut (2)" in wrong.stderr) == (78, True)
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        products = {"bolt": {"number": 1}, "nut": {"number": 2}}
        with running(tmp_path, document(broker.port, products)):
            listener.wait_until(under("nut"))
            shown = station(tmp_path, "change", "bolt")
            assert shown.stdout.startswith("bolt runs in place of nut, after "), shown.stderr
            listener.wait_until(under("bolt"))


@pytest.mark.parametrize("content", [b'{"product": "screw"}', b"{", b""])
def test_a_note_that_names_no_product_is_a_fault_and_not_a_guess_in_silence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE).write_bytes(content)
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        running(tmp_path, document(broker.port, {"bolt": {}, "nut": {}})),
        Requester(broker.port) as requester,
    ):
        listener.wait_until(under("bolt"))
        (fault,) = (one for one in statuses(listener.received)[-1].faults if one.what == "product")
        assert "bolt runs" in fault.reason
        assert requester.ask("change-product", product="nut").accepted
        eventually(lambda: "product" not in [one.what for one in statuses(listener.received)[-1].faults])


def responses(received: list[Received]) -> list[Response]:
    return [decode(Response, one.payload) for one in received if "/response/" in one.topic]


NUMBERED = {"bolt": {"number": 1}, "nut": {"number": 2}, "7": {"number": 9}}


def test_a_topic_of_the_plant_calls_for_a_product_by_name_or_number(tmp_path: Path) -> None:
    by_topic = {"changeover": {"mqtt": {"topic": "plant/order", "path": "job.product"}}, "commands": {}}
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        running(tmp_path, {**document(broker.port, NUMBERED), **by_topic}),
    ):

        def order(text: str) -> None:
            listener.publish("plant/order", text.encode())

        def nut_runs() -> bool:
            # Until the subscription stands nothing comes.
            order('{"job": {"product": "nut"}}')
            return bool(under("nut")(listener.received))

        eventually(nut_runs)
        order('{"job": {"product": 1}}')
        listener.wait_until(under("bolt"))
        order('{"job": {"product": "7"}}')
        received = listener.wait_until(under("7"))
        told = [one.changeover for one in verdicts(received) if one.changeover is not None][-1]
        assert (told.former, told.by) == ("bolt", "topic plant/order")
        assert {one.origin for one in responses(received)} == {Origin.PLANT}
        order("nut")
        listener.wait_until(lambda got: "the message is not JSON: 'nut'" in faults(got).get("orders mqtt", ""))
        order('{"job": {"product": "screw"}}')
        listener.wait_until(lambda got: "there is no product screw" in faults(got).get("orders mqtt", ""))
        order('{"job": {"product": "nut"}}')
        listener.wait_until(lambda got: under("nut")(got) and "orders mqtt" not in faults(got))


def test_a_register_calls_for_a_product_by_number(tmp_path: Path) -> None:
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        ModbusServer() as plc,
        ModbusTcpClient("127.0.0.1", port=plc.port) as program,
    ):
        assert not program.write_registers(0, [2], device_id=PLC).isError()
        modbus = {
            "kind": "modbus_tcp",
            "host": "127.0.0.1",
            "port": plc.port,
            "unit_id": PLC,
            "poll_s": 0.05,
            "reconnect_max_s": 0.5,
            "points": {"product": {"address": 0}},
        }
        with running(tmp_path, {**document(broker.port, NUMBERED), "changeover": {"modbus": modbus}}):
            listener.wait_until(under("nut"))
            program.write_registers(0, [3], device_id=PLC)
            listener.wait_until(lambda got: "no product has the number 3" in faults(got).get("orders modbus", ""))
            program.write_registers(0, [1], device_id=PLC)
            received = listener.wait_until(lambda got: under("bolt")(got) and "orders modbus" not in faults(got))
            told = [one.changeover for one in verdicts(received) if one.changeover is not None][-1]
            assert told.by == f"register 127.0.0.1:{plc.port} holding 0"
            # One order each time that the register changes, however often it is read.
            assert [one.accepted for one in responses(received)] == [True, False, True]
            plc.kill()
            listener.wait_until(lambda got: "orders modbus" in faults(got))
            assert verdicts(listener.received)[-1].product == "bolt"


def test_check_reaches_what_may_call_for_a_product(tmp_path: Path) -> None:
    def findings(port: int, embedded: bool = False, **changeover: Any) -> list[tuple[str, ExitCode]]:
        broker = {"embedded": True} if embedded else {"port": port}
        wanted = {**document(port, NUMBERED), "broker": broker, "changeover": changeover}
        found = orders(from_document(wanted, "station.toml", tmp_path, {}), running=False)
        return [(one.line, one.code) for one in found]

    def register(port: int, address: int) -> dict[str, Any]:
        points = {"product": {"address": address}}
        return {"kind": "modbus_tcp", "host": "127.0.0.1", "port": port, "unit_id": PLC, "points": points}

    topic = {"topic": "plant/order"}
    with Mosquitto(tmp_path) as broker, ModbusServer() as plc, ModbusTcpClient("127.0.0.1", port=plc.port) as program:
        assert not program.write_registers(0, [2, 3], device_id=PLC).isError()
        reached = ("ok    orders mqtt: topic plant/order: reached, waits for orders", ExitCode.OK)
        by = f"orders modbus: register 127.0.0.1:{plc.port} holding"
        called = (f"ok    {by} 0: calls for nut", ExitCode.OK)
        assert findings(broker.port, mqtt=topic, modbus=register(plc.port, 0)) == [reached, called]
        ((line, code),) = findings(broker.port, modbus=register(plc.port, 1))
        assert (line.partition(" calls")[0], code) == (f"WRONG {by} 1:", ExitCode.SENSORS)
        assert "calls for '3', which is no product; there are 1 = bolt, 2 = nut, 9 = 7" in line
        ((line, code),) = findings(broker.port, modbus=register(plc.port, 40))
        assert (code, "illegal data address" in line) == (ExitCode.SENSORS, True)
        ((line, code),) = findings(0, embedded=True, mqtt=topic)
        assert (code, "embedded broker, which runs only within the station" in line) == (ExitCode.OK, True)
        plc.kill()
        ((line, code),) = findings(broker.port, modbus=register(plc.port, 0))
        assert (code, line.startswith(f"WRONG {by} 0: ")) == (ExitCode.SENSORS, True)
    ((line, code),) = findings(free_port(), mqtt=topic)
    assert (code, "Connection refused" in line) == (ExitCode.SENSORS, True)
