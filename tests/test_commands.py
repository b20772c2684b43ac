"""The command line as a user meets it: child processes, exit codes, one line for each error, no traceback."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from mosquitto import Listener, Mosquitto
from test_station import has_verdicts, write_pictures

from station.__main__ import COMMANDS
from station.adapters.embedded_broker import free_port
from station.boards import Web
from station.commands.exit_codes import ExitCode
from station.linescan import FRAME_LINES
from station.settings import SHIPPED_BUNDLE

README = Path(__file__).parents[1] / "README.md"
FOLDER_CAMERA = '[camera.c]\nkind = "folder"\npath = "in"\n'


def station(*arguments: object, folder: Path, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "station", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(README.parent)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def configure(folder: Path, text: str) -> Path:
    path = folder / "station.toml"
    path.write_text("version = 1\n" + text, encoding="utf-8")
    return path


def test_help_names_every_command_and_every_exit_code(tmp_path: Path) -> None:
    shown = station("--help", folder=tmp_path).stdout
    for command in COMMANDS:
        assert re.search(rf"^    {command}\b", shown, re.MULTILINE)
    for code in ExitCode:
        assert re.search(rf"^  {code.value}\b", shown, re.MULTILINE)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_explains_its_options(command: str, tmp_path: Path) -> None:
    shown = station(command, "--help", folder=tmp_path)
    assert shown.returncode == 0
    assert COMMANDS[command].split()[0] in shown.stdout


def test_the_readme_names_every_command_and_exit_code() -> None:
    text = README.read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"| `station {command}` |" in text
    for code in ExitCode:
        assert f"| {code.value} |" in text


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FOLDER_CAMERA + "pattren = 1\n", "station.toml: camera.c.pattren = 1: unknown key"),
        ("[broker]\nport = 'x'\n" + FOLDER_CAMERA, "station.toml: broker.port = 'x': Input should be a valid integer"),
        ("[station]\ndata_dir = 'file/data'\n" + FOLDER_CAMERA, "station.toml: station.data_dir = "),
        ("[camera", "station.toml: is not TOML"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_78(command: str, text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = station(command, "--config", configure(tmp_path, text), folder=tmp_path)
    assert ended.returncode == ExitCode.CONFIGURATION
    lines = [line for line in ended.stderr.splitlines() if line.startswith(f"station {command}:")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Traceback" not in ended.stderr


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    ended = station("run", "--debug", "--config", "nowhere.toml", folder=tmp_path)
    assert ended.returncode != 0
    assert "Traceback" in ended.stderr


def test_check_says_what_is_wrong_with_distinct_exit_codes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 1)
    good = FOLDER_CAMERA + "[broker]\nembedded = true\nport = 0\n"
    ended = station("check", "--config", configure(tmp_path, good), folder=tmp_path)
    assert (ended.returncode, ended.stdout.count("ok    ")) == (0, 5), ended.stdout
    ended = station("check", "--config", configure(tmp_path, f"[model]\nbundle = 'no'\n{good}"), folder=tmp_path)
    assert ended.returncode == ExitCode.BUNDLE
    assert f"WRONG bundle {tmp_path / 'no'}" in ended.stdout
    ended = station("check", "--config", configure(tmp_path, good.replace('"in"', '"away"')), folder=tmp_path)
    assert ended.returncode == ExitCode.CAMERA
    ended = station(
        "check", "--config", configure(tmp_path, FOLDER_CAMERA + f"[broker]\nport = {free_port()}\n"), folder=tmp_path
    )
    assert ended.returncode == ExitCode.BROKER


def test_run_ends_in_order_on_sigterm_and_loses_nothing(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 5)
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        path = configure(tmp_path, f"[broker]\nport = {broker.port}\n{FOLDER_CAMERA}mode = 'loop'\nrate_fps = 20.0\n")
        process = subprocess.Popen(
            [sys.executable, "-m", "station", "run", "--config", str(path)],
            env={**os.environ, "PYTHONPATH": str(README.parent)},
            stderr=subprocess.PIPE,
            text=True,
        )
        listener.wait_until(has_verdicts(5))
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0
        received = listener.wait_until(
            lambda got: got[-1].topic.endswith("/status") and b'"offline"' in got[-1].payload
        )
    health = [json.loads(one.payload) for one in received if one.topic.endswith("/health")][-1]
    account = health["cameras"]["c"]["account"]
    assert account["captured"] == account["ok"] + account["ng"] + account["unknown"]
    assert account["captured"] == sum(one.topic.endswith("/verdict") for one in received)
    assert "Traceback" not in log


def test_demo_balances_and_its_last_line_is_for_machines(tmp_path: Path) -> None:
    ended = station("demo", "--seconds", 3, "--rate", 10, "--json", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    summary = lines[-1]
    assert summary["captured"] == 30 == summary["ok"] + summary["ng"] + summary["unknown"]
    assert (sum(summary["skipped"].values()), summary["received"], len(lines)) == (0, 30, 31)
    assert summary["recall"] is None or summary["recall"] >= 0.99
    assert summary["false_reject_rate"] <= 0.05
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"]
    assert list(tmp_path.iterdir()) == []


def test_demo_for_people_is_plain_when_piped(tmp_path: Path) -> None:
    ended = station("demo", "--seconds", 1, "--rate", 5, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout
    assert "Account   5 captured" in ended.stdout
    assert "balances" in ended.stdout


def test_inspect_judges_and_annotates(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 2)
    web = Web(4, defect_share=0.9)
    bad = next(
        first
        for first in range(0, 100 * FRAME_LINES, FRAME_LINES)
        if web.defects(first + 100, first + FRAME_LINES - 100)
    )
    cv2.imwrite(str(tmp_path / "in" / "bad.png"), web.render(bad, FRAME_LINES))
    ended = station("inspect", "in", "--out", "marked", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    outcomes = [line.split()[0] for line in ended.stdout.splitlines()]
    assert outcomes == ["ok", "ok", "ng"]
    marked = cv2.imread(str(tmp_path / "marked" / "bad.ng.png"))
    assert marked is not None
    assert marked.shape == (FRAME_LINES, 640, 3)
    assert sorted(path.name for path in (tmp_path / "marked").iterdir()) == ["000.ok.png", "001.ok.png", "bad.ng.png"]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    ended = station("inspect", "broken.png", "missing.png", "--json", folder=tmp_path)
    assert ended.returncode == ExitCode.PICTURE
    assert [json.loads(line)["outcome"] for line in ended.stdout.splitlines()] == ["unknown", "unknown"]
    ended = station("inspect", "in", "--bundle", "broken.png", folder=tmp_path)
    assert ended.returncode == ExitCode.BUNDLE
    assert "is not a whole zip file" in ended.stderr


def test_schema_prints_what_the_messages_are(tmp_path: Path) -> None:
    everything = json.loads(station("schema", folder=tmp_path).stdout)
    assert set(everything) >= {"verdict", "status", "state", "health", "gap", "settings", "manifest"}
    verdict = json.loads(station("schema", "verdict", folder=tmp_path).stdout)
    assert verdict == everything["verdict"]
    assert station("schema", "nothing", folder=tmp_path).returncode == ExitCode.USAGE


def test_init_writes_a_configuration_that_check_accepts(tmp_path: Path) -> None:
    assert station("init", folder=tmp_path).returncode == 0
    assert station("init", folder=tmp_path).returncode == ExitCode.CONFIGURATION
    ended = station("check", "--offline", folder=tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert str(SHIPPED_BUNDLE) in ended.stdout
