"""The systemd unit and the installation's scripts, as far as they can be looked at without a systemd that runs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from station.commands.exit_codes import ExitCode

FOLDER = Path(__file__).parents[1] / "systemd"
UNIT = FOLDER / "inspection-station.service"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
LARGEST_EXPOSURE = 15
"""Tenths."""


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def settings() -> dict[str, list[str]]:
    """The unit's keys; a key may stand there more than once."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Z]\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_the_unit_is_one_that_systemd_takes_without_a_word(tmp_path: Path) -> None:
    # The program is not installed here; any other that can be executed stands in for it.
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/sh", UNIT.read_text(), flags=re.MULTILINE))
    ended = analyze("verify", "--man=no", str(copy))
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


def test_the_unit_is_hardened_as_far_as_a_camera_service_can_go() -> None:
    ended = analyze("security", "--offline=true", f"--threshold={LARGEST_EXPOSURE}", "--no-pager", str(UNIT))
    assert ended.returncode == 0, ended.stdout


def test_what_would_break_the_station_is_left_out() -> None:
    keys = settings()
    assert "ProcSubset" not in keys, "XNNPACK does not load without /proc/cpuinfo"
    assert "PrivateDevices" not in keys, "cameras are devices"
    assert not any("resources" in one for one in keys["SystemCallFilter"]), "sched_setaffinity would fail"
    assert "BindsTo" not in keys, "a camera that is unplugged must not stop the station"


def test_a_wrong_configuration_is_not_tried_again() -> None:
    keys = settings()
    assert keys["Restart"] == ["on-failure"]
    assert keys["RestartPreventExitStatus"] == [str(ExitCode.CONFIGURATION.value)]


def test_the_unit_runs_what_the_script_installs() -> None:
    script = (FOLDER / "install.sh").read_text(encoding="utf-8")
    name, base = re.search(r"NAME=(\S+)", script), re.search(r"BASE=(\S+)/\$NAME", script)
    assert name is not None
    assert base is not None
    program, *arguments = settings()["ExecStart"][0].split()
    assert program == f"{base[1]}/{name[1]}/current/bin/station"
    assert arguments == ["run", "--config", f"/etc/{name[1]}/station.toml"]
    assert settings()["User"] == [name[1]]
    assert settings()["StateDirectory"] == settings()["ConfigurationDirectory"] == [name[1]]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_each_script_is_whole_and_stops_at_the_first_error(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    ended = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [[], ["--unknown"], ["a", "b"]])
def test_install_refuses_what_it_does_not_know(arguments: list[str]) -> None:
    ended = subprocess.run(
        ["bash", str(FOLDER / "install.sh"), *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: ")
