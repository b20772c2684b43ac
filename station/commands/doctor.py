"""`station doctor`: look at the configuration and at the machine, and say what to do, one line each."""

import argparse
import os
import shutil
import stat
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from station.adapters.litert_model import LitertModel
from station.adapters.system_clock import is_synchronised
from station.commands import looks
from station.commands.assembly import JOURNAL_FILE
from station.commands.exit_codes import ExitCode
from station.commands.looks import Finding, report
from station.commands.sensor_factory import need_extras
from station.errors import ConfigurationError, ModelError
from station.manifest import read_bundle
from station.settings import SHIPPED_BUNDLE, Settings, StreamCamera, load

SYNCS = 30
SLOW_SYNC_MS = 50.0
"""A verdict waits for one fsync, or for two when one is under way: slower than this shows in the latency."""
INVOCATIONS = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--config", type=Path, default=Path("station.toml"), help="configuration file")


def run(options: argparse.Namespace) -> ExitCode:
    """Print one line for each thing; the exit code is that of the first failure. A `note` is no failure."""
    return report(_findings(options.config))


def _findings(path: Path) -> Iterator[Finding]:
    settings: Settings | None = None
    running = False
    try:
        settings = load(path, os.environ)
        need_extras(settings)
        yield Finding(f"configuration {path}")
        yield from secrets(path, settings)
        folder, running = looks.data_folder(settings)
        yield folder
        yield disk(settings)
    except ConfigurationError as exc:
        for line in str(exc).splitlines():
            yield Finding("configuration", line, ExitCode.CONFIGURATION)
    yield from machine()
    if settings is not None:
        yield from looks.bundles(settings)
        yield from looks.cameras(settings, running=running)
        yield looks.broker(settings, running=running)
        yield from looks.sensors(settings, running=running)
        yield from looks.orders(settings, running=running)
        yield from looks.part_ids(settings, running=running)
        yield from looks.rejects(settings, running=running)


def machine() -> Iterator[Finding]:
    """What does not depend on the configuration: user, clock, XNNPACK."""
    if os.geteuid() == 0:
        yield Finding(
            "user",
            "root may do what the service may not; run this as the service does: "
            "runuser -u inspection-station -- station doctor …",
            advice=True,
        )
    yield clock()
    yield xnnpack()


def secrets(path: Path, settings: Settings) -> Iterator[Finding]:
    """Files that hold a secret and can be read by everyone."""
    holders = {path} if _holds_secret(settings) else set()
    holders.update(one for one in (settings.broker.password_file, _key_file(settings)) if one is not None)
    for holder in sorted(holders):
        try:
            mode = holder.stat().st_mode
        except OSError as exc:
            yield Finding(f"secret {holder}", f"cannot be read: {exc.strerror}", ExitCode.CONFIGURATION)
            continue
        if mode & stat.S_IROTH:
            yield Finding(f"secret {holder}", f"can be read by everyone: chmod o-r {holder}", advice=True)
        elif not os.access(holder, os.R_OK):
            yield Finding(f"secret {holder}", "cannot be read by this user", ExitCode.CONFIGURATION)
        else:
            yield Finding(f"secret {holder}", "is not for everyone")


def _holds_secret(settings: Settings) -> bool:
    streams = [one for one in settings.camera.values() if isinstance(one, StreamCamera)]
    return settings.broker.password is not None or any("@" in one.url.get_secret_value() for one in streams)


def _key_file(settings: Settings) -> Path | None:
    return settings.broker.tls.key_file if settings.broker.tls else None


def disk(settings: Settings) -> Finding:
    """Room for the journal, and how long the disk takes to make a commit durable."""
    folder = settings.station.data_dir
    what = f"disk of {folder}"
    free = shutil.disk_usage(folder).free
    kept = sum(one.stat().st_size for one in folder.glob(JOURNAL_FILE + "*"))
    to_come = max(0, settings.journal.max_bytes - kept)
    if free < to_come:
        text = f"{_gb(free)} free, the journal may take {_gb(to_come)} more: make room, or lower journal.max_bytes"
        return Finding(what, text, advice=True)
    try:
        syncs_ms = _time_syncs(folder)
    except OSError as exc:
        return Finding(what, f"cannot be written: {exc.strerror}", ExitCode.CONFIGURATION)
    median_ms, worst_ms = statistics.median(syncs_ms), max(syncs_ms)
    text = f"{_gb(free)} free, an fsync takes {median_ms:.1f} ms, at worst {worst_ms:.1f} ms"
    if median_ms > SLOW_SYNC_MS:
        return Finding(what, f"{text}: verdicts wait for it; use another disk", advice=True)
    return Finding(what, text)


def _time_syncs(folder: Path) -> list[float]:
    taken_ms = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(SYNCS):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken_ms.append((time.perf_counter() - began) * 1e3)
    return taken_ms


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def clock() -> Finding:
    """Whether the wall clock can be believed."""
    match is_synchronised():
        case True:
            return Finding("clock", "synchronised")
        case False:
            text = "not synchronised, times in verdicts drift: enable systemd-timesyncd or chrony"
            return Finding("clock", text, advice=True)
        case None:
            return Finding("clock", "the kernel does not say whether it is synchronised", advice=True)


def xnnpack() -> Finding:
    """Whether the fast kernels run on this machine, by the shipped model."""
    try:
        model = LitertModel(read_bundle(SHIPPED_BUNDLE))
        model.invoke_only()
        taken_ms = []
        for _ in range(INVOCATIONS):
            began = time.perf_counter()
            model.invoke_only()
            taken_ms.append((time.perf_counter() - began) * 1e3)
    except ModelError as exc:
        return Finding("XNNPACK", str(exc), ExitCode.BUNDLE)
    _, height, width, _ = model.bundle.manifest.inputs[0].shape
    median_ms = statistics.median(taken_ms)
    return Finding("XNNPACK", f"runs the shipped model in {median_ms:.1f} ms on one core ({width}×{height})")
