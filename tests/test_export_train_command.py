"""What `station-export data` and `train` say and refuse before anything is trained."""

import fcntl
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from labelled_folders import write_classes, write_mask, write_pictures

from export.__main__ import main
from export.chatter import without_chatter
from export.choice import choose
from export.commands import train
from export.cross_validation import cross_validate, fit_folds
from export.dataset import read_dataset
from export.folder_lock import alone_in
from export.request import Request
from export.samples import DatasetError
from export.teller import Teller
from export.thresholds import MaxMiss


def test_the_labels_pick_the_task(tmp_path: Path) -> None:
    classes = read_dataset(write_classes(tmp_path / "classes", good=30, dent=30))
    assert choose(classes).task == "classify"
    assert "one of 2 classes" in choose(classes).why
    assert choose(classes, "anomaly").task == "anomaly"
    good = read_dataset(write_classes(tmp_path / "good_only", good=30))
    assert choose(good).task == "anomaly"
    assert "no defects to test with" in choose(good).problems[0].what
    few = read_dataset(write_classes(tmp_path / "few", good=40, dent=4))
    assert choose(few).task == "anomaly"
    assert "too few" in choose(few).why
    scarce = choose(read_dataset(write_classes(tmp_path / "scarce", good=40, dent=2)))
    assert scarce.task == "anomaly"
    assert "put the 2 pictures of defects into folders below test, as test/dent" in scarce.problems[0].what
    write_mask(tmp_path / "classes/dent/dent000_mask.png")
    assert "masks show" in choose(read_dataset(tmp_path / "classes")).why


@pytest.mark.parametrize(
    ("counts", "task", "expected"),
    [
        ({"dent": 20}, None, r"all training pictures are of one class, dent; .*name the folder good .*add a second"),
        ({"good": 20, "dent": 2}, "classify", r"2 pictures of dent that can be used; at least 3"),
        ({"a": 20, "b": 20}, "anomaly", r"none of a, b says good; name it with --good"),
        ({"a": 20, "b": 20}, "detect", r"--task detect needs labelled boxes"),
        ({"good": 20}, "classify", r"all training pictures are of one class, good; .*add a folder for each kind"),
        ({"good": 8}, None, r"training pictures of good that can be used; at least 10 .*; take more$"),
    ],
)
def test_labels_that_do_not_serve_are_refused(
    tmp_path: Path, counts: dict[str, int], task: str | None, expected: str
) -> None:
    dataset = read_dataset(write_classes(tmp_path / "data", **counts))
    with pytest.raises(DatasetError, match=expected):
        choose(dataset, task)  # type: ignore[arg-type]


def boxes(folder: Path) -> Path:
    write_pictures(folder, [f"{index}.png" for index in range(8)])
    (folder / "classes.txt").write_text("dent\n", encoding="utf-8")
    for index in range(8):
        (folder / f"{index}.txt").write_text("0 0.5 0.5 0.5 0.5\n", encoding="utf-8")
    return folder


def test_two_commands_do_not_work_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["train", str(boxes(tmp_path / "data")), "--out", str(out), "--task", "detect", "--steps", "1"]
    # As another process would hold it.
    out.mkdir()
    held = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(command) == 1
    finally:
        os.close(held)
    assert f"{out}: another command is at work in it" in capsys.readouterr().err
    assert not list(out.iterdir())
    log = tmp_path / "log.csv"
    log.write_text("time,a\n" + "".join(f"2026-11-02T08:00:{at:02}Z,{at}.5\n" for at in range(60)), encoding="utf-8")
    with alone_in(out):
        assert main(["train", str(log), "--task", "forecast", "--out", str(out)]) == 1
        assert f"{out}: another command is at work in it" in capsys.readouterr().err
        assert main(["package", "--data", str(tmp_path / "data"), "--out", str(out)]) == 1
    assert f"{out}: another command is at work in it" in capsys.readouterr().err
    with alone_in(out), pytest.raises(DatasetError, match="another command"), alone_in(out):
        pass
    # A program that was given the lock holds it when this one has left.
    with alone_in(out) as lock:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(DatasetError, match="another command"), alone_in(out):
        pass
    child.communicate()
    # Left, it is free again, also after a fault.
    with pytest.raises(ZeroDivisionError), alone_in(out):
        raise ZeroDivisionError
    with alone_in(out):
        pass


def test_what_is_no_folder_is_told_of_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(boxes(tmp_path / "data"))
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "file", tmp_path / "link", tmp_path / "file" / "below"):
        assert main(["train", data, "--out", str(out), "--task", "detect", "--steps", "1"]) == 1
        assert f"{out}: is not a folder" in capsys.readouterr().err
        assert main(["package", "--data", data, "--out", str(out)]) == 1
        assert f"{out}: is not the folder of a training" in capsys.readouterr().err
    assert (tmp_path / "file").read_bytes() == b"kept"
    assert not (tmp_path / "nowhere").exists()


def test_data_tells_what_stands_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_classes(tmp_path / "parts", good=30, dent=20)
    write_mask(folder / "dent/dent003_mask.png")
    (folder / "good/broken.png").write_bytes(b"x")
    assert main(["data", str(folder), "--sheet", str(tmp_path / "sheet.png"), "--of-each", "30"]) == 0
    shown = capsys.readouterr().out
    assert "folder per class, with masks, 50 pictures, 2 classes" in shown
    assert "task: classify, since each picture has one of 2 classes" in shown
    assert "1 thing to know:" in shown
    assert f"next: station-export train {folder}" in shown
    assert "error: good/broken.png: is not a whole picture; left out" in shown
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None
    assert sheet.shape[0] == (5 + 4) * 254
    # The mask's outline is the one thing in red.
    assert ((sheet[..., 2] > 200) & (sheet[..., 1] < 50)).any()
    assert main(["data", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["task"] == "classify"
    assert sum(told["pictures"].values()) == 50
    assert told["problems"][0]["kind"] == "broken"


def test_tables_that_data_writes_are_obeyed(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "parts", good=30, dent=20)
    before = read_dataset(folder)
    tables = ["--groups", str(folder / "groups.csv"), "--splits", str(folder / "split.csv")]
    assert main(["data", str(folder), *tables]) == 0
    after = read_dataset(folder)
    assert after.split_by == "split.csv"
    assert after.grouped_by == "groups.csv"
    for split, samples in before.splits.items():
        assert [item.name for item in after.splits[split]] == [item.name for item in samples]


def test_boxes_are_drawn(tmp_path: Path) -> None:
    folder = boxes(tmp_path / "boxes")
    assert main(["data", str(folder), "--sheet", str(tmp_path / "sheet.png"), "--of-each", "3"]) == 0
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None
    tile = sheet[34:200, :224]
    reds = np.argwhere((tile[..., 2] > 200) & (tile[..., 1] < 50) & (tile[..., 0] < 50))
    # The box is the middle half of a picture that was enlarged to 220 px.
    assert abs(reds[:, 1].max() - (4 + 165)) <= 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give one folder of labelled pictures"),
        (["{data}", "--data", "elsewhere"], "give one folder of labelled pictures"),
        (["{data}", "--out", "{data}/out"], "lies inside of"),
        (["{data}", "--steps", "3", "--minutes", "1"], "--steps and --minutes: give one of them"),
        (["{data}", "--good", "fine"], "has no class 'fine'"),
        (["{data}/absent"], "is not a folder"),
        (["{data}", "--task", "classify"], "--task classify needs a folder of pictures for each class"),
        (["{data}", "--preset", "plain-a"], "--preset plain-a: detect has one network"),
        (["{data}", "--no-plain"], "--no-plain: no option of the task detect"),
        (["{data}", "--prune", "0.5"], "--prune: no option of the task detect"),
        (["{data}", "--bad-share", "0.5"], "--bad-share: goes with --costs only"),
        (
            ["{data}", "--task", "warn", "--max-miss", "0"],
            "--max-false-reject, --max-miss, --costs: no options of the task warn",
        ),
    ],
)
def test_wrong_use_says_what_to_do(
    tmp_path: Path,
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = boxes(tmp_path / "data")
    assert main(["train", *(word.format(data=folder) for word in arguments)]) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("counts", "rule", "expected"),
    [
        (
            {"good": 40},
            ["--max-miss", "0.1"],
            r"at most 10\.0 % of the bad ones missed: no picture of a bad part is ",
        ),
        ({"good": 40}, ["--costs", "1:5"], r"so misses cannot be counted; add some, or give --max-false-reject$"),
        (
            {"a": 30, "b": 30},
            ["--max-false-reject", "0.1"],
            r"name that class good, ok or normal, or say which it is with --good, or leave the rule out$",
        ),
        (
            {"good": 3, "a": 40, "b": 40},
            ["--max-miss", "0", "--folds", "2"],
            r"fold 1 of 2: threshold for .*: no picture of a good part is held out; add some",
        ),
    ],
)
def test_a_threshold_that_cannot_be_chosen_is_refused_before_the_training(
    tmp_path: Path, counts: dict[str, int], rule: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_classes(tmp_path / "data", **counts), tmp_path / "out"
    assert main(["train", str(data), "--out", str(out), *rule]) == 1
    assert re.search(expected, capsys.readouterr().err.strip())
    assert not out.exists()


def test_too_little_room_is_told_before_hours_are_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LEAST_FREE_BYTES", 1 << 62)
    assert main(["train", str(boxes(tmp_path / "data")), "--out", str(tmp_path / "out")]) == 1
    assert "MB free there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_training_on_another_split_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = boxes(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    (out / "split.csv").write_text("file,split,group\n0.png,test,0.png\n", encoding="utf-8")
    # Nothing was trained there yet.
    assert main(["train", str(folder), "--out", str(out), "--preset", "plain-a"]) == 1
    assert "detect has one network" in capsys.readouterr().err
    (out / "split.csv").write_text("file,split,group\n0.png,test,0.png\n", encoding="utf-8")
    (out / "checkpoint.npz").write_bytes(b"of that training")
    assert main(["train", str(folder), "--out", str(out), "--steps", "1"]) == 1
    assert "holds a training on other pictures or another split (split.csv differs)" in capsys.readouterr().err


def test_folds_share_no_group_and_are_not_trained_twice(tmp_path: Path) -> None:
    dataset = read_dataset(write_classes(tmp_path / "data", good=20, dent=20))
    tested: list[str] = []
    said: list[str] = []

    def counted(request: Request) -> Path:
        """In place of a training: the figure is how many pictures were tested."""
        parts = request.dataset.splits
        assert sorted(item.name for part in parts.values() for item in part) == sorted(
            item.name for item in dataset.samples
        )
        groups = [{item.group for item in part} for part in parts.values()]
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
        assert all(parts.values())
        assert not request.compare
        tested.extend(item.name for item in parts["test"])
        figures = {"test_int8": {"pictures": len(parts["test"]), "auroc": 0.9 + len(tested) / 1000}}
        request.out.mkdir(parents=True)
        (request.out / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
        return request.out / "none.bundle"

    request = Request(dataset, tmp_path / "out", "parts", "1", 1.0, 0, say=said.append)
    fitted: list[Request] = []
    fit_folds(request, 4, 0, fitted.append)
    summary = cross_validate(request, 4, 0, counted)
    assert sorted(tested) == sorted(item.name for item in dataset.samples)
    assert summary["pictures"] == {"mean": 10, "deviation": 0, "least": 10, "most": 10}
    assert summary["auroc"]["mean"] == pytest.approx(0.925)
    assert cross_validate(request, 4, 0, counted) == summary
    assert len(tested) == 40
    # On another backend the same folds are trained, in the same folders; a finished one is left as it is.
    parts = [[item.name for item in one.dataset.splits["test"]] for one in fitted]
    assert [name for part in parts for name in part] == tested
    assert [one.out.name for one in fitted] == [f"fold-{number}" for number in range(4)]
    fit_folds(request, 4, 0, fitted.append)
    assert len(fitted) == 4
    assert said[0] == "fold 1 of 4: 30 to train, 10 to test"
    with pytest.raises(DatasetError, match=r"holds folds of a training with other options \(folds\.json\)"):
        cross_validate(replace(request, seed=1), 4, 0, counted)
    # The finished ones were judged by another threshold.
    with pytest.raises(DatasetError, match=r"holds folds of a training with other options \(folds\.json\)"):
        cross_validate(replace(request, rule=MaxMiss(0.1)), 4, 0, counted)
    judged = replace(request, out=tmp_path / "judged", rule=MaxMiss(0.1011))
    cross_validate(judged, 4, 0, counted)
    with pytest.raises(DatasetError, match=r"holds folds of a training with other options \(folds\.json\)"):
        cross_validate(replace(judged, rule=MaxMiss(0.1014)), 4, 0, counted)


def test_a_fold_without_a_bundle_counts_by_its_figures(tmp_path: Path) -> None:
    dataset = read_dataset(write_classes(tmp_path / "data", good=20, dent=20))
    said: list[str] = []

    def poor(request: Request) -> Path:
        """In place of a training whose second fold is too poor for a bundle."""
        request.out.mkdir(parents=True)
        figures = {"test_int8": {"auroc": 0.5}}
        (request.out / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
        if request.out.name == "fold-1":
            raise DatasetError("train longer; no bundle is written")
        return request.out / "none.bundle"

    request = Request(dataset, tmp_path / "out", "parts", "1", 1.0, 0, say=said.append)
    assert cross_validate(request, 3, 0, poor)["auroc"]["mean"] == 0.5
    assert "fold 2 of 3: train longer; no bundle is written" in said

    def failing(_: Request) -> Path:
        raise DatasetError("a picture cannot be read")

    with pytest.raises(DatasetError, match="a picture cannot be read"):
        cross_validate(replace(request, out=tmp_path / "other"), 3, 0, failing)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_where_somebody_watches() -> None:
    seconds = iter([0.0, 30.0, 90.0])
    terminal = Terminal()
    tell = Teller(60.0, terminal, lambda: next(seconds))
    for line in ("network: lite0", "step 1: 1.0 min left", "step 2: 0.5 min left", "step 3: 0.0 min left", "done"):
        tell(line)
    tell.close()
    first, second, third = terminal.getvalue().split("\n")[1].split("\x1b[K")[:3]
    assert terminal.getvalue().startswith("network: lite0\n\r")
    assert terminal.getvalue().endswith("\x1b[K\ndone\n")
    assert (first.count("█"), second.count("█"), third.count("█")) == (0, 12, 24)
    assert "50 % step 2" in second
    log = io.StringIO()
    Teller(60.0, log)("step 1: 1.0 min left")
    assert log.getvalue() == "step 1: 1.0 min left\n"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--minutes", "soon", "'soon': must be a number above 0"),
        ("--minutes", "0", "'0': must be a number above 0"),
        ("--minutes", "inf", "'inf': must be a number above 0"),
        ("--folds", "1", "'1': must be a whole number, at least 2"),
        ("--size", "64.5", "'64.5': must be a whole number, at least 1"),
        ("--epochs", "-1", "'-1': must be a whole number, at least 0"),
        ("--dropout", "1", "'1': must be a number from 0 to below 1"),
        ("--prune", "0", "'0': must be a number above 0, at most 0.7"),
        ("--prune", "0.71", "'0.71': must be a number above 0, at most 0.7"),
        ("--prune", "half", "'half': must be a number above 0, at most 0.7"),
        ("--weight-decay", "nan", "'nan': must be 0 or a number above it"),
    ],
)
def test_a_wrong_number_is_answered_in_words(
    option: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "parts", option, value])
    assert ended.value.code == 2
    assert f"argument {option}: {expected}" in capsys.readouterr().err


def test_without_a_command_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "train a network on a labelled folder" in capsys.readouterr().err


def test_only_chatter_is_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with without_chatter():
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n")
        os.write(2, b"I0000 port.cc:153] oneDNN custom operations are on. You may see\n")
        sys.stderr.write("a warning that somebody must see\n")

    def fail() -> None:
        with without_chatter():
            os.write(2, b"the reason\n")
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "a warning that somebody must see\nthe reason\nafter\n"


def test_help_can_be_followed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "station-export train DIR" in shown
    for option in ("--minutes", "--task", "--preset", "--size", "--folds", "--out", "--seed", "--good"):
        assert option in shown
