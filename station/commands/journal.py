"""`station journal`: look into the journal of a station, also of a running one, and mend a damaged one."""

import argparse
import contextlib
import csv
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from station.adapters.sqlite_journal import Filter, JournalRow, SqliteJournal, export, stats, verify
from station.adapters.system_clock import SystemClock
from station.commands.assembly import JOURNAL_FILE
from station.commands.exit_codes import ExitCode
from station.commands.looks import as_owner
from station.errors import ConfigurationError, StorageError
from station.messages import Outcome
from station.settings import JournalSettings, load

TELL_EVERY_S = 0.5
"""How often the number of exported rows is told."""
_HEAD = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_FROM_VERDICT = (
    "part_id",
    "part_id_state",
    "score",
    "threshold",
    "captured_at",
    "source",
    "late",
    "durable",
    "evidence",
)
_FROM_GAP = ("what", "count", "began", "ended", "why")
COLUMNS = (
    "row",
    "kind",
    "id",
    "camera",
    "epoch",
    "sequence",
    "outcome",
    "reasons",
    "defects",
    *_FROM_VERDICT,
    "model",
    *_FROM_GAP,
    "committed_at",
    "acknowledged_at",
    "hash",
)
"""Of the CSV form. Reasons and the labels of defects are separated by spaces."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shared = argparse.ArgumentParser(add_help=False)
    where = shared.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, help="configuration file of the station (default: station.toml)")
    where.add_argument("--data-dir", type=Path, help="data folder of the station")
    where.add_argument("--file", type=Path, help="a journal file, for example one that was set aside")

    action = actions.add_parser("stats", parents=[shared], help="count what the journal holds")
    action.add_argument("--json", action="store_true", help="print for machines")

    action = actions.add_parser("verify", parents=[shared], help="check every row against its hash")
    action.add_argument(
        "--head", type=_head, metavar="HASH", help="a head hash that `health` gave earlier: a cut end shows"
    )

    action = actions.add_parser("export", parents=[shared], help="write verdicts, gaps and commands as text")
    action.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="default: jsonl")
    action.add_argument("--out", type=Path, metavar="FILE", help="instead of the standard output")
    action.add_argument("--camera", metavar="NAME", help="of this camera only")
    action.add_argument("--epoch", type=_number, metavar="N", help="of this run of the station only")
    action.add_argument("--from", type=_number, dest="first", metavar="N", help="from this sequence on")
    action.add_argument("--to", type=_number, dest="last", metavar="N", help="up to this sequence")
    action.add_argument("--since", type=_time, metavar="TIME", help="stored then or later: 2026-11-22T06:00:00Z")
    action.add_argument("--until", type=_time, metavar="TIME", help="stored then or earlier")
    action.add_argument("--outcome", choices=[one.value for one in Outcome], help="verdicts of this outcome only")
    action.add_argument("--part", metavar="ID", help="verdicts of the part with this id only")

    action = actions.add_parser("repair", parents=[shared], help="set a damaged journal aside and save what can be")
    action.add_argument("--name", type=_name, help="the station's name, where no configuration tells it")


def run(options: argparse.Namespace) -> ExitCode:
    """Do one of the actions.

    Raises:
        ConfigurationError: the configuration is wrong.
        StorageError: the journal cannot be read, or the output not be written.
    """
    actions: Mapping[str, Callable[[argparse.Namespace, Path], ExitCode]] = {
        "stats": _stats,
        "verify": _verify,
        "export": _export,
        "repair": _repair,
    }
    path = _path(options)
    with as_owner(path.parent):
        return actions[options.action](options, path)


def _path(options: argparse.Namespace) -> Path:
    if options.file is not None:
        return Path(options.file)
    if options.data_dir is not None:
        return Path(options.data_dir) / JOURNAL_FILE
    return load(options.config or Path("station.toml"), os.environ).station.data_dir / JOURNAL_FILE


def _stats(options: argparse.Namespace, path: Path) -> ExitCode:
    found = stats(path)
    if options.json:
        print(json.dumps(asdict(found), indent=2))
        return ExitCode.OK
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.by_kind.items())) or "none"
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.by_outcome.items())) or "none"
    span = f"{_when(found.first_committed_at_s)} to {_when(found.last_committed_at_s)}"
    print(f"journal   {path}, {found.size_bytes / 1e6:.1f} MB")
    print(f"rows      {found.rows} ({kinds})")
    print(f"stored    {span if found.rows else 'nothing'}")
    print(f"verdicts  {outcomes}")
    print(f"waiting   {found.outbox} for the broker's acknowledgement")
    print(f"head      {found.head}")
    return ExitCode.OK


def _verify(options: argparse.Namespace, path: Path) -> ExitCode:
    found = verify(path, options.head)
    print(f"{found.rows} rows checked, {found.pruned} pruned rows accounted for, head {found.head}")
    if found.fault is not None:
        print(f"station journal: {path}: {found.fault}", file=sys.stderr)
        return ExitCode.FAILED
    print("whole: no row was changed, removed or added")
    return ExitCode.OK


def _export(options: argparse.Namespace, path: Path) -> ExitCode:
    chosen = Filter(
        camera=options.camera,
        epoch=options.epoch,
        first_sequence=options.first,
        last_sequence=options.last,
        since_s=options.since,
        until_s=options.until,
        outcome=options.outcome,
        part_id=options.part,
    )
    write = _as_csv if options.format == "csv" else _as_lines
    damage: list[tuple[int, int]] = []
    rows = _told(export(path, chosen, lambda first, last: damage.append((first, last))))
    if options.out is None:
        write(rows, sys.stdout)
        sys.stdout.flush()
        return _exported(path, damage)
    out = Path(options.out)
    if out.exists() and path.exists() and out.samefile(path):
        raise StorageError(f"--out {out}: is the journal itself")
    part = out.with_name(f".{out.name}.part")
    try:
        try:
            with part.open("w", encoding="utf-8", newline="") as stream:
                write(rows, stream)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
    except OSError as exc:
        raise StorageError(f"--out {out}: cannot be written: {exc.strerror}") from exc
    return _exported(path, damage)


def _exported(path: Path, damage: Sequence[tuple[int, int]]) -> ExitCode:
    """Say where rows are missing from what was written."""
    if not damage:
        return ExitCode.OK
    print(
        f"station journal: {path}: is damaged; nothing could be read of the rows {damage[0][0]} to {damage[-1][1]} in "
        f"{len(damage)} places, all others were written",
        file=sys.stderr,
    )
    return ExitCode.FAILED


def _repair(options: argparse.Namespace, path: Path) -> ExitCode:
    settings, name = JournalSettings(), options.name
    if options.file is None and options.data_dir is None:
        configuration = load(options.config or Path("station.toml"), os.environ)
        settings, name = configuration.journal, configuration.station.name
    if name is None:
        raise ConfigurationError("--name is needed: what is lost is declared in the station's name")
    if not path.is_file():
        raise StorageError(f"journal: {path} does not exist")
    print(f"1. no station holds {path}, and none can start while this goes on", flush=True)
    with SqliteJournal(path, settings, station=name, clock=SystemClock()).mending() as mended:
        if mended is None:
            print("2. its structure and every row are whole: nothing to do")
            return ExitCode.OK
        print(f"2. it is damaged: {mended.fault}")
        print(f"3. set aside, as it was: {mended.aside}")
        print(f"4. a new one begun, with the {mended.rescued} undelivered messages that could be read")
        lost = "an unknown number" if mended.lost is None else mended.lost
        print(f"5. undelivered messages lost: {lost}" + ("" if mended.lost == 0 else "; a gap declares them"))
        print(f"`station journal export --file {mended.aside}` writes what can still be read of the old one")
    return ExitCode.OK


def _as_lines(rows: Iterable[JournalRow], stream: IO[str]) -> None:
    for row in rows:
        record = {
            "row": row.row,
            "kind": row.message.kind,
            "committed_at": _when(row.committed_at_s),
            "acknowledged_at": _when(row.acknowledged_at_s),
            "hash": row.hash,
            "topic": row.message.topic,
            "message": _content(row),
        }
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def _as_csv(rows: Iterable[JournalRow], stream: IO[str]) -> None:
    writer = csv.writer(stream)
    writer.writerow(COLUMNS)
    for row in rows:
        cells = _cells(row)
        writer.writerow([_cell(cells.get(column)) for column in COLUMNS])


def _cells(row: JournalRow) -> dict[str, Any]:
    message = row.message
    content = _content(row) or {}
    cells = {column: content.get(column) for column in (*_FROM_VERDICT, *_FROM_GAP)}
    if model := content.get("model"):
        cells["model"] = f"{model.get('name')} {model.get('version')}"
    return {
        **cells,
        "row": row.row,
        "kind": message.kind,
        "id": message.id,
        "camera": message.camera,
        "epoch": message.epoch,
        "sequence": message.sequence,
        "outcome": message.outcome.value if message.outcome else None,
        "reasons": " ".join(content.get("reasons") or ()),
        "defects": " ".join(defect["label"] for defect in content.get("defects") or ()),
        "committed_at": _when(row.committed_at_s),
        "acknowledged_at": _when(row.acknowledged_at_s),
        "hash": row.hash,
    }


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: file names and labels come from outside."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def _content(row: JournalRow) -> dict[str, Any] | None:
    """The message as it was sent; None where a damaged row holds none."""
    try:
        content = json.loads(row.message.payload)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _number(text: str) -> int:
    number = int(text)
    if abs(number) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is larger than any number in a journal")
    return number


def _told(rows: Iterator[JournalRow]) -> Iterator[JournalRow]:
    """Count the rows on a terminal while they go by."""
    if not sys.stderr.isatty():
        yield from rows
        return
    count, tell_at_s = 0, time.monotonic() + TELL_EVERY_S
    for count, row in enumerate(rows, 1):
        yield row
        if time.monotonic() >= tell_at_s:
            print(f"\r{count} rows", end="", file=sys.stderr, flush=True)
            tell_at_s = time.monotonic() + TELL_EVERY_S
    print(f"\r{count} rows", file=sys.stderr)


def _when(at_s: float | None) -> str | None:
    if at_s is None:
        return None
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(at_s)


def _head(text: str) -> str:
    if not _HEAD.fullmatch(text.lower()):
        raise argparse.ArgumentTypeError("a head hash has 64 hexadecimal digits")
    return text.lower()


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("a name has letters, digits, _ and -, and begins with a letter or digit")
    return text


def _time(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-22T06:00:00Z") from None
    return (found if found.tzinfo else found.astimezone()).timestamp()
