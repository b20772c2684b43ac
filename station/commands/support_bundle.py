"""`station support-bundle`: what someone far away needs to see, in one file, with every secret removed.

The configuration is written from the checked settings, whose secrets mask themselves, never from the file's own text.
Whatever else goes in (the log, retained messages) is searched for every secret that the settings know, in plain, URL
and JSON form.
"""

import argparse
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pydantic import BaseModel, SecretStr

from station import __version__
from station.adapters.mqtt_subscriber import Subscriber
from station.adapters.sqlite_journal import stats
from station.broker_settings import Login
from station.commands import doctor, looks
from station.commands.assembly import JOURNAL_FILE
from station.commands.exit_codes import ExitCode
from station.commands.looks import Finding
from station.errors import ConfigurationError, ProtocolError, StorageError
from station.settings import Settings, load

UNIT = "inspection-station.service"
SHORTEST_SECRET = 6
"""Of a value in an address's query; shorter ones, such as a channel's number, would mask half of the text."""
MASK = b"********"
RETAINED_WITHIN_S = 2.0
"""The broker sends what it retains right after the subscription."""
LOG_WITHIN_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--config", type=Path, default=Path("station.toml"), help="configuration file")
    parser.add_argument("--out", type=Path, default=Path("support-bundle.tar.gz"), help="file to write")
    parser.add_argument("--log", type=Path, help="a log file, where the station does not log to systemd's journal")
    parser.add_argument("--lines", type=int, default=5000, help="last lines of the log to take")


def run(options: argparse.Namespace) -> ExitCode:
    """Write the file; what cannot be found out is said inside it.

    Raises:
        ConfigurationError: the file cannot be written, or the log file cannot be read.
    """
    if options.lines < 1:
        raise ConfigurationError(f"--lines {options.lines}: allowed are numbers from 1")
    members = {"versions.json": _json(_versions()), "log.txt": _log(options.log, options.lines)}
    secrets: set[str] = set()
    try:
        settings = load(options.config, os.environ)
    except ConfigurationError as exc:
        # What stands under a misspelled key may be a secret.
        members["configuration-errors.txt"] = re.sub(r" = .*(?=: unknown key)", f" = {MASK.decode()}", str(exc))
        members["findings.txt"] = _lines(doctor.machine())
        # The masked lines above are all there is; without settings nobody knows what in the log is a secret.
        members["log.txt"] = "left out: the configuration cannot be read, so its secrets are not known\n"
    else:
        secrets = known_secrets(settings)
        members["configuration.json"] = settings.model_dump_json(indent=2)
        members["findings.txt"] = _lines(_findings(settings))
        members["retained.json"] = _json(_retained(settings))
        members["journal.json"] = _json(_journal(settings.station.data_dir / JOURNAL_FILE))
    content = {name: scrub(text.encode("utf-8", errors="replace"), secrets) for name, text in members.items()}
    try:
        _write(options.out, content)
    except OSError as exc:
        raise ConfigurationError(f"--out: {options.out}: cannot be written: {exc.strerror}") from exc
    print(f"wrote {options.out}: {', '.join(content)}")
    return ExitCode.OK


def known_secrets(settings: Settings) -> set[str]:
    """Every secret that the settings hold or lead to: of each table with a login, and of each address with one."""
    return set(_secrets_in(settings)) - {""}


def _secrets_in(value: object) -> Iterator[str]:
    match value:
        case SecretStr():
            text = value.get_secret_value()
            yield text
            with suppress(ValueError):
                parts = urlsplit(text)
                yield from (parts.password or "", unquote(parts.password or ""), parts.query)
                yield from (given for _, given in parse_qsl(parts.query) if len(given) >= SHORTEST_SECRET)
        case BaseModel():
            if isinstance(value, Login):
                # What we may not read is not in anything that we collect: the station itself never logs it.
                with suppress(ConfigurationError):
                    yield value.read_password(os.environ) or ""
            for name in type(value).model_fields:
                yield from _secrets_in(getattr(value, name))
        case Mapping():
            for one in value.values():
                yield from _secrets_in(one)
        case tuple() | list():
            for one in value:
                yield from _secrets_in(one)


def scrub(content: bytes, secrets: Iterable[str]) -> bytes:
    """Replace every secret, longest first, in plain, URL-quoted and JSON form."""
    forms: set[bytes] = set()
    for secret in secrets:
        in_json = (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
        written = (secret, quote(secret), quote(secret, safe=""), *in_json)
        forms.update(form.encode("utf-8", errors="replace") for form in written)
    for form in sorted(forms, key=len, reverse=True):
        content = content.replace(form, MASK)
    return content


def _versions() -> dict[str, object]:
    return {
        "station": __version__,
        "python": sys.version,
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {
            distribution.metadata["Name"]: distribution.version for distribution in importlib.metadata.distributions()
        },
    }


def _findings(settings: Settings) -> Iterable[Finding]:
    """What can be looked at beside a running station."""
    try:
        yield looks.data_folder(settings)[0]
        yield doctor.disk(settings)
    except ConfigurationError as exc:
        yield Finding("data folder", str(exc), ExitCode.CONFIGURATION)
    yield from doctor.machine()
    yield from looks.bundles(settings)


def _retained(settings: Settings) -> dict[str, object]:
    """Status, health and states as the broker keeps them."""
    broker = settings.broker
    found: dict[str, object] = {}
    try:
        with Subscriber(
            "127.0.0.1" if broker.embedded else broker.host,
            broker.effective_port,
            f"inspection/{settings.station.name}/#",
            username=broker.username,
            password=broker.read_password(os.environ),
            tls=broker.tls,
        ) as subscriber:
            until_s = time.monotonic() + RETAINED_WITHIN_S
            while (left_s := until_s - time.monotonic()) > 0:
                message = subscriber.receive(left_s)
                if message is not None and message.retained:
                    found[message.topic] = json.loads(message.payload)
    except (ProtocolError, ConfigurationError, ValueError) as exc:
        found["error"] = str(exc)
    return found


def _journal(path: Path) -> dict[str, object]:
    try:
        return asdict(stats(path))
    except StorageError as exc:
        return {"error": str(exc)}


def _log(file: Path | None, lines: int) -> str:
    if file is not None:
        try:
            return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError as exc:
            raise ConfigurationError(f"--log: {file}: cannot be read: {exc.strerror}") from exc
    program = shutil.which("journalctl")
    if program is None:
        return "journalctl is not installed; give the log with --log\n"
    ended = subprocess.run(
        [program, "--unit", UNIT, "--lines", str(lines), "--no-pager", "--output", "short-iso-precise"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LOG_WITHIN_S,
        check=False,
    )
    return ended.stdout + ended.stderr


def _lines(findings: Iterable[Finding]) -> str:
    return "".join(f"{finding.line}\n" for finding in findings)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _write(path: Path, members: Mapping[str, bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"support-bundle/{name}")
            info.size = len(content)
            info.mtime = int(time.time())
            archive.addfile(info, io.BytesIO(content))
