"""`station readings`: what the process channels were at a moment, when a part was judged, or over a stretch of time."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from station import wire
from station.adapters.sqlite_journal import Filter, export
from station.adapters.sqlite_readings import KeptReading, groups_kept, readings_at, readings_between
from station.commands.assembly import JOURNAL_FILE, READINGS_FILE
from station.commands.exit_codes import ExitCode
from station.commands.looks import as_owner
from station.errors import StorageError
from station.messages import Verdict
from station.settings import load

COMMITTED_WITHIN_S = 86_400.0
"""A verdict's id holds its time; it was stored at most this long afterwards, also where the disk refused for a day."""
CLOCK_SLACK_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--config", type=Path, default=Path("station.toml"), help="default: %(default)s")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--verdict", type=_uuid, metavar="ID", help="when this verdict's part passed the process")
    what.add_argument("--at", type=_time, metavar="TIME", help="at this time: 2026-11-22T06:00:00Z")
    what.add_argument(
        "--since", type=_time, metavar="TIME", help="from then on, as a CSV log that a bundle can be trained on"
    )
    parser.add_argument("--until", type=_time, metavar="TIME", help="with --since: up to then; default: now")
    parser.add_argument("--group", metavar="NAME", help="this process group; default: all, with --since the only one")
    parser.add_argument("--out", type=Path, metavar="FILE", help="with --since: instead of the standard output")
    parser.add_argument("--json", action="store_true", help="print for machines")


def run(options: argparse.Namespace) -> ExitCode:
    """Look up what was asked for.

    Raises:
        ConfigurationError: the configuration is wrong.
        StorageError: a journal cannot be read, holds nothing of it, or the output cannot be written.
    """
    settings = load(options.config, os.environ)
    folder = settings.station.data_dir
    with as_owner(folder):
        groups = _groups(folder / READINGS_FILE, options.group)
        if options.since is not None:
            if len(groups) > 1:
                raise StorageError(f"--group: there are readings of {', '.join(groups)}; name one")
            _write_log(folder / READINGS_FILE, groups[0], options)
            return ExitCode.OK
        verdict: Verdict | None = None
        at_s = options.at
        if options.verdict is not None:
            verdict = _verdict(folder / JOURNAL_FILE, options.verdict)
            camera = settings.camera.get(verdict.camera)
            delay_s = camera.transport_delay_s if camera is not None else 0.0
            at_s = (verdict.captured_at - timedelta(seconds=delay_s)).timestamp()
        found = {group: readings_at(folder / READINGS_FILE, group, at_s) for group in groups}
    print(_document(at_s, verdict, found) if options.json else _text(at_s, verdict, found))
    return ExitCode.OK


def _groups(path: Path, wanted: str | None) -> list[str]:
    kept = groups_kept(path)
    if wanted is not None and wanted not in kept:
        raise StorageError(f"--group {wanted}: there are no readings of it; there are of {', '.join(kept) or 'none'}")
    if not kept:
        raise StorageError(f"readings: {path} holds none")
    return [wanted] if wanted is not None else list(kept)


def _verdict(path: Path, wanted: UUID) -> Verdict:
    made_s = (wanted.int >> 80) / 1e3
    around = Filter(since_s=made_s - CLOCK_SLACK_S, until_s=made_s + COMMITTED_WITHIN_S)
    for row in export(path, around):
        if row.message.id == wanted and row.message.kind == "verdict":
            return wire.decode(Verdict, row.message.payload)
    raise StorageError(f"--verdict {wanted}: the journal {path} does not hold it")


def _text(at_s: float, verdict: Verdict | None, found: Mapping[str, KeptReading | None]) -> str:
    lines = []
    if verdict is not None:
        lines.append(
            f"verdict {verdict.id}: {verdict.outcome.value}, captured {_shown(verdict.captured_at.timestamp())}"
        )
    lines.append(f"process at {_shown(at_s)}")
    for group, reading in found.items():
        if reading is None:
            lines.append(f"{group}: nothing is kept of that time")
            continue
        risk = "none" if reading.risk is None else f"{reading.risk:.3f}"
        lines.append(f"{group}: reading of {_shown(reading.at_s)}, {at_s - reading.at_s:.2f} s before; risk {risk}")
        for (name, unit), value, quality in zip(reading.channels, reading.values, reading.qualities, strict=True):
            lines.append(f"  {name:24} {f'{value:g} {unit}' if value is not None else quality.value}")
    return "\n".join(lines)


def _document(at_s: float, verdict: Verdict | None, found: Mapping[str, KeptReading | None]) -> str:
    groups: dict[str, Any] = {}
    for group, reading in found.items():
        groups[group] = None
        if reading is not None:
            groups[group] = {
                "at": _shown(reading.at_s),
                "age_s": round(at_s - reading.at_s, 3),
                "risk": reading.risk,
                "channels": {
                    name: {"value": value, "unit": unit, "quality": quality.value}
                    for (name, unit), value, quality in zip(
                        reading.channels, reading.values, reading.qualities, strict=True
                    )
                },
            }
    document = {
        "at": _shown(at_s),
        "verdict": None if verdict is None else str(verdict.id),
        "as_published": None
        if verdict is None
        else {group: state.model_dump(mode="json") for group, state in verdict.process.items()},
        "groups": groups,
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def _write_log(path: Path, group: str, options: argparse.Namespace) -> None:
    until_s = options.until if options.until is not None else datetime.now(UTC).timestamp()
    readings = readings_between(path, group, options.since, until_s)
    if options.out is None:
        _as_csv(readings, sys.stdout)
        return
    try:
        with options.out.open("w", encoding="utf-8", newline="") as file:
            _as_csv(readings, file)
    except OSError as exc:
        raise StorageError(f"--out {options.out}: cannot be written: {exc.strerror}") from exc


def _as_csv(readings: Iterable[KeptReading], file: IO[str]) -> None:
    """One row a tick; empty where a channel was not good. A change of the channels ends the log with an error."""
    writer = csv.writer(file, lineterminator="\n")
    channels: tuple[tuple[str, str], ...] | None = None
    for reading in readings:
        if channels is None:
            channels = reading.channels
            writer.writerow(["timestamp", *(f"{name} [{unit}]" if unit else name for name, unit in channels)])
        elif reading.channels != channels:
            raise StorageError(
                f"the channels changed at {_shown(reading.at_s)}; write one log until then, another one from then on"
            )
        writer.writerow([_shown(reading.at_s), *("" if value is None else f"{value:.7g}" for value in reading.values)])


def _shown(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")


def _time(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-22T06:00:00Z") from None
    return (found if found.tzinfo else found.astimezone()).timestamp()


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no verdict's id") from None
