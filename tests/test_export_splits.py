"""Splits, groups and folds: nothing straddles, nothing is lost, and the same comes out each time."""

import contextlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled_folders import picture, write_classes, write_pictures

from export.dataset import read_dataset
from export.duplicates import clusters, look_alikes, thumbnail
from export.samples import Dataset, DatasetError, Sample, Split, no_boxes
from export.splits import draw_splits, folds, leaks, parse_splits, read_table

SHARES: dict[Split, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}


def sample(number: int, label: int, group: str) -> Sample:
    boxes_px, classes = no_boxes()
    return Sample(f"{number}.png", Path(f"{number}.png"), boxes_px, classes, group, label=label)


def a_dataset(samples: list[Sample]) -> Dataset:
    return Dataset(Path(), "test", ("a", "b", "c", "d"), {"train": samples, "validation": [], "test": []})


GROUPED = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 25)).map(lambda pair: (pair[0], f"group{pair[1]}")),
    min_size=3,
    max_size=120,
).map(lambda rows: [sample(number, label, group) for number, (label, group) in enumerate(rows)])


@given(GROUPED, st.integers(0, 5))
@settings(max_examples=60)
def test_drawn_splits_keep_groups_together(samples: list[Sample], seed: int) -> None:
    splits = draw_splits(samples, seed, SHARES)
    assert set(splits) == {item.name for item in samples}
    assert not leaks(samples, splits)
    assert draw_splits(list(reversed(samples)), seed, SHARES) == splits
    for label in range(4):
        groups = {item.group for item in samples if item.label == label}
        alone = {item.group for item in samples if item.label != label}
        if len(groups - alone) >= 3 and len({item.label for item in samples}) == 1:
            assert {splits[item.name] for item in samples if item.label == label} == set(SHARES)


@given(st.lists(st.integers(3, 40), min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=40)
def test_shares_hold_for_each_class(counts: list[int], seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    samples = [sample(number, label, str(number)) for number, label in enumerate(labels)]
    splits = draw_splits(samples, seed, SHARES)
    for label, count in enumerate(counts):
        found = Counter(splits[item.name] for item in samples if item.label == label)
        for split, share in SHARES.items():
            assert found[split] >= 1
            assert abs(found[split] - count * share) <= 2


@given(GROUPED, st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=60)
def test_folds_test_everything_once(samples: list[Sample], count: int, seed: int) -> None:
    groups = {item.group for item in samples}
    if len(groups) < count:
        with pytest.raises(DatasetError, match="folds of"):
            list(folds(a_dataset(samples), count, seed))
        return
    turns = list(folds(a_dataset(samples), count, seed))
    assert sorted(item.name for turn in turns for item in turn.test) == sorted(item.name for item in samples)
    for turn in turns:
        assert not {item.group for item in turn.train} & {item.group for item in turn.test}
        assert len(turn.train) + len(turn.test) == len(samples)


def test_folds_are_as_even_as_the_classes_allow() -> None:
    samples = [sample(number, int(number % 10 == 0), str(number // 2)) for number in range(200)]
    for turn in folds(a_dataset(samples), 5, 0):
        found = Counter(item.label for item in turn.test)
        assert found[1] == 4
        assert found[0] == 36


def test_folds_of_a_table_are_obeyed() -> None:
    samples = [sample(number, number % 2, str(number)) for number in range(6)]
    dataset = replace(a_dataset(samples), folds={item.name: 3 + number % 3 for number, item in enumerate(samples)})
    turns = list(folds(dataset, 3, 0))
    assert [[item.name for item in turn.test] for turn in turns] == [
        ["0.png", "3.png"],
        ["1.png", "4.png"],
        ["2.png", "5.png"],
    ]
    with pytest.raises(DatasetError, match="gives 3 folds, not 5"):
        list(folds(dataset, 5, 0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(tmp_path, good=12, bad=12)


def rows(folder: Path, value: str = "{number}") -> list[str]:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return [f"{file},{value.format(number=number)}" for number, file in enumerate(files)]


def test_groups_are_obeyed(folder: Path) -> None:
    table = rows(folder)
    lines = [
        "File;Group;Note",
        *(line.split(",")[0].replace("/", "\\") + f";part {n // 3};x" for n, line in enumerate(table)),
    ]
    (folder / "groups.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    dataset = read_dataset(folder)
    assert len({item.group for item in dataset.samples}) == 8
    assert dataset.grouped_by == "groups.csv"
    for split, items in dataset.splits.items():
        others = {item.group for item in dataset.samples if item not in dataset.splits[split]}
        assert not {item.group for item in items} & others


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file\n", r"groups\.csv:1: expected the columns file and group, found 'file'"),
        ("", r"groups\.csv:1: expected the columns"),
        ("file,group\nbad/nowhere.png,1\n", r"groups\.csv:2: 'bad/nowhere\.png' is no picture of this folder"),
        (
            "file,group\nbad/bad000.png,1\n",
            r"groups\.csv: has no row for 23 of 24 pictures: .*and 20 more; add the rows",
        ),
        ("file,group\nbad/bad000.png,\n", r"groups\.csv:2: expected a file and its group"),
        (
            "file,group\nbad000.png,1\nbad/bad000.png,2\n",
            r"groups\.csv:3: 'bad/bad000\.png' has another group further up",
        ),
        ('file,group\n"bad/bad000.png', r"groups\.csv:2: expected a file and its group"),
    ],
)
def test_a_broken_table_is_named_with_its_line(folder: Path, text: str, expected: str) -> None:
    (folder / "groups.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=expected):
        read_dataset(folder)


def test_a_bare_name_must_be_unique(folder: Path) -> None:
    write_pictures(folder, ["bad/good000.png"])
    (folder / "groups.csv").write_text("file,group\ngood000.png,1\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"groups\.csv:2: several pictures are called 'good000\.png'"):
        read_dataset(folder)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=st.text(max_size=80) | st.text(st.sampled_from('file,groupab.png0123\n"; '), max_size=80))
def test_no_text_breaks_the_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(text, encoding="utf-8")
    with contextlib.suppress(DatasetError):
        assert set(read_table(path, "group", [sample(0, 0, "a")], tmp_path)) == {"0.png"}


def test_a_given_split_is_obeyed_and_its_leaks_are_told(folder: Path) -> None:
    table = [f"{line.split(',')[0]},{('Train', 'val', 'test')[number % 3]}" for number, line in enumerate(rows(folder))]
    (folder / "split.csv").write_text("\n".join(["file,split", *table]), encoding="utf-8")
    (folder / "groups.csv").write_text("\n".join(["file,group", *rows(folder, "same")]), encoding="utf-8")
    dataset = read_dataset(folder)
    assert [len(items) for items in dataset.splits.values()] == [8, 8, 8]
    (leak,) = (problem for problem in dataset.problems if problem.kind == "leak")
    assert leak.severity == "warning"
    assert "group 'same' stands in train and validation and test" in leak.what
    (folder / "groups.csv").unlink()
    assert not read_dataset(folder).problems


def test_fold_numbers_are_a_split(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(6)]
    splits, numbers = parse_splits(tmp_path, {name: str(index % 3) for index, name in enumerate(names)})
    assert splits == {"0.png": "test", "3.png": "test", "1.png": "validation", "4.png": "validation"} | {
        "2.png": "train",
        "5.png": "train",
    }
    assert numbers["5.png"] == 2
    with pytest.raises(DatasetError, match="has 2 folds; at least 3"):
        parse_splits(tmp_path, {"a": "0", "b": "1"})
    with pytest.raises(DatasetError, match="holdout: expected train, validation and test"):
        parse_splits(tmp_path, {"a": "train", "b": "holdout"})
    with pytest.raises(DatasetError, match="expected train, validation and test"):
        parse_splits(tmp_path, {"a": "train", "b": "1"})
    with pytest.raises(DatasetError, match="gives no picture to train"):
        parse_splits(tmp_path, {"a": "test"})


def test_look_alikes_are_found_among_parts_that_lie_alike() -> None:
    rng = np.random.default_rng(0)
    part = rng.integers(0, 255, (32, 32)).astype(np.float64)
    light = rng.uniform(0.8, 1.1, (60, 1, 1))
    shown = np.clip(part * light + rng.normal(0, 4, (60, 32, 32)), 0, 255).astype(np.uint8)
    assert look_alikes(shown) == []
    again = np.clip(shown[7] * 1.05 + rng.normal(0, 0.5, (32, 32)), 0, 255).astype(np.uint8)
    (pair,) = look_alikes(np.concatenate([shown, again[None]]))
    assert (pair.first, pair.second) == (7, 60)
    assert look_alikes(shown[:2]) == []
    assert thumbnail(picture(0)).shape == (32, 32)


def test_parts_that_lie_alike_are_not_thrown_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    part = cv2.GaussianBlur(rng.integers(0, 255, (260, 260)).astype(np.float32), (0, 0), 6)
    part = 20 + 215 * (part - part.min()) / np.ptp(part)
    for number in range(120):
        x, y = rng.uniform(5, 15, 2)
        shifted = cv2.getRectSubPix(part, (240, 240), (125 + x, 125 + y)) + rng.normal(0, 2, (240, 240))
        path = tmp_path / ("good" if number % 2 else "bad") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.clip(shifted, 0, 255).astype(np.uint8))
    dataset = read_dataset(tmp_path)
    assert len({item.group for item in dataset.samples}) == 120
    (told,) = dataset.problems
    assert told.kind == "groups"
    assert "cannot be told apart by their looks" in told.what


def test_look_alikes_share_a_group(folder: Path) -> None:
    big = cv2.resize(picture(99), (240, 160), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / "good/first.png"), big)
    cv2.imwrite(str(folder / "good/second.jpg"), big, [cv2.IMWRITE_JPEG_QUALITY, 80])
    together = {item.name: item.group for item in read_dataset(folder).samples}
    assert together["good/first.png"] == together["good/second.jpg"]
    apart = {item.name: item.group for item in read_dataset(folder, group_look_alikes=False).samples}
    assert apart["good/first.png"] != apart["good/second.jpg"]
    names = sorted(together)
    (folder / "split.csv").write_text(
        "file,split\n" + "\n".join(f"{name},{'test' if 'second' in name else 'train'}" for name in names),
        encoding="utf-8",
    )
    (folder / "groups.csv").write_text("file,group\n" + "\n".join(f"{name},{name}" for name in names), encoding="utf-8")
    (leak,) = (problem for problem in read_dataset(folder).problems if problem.kind == "leak")
    assert leak.file == "good/second.jpg"
    assert "looks like good/first.png in train" in leak.what


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_clusters_are_what_is_linked(pairs: list[tuple[int, int]]) -> None:
    found = clusters(20, pairs)
    assert all(found[first] == found[second] for first, second in pairs)
    assert all(found[member] <= member for member in range(20))
    assert len(set(found)) >= 20 - len(pairs)
