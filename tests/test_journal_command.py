"""`station journal` as a user meets it."""

import contextlib
import csv
import io
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from delivery_helpers import FakeClock, message

from station.__main__ import main
from station.adapters.sqlite_journal import SqliteJournal, verify
from station.ids import uuid7
from station.messages import Gap, Outcome
from station.settings import JournalSettings
from station.wire import outgoing_gap


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def station(*arguments: object, folder: Path) -> Ended:
    """Run a command in this process, which spares the start of an interpreter."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(one) for one in arguments])
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with ten verdicts of two cameras, of which the first four are acknowledged, and a gap."""
    clock = FakeClock()
    folder = tmp_path / "data"
    with opened(folder, clock) as journal:
        for number in range(1, 6):
            outcome = Outcome.NG if number == 3 else Outcome.OK
            journal.commit([message(number, outcome=outcome), message(number, camera="side")], ())
            clock.pass_s(60)
        at = clock.now()
        gap = Gap(id=uuid7(7), station="line-1", camera="top", what="frames", count=2, began=at, ended=at, why="paused")
        journal.commit([outgoing_gap(gap)], (1, 2, 3, 4))
    return folder


def opened(folder: Path, clock: FakeClock) -> SqliteJournal:
    return SqliteJournal(folder / "journal.sqlite", JournalSettings(), station="line-1", clock=clock)


def change(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database:
        database.execute(statement)
        database.commit()


def test_stats_are_for_people_and_for_machines(data: Path, tmp_path: Path) -> None:
    told = station("journal", "stats", "--data-dir", data, folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "rows      11 (1 gap, 10 verdict)" in told.stdout
    assert "verdicts  1 ng, 9 ok" in told.stdout
    found = json.loads(station("journal", "stats", "--data-dir", data, "--json", folder=tmp_path).stdout)
    assert (found["rows"], found["outbox"], found["by_outcome"]) == (11, 7, {"ng": 1, "ok": 9})
    assert found["head"] == verify(data / "journal.sqlite").head


@pytest.mark.parametrize("action", [("stats",), ("stats", "--json"), ("export",), ("export", "--format", "csv")])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal SET committed_at = x'00' WHERE row = 11",
        "UPDATE journal SET outcome = x'00' WHERE row = 3",
        "UPDATE journal SET kind = 7.5 WHERE row = 3",
        "UPDATE delivered SET at = 'soon' WHERE row = 1",
    ],
)
def test_a_value_of_the_wrong_kind_is_damage_and_no_traceback(
    statement: str, action: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    change(data, statement)
    ended = station("journal", *action, "--data-dir", data, folder=tmp_path)
    assert ended.returncode in (0, 1)
    assert (ended.returncode == 1) == ended.stderr.startswith("station journal: ")


def test_verify_names_the_first_bad_row_and_sees_a_cut_end(data: Path, tmp_path: Path) -> None:
    head = verify(data / "journal.sqlite").head
    ended = station("journal", "verify", "--data-dir", data, "--head", head, folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("11 rows checked")
    change(data, "DELETE FROM journal WHERE row = 11")
    change(data, "DELETE FROM outbox WHERE row = 11")
    assert station("journal", "verify", "--data-dir", data, folder=tmp_path).returncode == 0
    ended = station("journal", "verify", "--data-dir", data, "--head", head, folder=tmp_path)
    assert ended.returncode == 1
    assert "the end is cut off" in ended.stderr
    change(data, "UPDATE journal SET outcome = 'ok' WHERE row = 5")
    ended = station("journal", "verify", "--data-dir", data, folder=tmp_path)
    assert ended.returncode == 1
    assert "row 5 does not match its hash" in ended.stderr


def test_export_writes_each_row_once_in_both_forms_and_by_what_is_asked(data: Path, tmp_path: Path) -> None:
    everything = station("journal", "export", "--data-dir", data, folder=tmp_path)
    lines = [json.loads(line) for line in everything.stdout.splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 12))
    assert [line["acknowledged_at"] is not None for line in lines] == [True] * 4 + [False] * 7
    assert lines[4]["message"]["outcome"] == "ng"
    assert everything.stderr == ""
    out = tmp_path / "out.csv"
    chosen = ("--camera", "top", "--epoch", 1, "--from", 2, "--to", 4)
    ended = station("journal", "export", "--data-dir", data, *chosen, "--format", "csv", "--out", out, folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "")
    with out.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["camera"], row["sequence"], row["outcome"]) for row in rows] == [
        ("top", "2", "ok"),
        ("top", "3", "ng"),
        ("top", "4", "ok"),
    ]
    assert (rows[1]["reasons"], rows[1]["defects"], rows[1]["model"]) == ("defect", "open", "boards 1")
    some = station(
        *("journal", "export", "--data-dir", data, "--since", lines[2]["committed_at"]),
        *("--until", lines[5]["committed_at"], "--outcome", "ok"),
        folder=tmp_path,
    )
    assert [json.loads(line)["row"] for line in some.stdout.splitlines()] == [3, 4, 6]


def test_an_export_is_whole_or_not_there(data: Path, tmp_path: Path) -> None:
    journal = data / "journal.sqlite"
    for out, reason in ((journal, "is the journal itself"), (tmp_path / "no" / "where", "No such file or directory")):
        ended = station("journal", "export", "--data-dir", data, "--out", out, folder=tmp_path)
        assert ended.returncode == 1
        assert reason in ended.stderr
        assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_an_export_passes_over_what_is_damaged_and_says_so(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows"
    change(data, "UPDATE journal SET id = 'x' WHERE row = 9")
    ended = station("journal", "export", "--data-dir", data, "--out", out, folder=tmp_path)
    assert ended.returncode == 1
    assert "is damaged; nothing could be read of the rows 9 to 9 in 1 places, all others were written" in ended.stderr
    lines = [json.loads(line)["row"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert lines == [*range(1, 9), 10, 11]


def test_numbers_that_no_journal_holds_are_refused(data: Path, tmp_path: Path) -> None:
    ended = station("journal", "export", "--data-dir", data, "--epoch", 10**20, folder=tmp_path)
    assert ended.returncode == 2
    assert "is larger than any number in a journal" in ended.stderr


def test_a_running_station_lets_its_journal_be_read_and_not_repaired(data: Path, tmp_path: Path) -> None:
    with opened(data, FakeClock()) as journal:
        journal.commit([message(6)], ())
        assert station("journal", "verify", "--data-dir", data, folder=tmp_path).returncode == 0
        exported = station("journal", "export", "--data-dir", data, folder=tmp_path).stdout
        assert len(exported.splitlines()) == 12
        ended = station("journal", "repair", "--data-dir", data, "--name", "line-1", folder=tmp_path)
        assert ended.returncode == 1
        assert "in use by another station" in ended.stderr
        assert journal.commit([message(7)], ())[0].row == 13


def test_repair_leaves_the_damaged_file_and_saves_what_was_not_delivered(data: Path, tmp_path: Path) -> None:
    configuration = tmp_path / "station.toml"
    configuration.write_text(
        'version = 1\n[station]\nname = "line-1"\ndata_dir = "data"\n[camera.c]\nkind = "simulated"\n',
        encoding="utf-8",
    )
    ended = station("journal", "repair", folder=tmp_path)
    assert (ended.returncode, "nothing to do" in ended.stdout) == (0, True)
    change(data, "UPDATE journal SET outcome = 'ok' WHERE row = 5")
    ended = station("journal", "repair", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    aside = min((path for path in data.iterdir() if ".corrupt-" in path.name), key=lambda path: len(path.name))
    for part in ("row 5 does not match its hash", str(aside), "with the 6 undelivered", "messages lost: 1; a gap"):
        assert part in ended.stdout
    assert verify(data / "journal.sqlite").fault is None
    exported = station("journal", "export", "--file", aside, folder=tmp_path).stdout
    assert len(exported.splitlines()) == 11
    kept = [json.loads(line) for line in station("journal", "export", folder=tmp_path).stdout.splitlines()]
    assert [line["kind"] for line in kept] == ["verdict"] * 5 + ["gap"] * 2
    assert kept[-1]["message"]["why"] == "journal_corrupt"


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("stats", "--data-dir", "nowhere"), 1, "does not exist"),
        (("stats",), 78, "station.toml: cannot be read"),
        (("verify", "--data-dir", "data", "--head", "abc"), 2, "64 hexadecimal digits"),
        (("export", "--data-dir", "data", "--since", "yesterday"), 2, "is not a time"),
        (("repair", "--data-dir", "data"), 78, "--name is needed"),
        ((), 2, "required"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: tuple[str, ...], code: int, reason: str, data: Path, tmp_path: Path
) -> None:
    assert data.is_dir()
    ended = station("journal", *arguments, folder=tmp_path)
    assert ended.returncode == code
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr
