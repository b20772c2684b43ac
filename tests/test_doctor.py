"""`station doctor` and `station support-bundle`: what they find, what they say, and that no secret leaves."""

import json
import os
import tarfile
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_commands import configure, station
from test_station import eventually, folder_camera, running, write_pictures

from station.adapters.embedded_broker import free_port
from station.commands.exit_codes import ExitCode
from station.commands.support_bundle import MASK, scrub

EMBEDDED = "[broker]\nembedded = true\nport = 0\n"
FOLDER = '[camera.c]\nkind = "folder"\npath = "in"\n'


def test_a_good_station_is_looked_at_line_by_line(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 1)
    ended = station("doctor", "--config", configure(tmp_path, EMBEDDED + FOLDER), folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    whats = [line[6:].split(":")[0].split(" ")[0] for line in ended.stdout.splitlines()]
    for what in ("configuration", "data", "disk", "clock", "XNNPACK", "bundle", "camera", "broker"):
        assert what in whats
    assert "WRONG" not in ended.stdout


def test_a_wrong_configuration_does_not_hide_what_is_wrong_with_the_machine(tmp_path: Path) -> None:
    ended = station("doctor", "--config", configure(tmp_path, FOLDER + "a = 1\nb = 2\n"), folder=tmp_path)
    assert ended.returncode == ExitCode.CONFIGURATION
    assert ended.stdout.count("WRONG configuration: ") == 2
    assert "XNNPACK: runs the shipped model" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_each_thing_that_is_wrong_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x", encoding="utf-8")
    (tmp_path / "secret").chmod(0o644)
    text = (
        f'[broker]\nport = {free_port()}\nusername = "u"\npassword_file = "secret"\n'
        '[journal]\nmax_bytes = 9_000_000_000_000_000\n[camera.c]\nkind = "v4l2"\ndevice = "/dev/v4l/by-id/none"\n'
    )
    ended = station("doctor", "--config", configure(tmp_path, text), folder=tmp_path)
    assert ended.returncode == ExitCode.CAMERA
    assert f"note  secret {tmp_path / 'secret'}: can be read by everyone: chmod o-r" in ended.stdout
    assert "make room, or lower journal.max_bytes" in ended.stdout
    assert "WRONG camera c: there is no /dev/v4l/by-id/none; this computer has " in ended.stdout
    assert "WRONG broker: " in ended.stdout


def test_check_and_doctor_may_look_while_the_station_runs(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 1)
    document = folder_camera(tmp_path / "in", mode="loop", rate_fps=5.0)
    port = free_port()
    with running(tmp_path, {"broker": {"embedded": True, "port": port}, **document}) as inside:
        eventually(lambda: inside.health().cameras["c"].account.judged >= 2)
        text = f'[station]\ndata_dir = "data"\n[broker]\nembedded = true\nport = {port}\n{FOLDER}'
        path = configure(tmp_path, text)
        for command in ("check", "doctor"):
            ended = station(command, "--config", path, folder=tmp_path)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            assert "in use by the running station" in ended.stdout
            assert "broker: embedded in the running station" in ended.stdout


def test_what_root_looks_at_still_belongs_to_the_service(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 1)
    # Not below pytest's own folder, which lets no other user through.
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        data.mkdir()
        if os.geteuid() == 0:
            Path(place).chmod(0o711)
            os.chown(data, 12_345, 12_345)
        path = configure(tmp_path, f'[station]\ndata_dir = "{data}"\n{EMBEDDED}{FOLDER}')
        ended = station("check", "--offline", "--config", path, folder=tmp_path)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        found = data.stat()
        assert {(one.stat().st_uid, one.stat().st_gid) for one in data.iterdir()} == {(found.st_uid, found.st_gid)}


# The support bundle


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {}
        for info in archive:
            stream = archive.extractfile(info)
            assert stream is not None
            found[Path(info.name).name] = stream.read()
    return found


@pytest.mark.parametrize("kept", ["password", "password_file"])
def test_no_secret_is_in_the_bundle(kept: str, tmp_path: Path) -> None:
    password, camera = 'p"ä w/öörd', "cam%21secret"
    (tmp_path / "pw").write_text(password + "\n", encoding="utf-8")
    value = json.dumps(password, ensure_ascii=False) if kept == "password" else '"pw"'
    url = f"rtsp://viewer:{camera}@192.0.2.1/stream?token=tok-4711"
    text = (
        f'[broker]\nport = {free_port()}\nusername = "u"\n{kept} = {value}\n'
        f'[camera.c]\nkind = "stream"\nurl = "{url}"\n'
        f'[camera.c.part_id]\nkind = "mqtt"\ntopic = "parts"\n'
        f'[camera.c.part_id.broker]\nport = {free_port()}\nusername = "p"\npassword = "part-s3cret"\n'
        '[sensors.s]\nkind = "mqtt"\npoints = { T = { topic = "t" } }\n'
        f'[sensors.s.broker]\nport = {free_port()}\nusername = "s"\npassword = "sensor-s3cret"\n'
    )
    log = tmp_path / "station.log"
    log.write_text(
        f"a driver says {url} and cam!secret\nsomeone says {password} and {quote(password)} "
        f"and {json.dumps(password)} and part-s3cret, sensor-s3cret, tok-4711 alone\nthe end\n",
        encoding="utf-8",
    )
    ended = station("support-bundle", "--config", configure(tmp_path, text), "--log", log, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    bundle = tmp_path / "support-bundle.tar.gz"
    assert bundle.stat().st_mode & 0o077 == 0
    found = members(bundle)
    assert set(found) == {
        *("versions.json", "configuration.json", "findings.txt", "journal.json", "retained.json", "log.txt"),
    }
    everything = b"".join(found.values())
    for secret in (password, camera, "cam!secret", "tok-4711", "öörd", "part-s3cret", "sensor-s3cret"):
        for form in (secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]):
            assert form.encode() not in everything
    assert b"the end" in found["log.txt"]
    assert json.loads(found["configuration.json"])["camera"]["c"]["kind"] == "stream"
    assert "error" in json.loads(found["retained.json"])
    assert json.loads(found["versions.json"])["station"]


def test_a_running_station_is_in_the_bundle_with_its_health_and_its_journal(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 1)
    document = folder_camera(tmp_path / "in", mode="loop", rate_fps=5.0)
    port = free_port()
    with running(tmp_path, {"broker": {"embedded": True, "port": port}, **document}) as inside:
        eventually(lambda: inside.health().cameras["c"].account.judged >= 2)
        text = f'[station]\nname = "s"\ndata_dir = "data"\n[broker]\nembedded = true\nport = {port}\n{FOLDER}'
        log = tmp_path / "log"
        log.write_text("".join(f"line {n}\n" for n in range(10)), encoding="utf-8")
        ended = station(
            *("support-bundle", "--config", configure(tmp_path, text), "--out", "b.tgz", "--log", log, "--lines", 2),
            folder=tmp_path,
        )
    assert ended.returncode == 0, ended.stderr
    found = members(tmp_path / "b.tgz")
    retained = json.loads(found["retained.json"])
    assert {"inspection/s/health", "inspection/s/status", "inspection/s/camera/c/state"} <= set(retained)
    assert sum(json.loads(found["journal.json"])["by_outcome"].values()) >= 2
    assert found["log.txt"].decode().split("\n") == ["line 8", "line 9"]


def test_without_a_configuration_the_log_stays_at_home(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("password = hunter2", encoding="utf-8")
    path = configure(tmp_path, '[broker]\nusername = "u"\npassword = "hunter2"\nwrong = 1\n' + FOLDER)
    ended = station("support-bundle", "--config", path, "--log", log, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = members(tmp_path / "support-bundle.tar.gz")
    assert b"broker.wrong = ********: unknown key" in found["configuration-errors.txt"]
    assert b"hunter2" not in b"".join(found.values())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "no/where.tgz"], "--out: no/where.tgz: cannot be written"),
        (["--log", "none"], "--log: none: cannot be read"),
        (["--lines", "0"], "--lines 0: allowed are numbers from 1"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    path = configure(tmp_path, EMBEDDED + FOLDER)
    ended = station("support-bundle", "--config", path, *arguments, folder=tmp_path)
    assert ended.returncode == ExitCode.CONFIGURATION
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="*"), min_size=1, max_size=12)


@given(plain, st.sets(plain, max_size=4), plain)
def test_scrub_leaves_no_form_of_a_secret(before: str, secrets: set[str], after: str) -> None:
    forms = [form for one in secrets for form in (one, quote(one, safe=""), json.dumps(one)[1:-1])]
    content = (before + after.join(forms) + after).encode()
    scrubbed = scrub(content, secrets)
    assert all(form.encode() not in scrubbed for form in forms)
    assert secrets or scrubbed == content
    assert MASK in scrubbed or not secrets
