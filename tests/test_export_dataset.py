"""Labelled folders: what is read, what is held out, and which file and line an error names."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_detector import write_folder

from export.calibration_set import calibration_set
from export.dataset import BOARD_LABELS, DatasetError, fingerprint, read_dataset, read_pixels
from export.samples import with_references


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


def test_the_deeppcb_layout_is_read(folder: Path) -> None:
    dataset = read_dataset(folder)
    assert dataset.labels == BOARD_LABELS
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {
        "train": 36,
        "validation": 4,
        "test": 6,
    }
    sample = dataset.splits["train"][1]
    assert sample.name == "group0/pictures/trainval002_test.png"
    assert sample.reference == folder / "group0/pictures/trainval002_temp.png"
    assert sample.boxes_px.shape == (3, 4)
    assert set(sample.classes.tolist()) <= {4, 5}
    assert read_pixels(sample.picture).shape == (96, 96)
    assert read_pixels(sample.picture, 3).shape == (96, 96, 3)


def test_the_last_of_each_group_are_held_out(folder: Path) -> None:
    splits = read_dataset(folder).splits
    assert [sample.name[-12:-9] for sample in splits["validation"]] == ["036", "038", "037", "039"]
    assert not {item.name for item in splits["train"]} & {item.name for item in splits["validation"]}


def test_whole_groups_are_held_out_where_there_are_many(folder: Path) -> None:
    lines = (folder / "trainval.txt").read_text(encoding="utf-8").splitlines()
    for number in range(40):
        (folder / f"web{number}").symlink_to(folder / f"group{number % 2}")
    renamed = [line.replace("group0/", f"web{n}/").replace("group1/", f"web{n}/") for n, line in enumerate(lines)]
    (folder / "trainval.txt").write_text("\n".join(renamed), encoding="utf-8")
    splits = read_dataset(folder).splits
    assert [sample.group for sample in splits["validation"]] == ["web9", "web19", "web29", "web39"]


def test_pictures_may_stand_under_their_listed_name(folder: Path) -> None:
    named = folder / "group0/pictures/trainval000_test.png"
    named.rename(folder / "group0/pictures/trainval000.jpg")
    sample = read_dataset(folder).splits["train"][0]
    assert sample.picture.name == "trainval000.jpg"
    assert sample.reference is None


@pytest.mark.parametrize(
    "line",
    ["1 2 3", "1 2 3 4 5 6", "10 10 5 20 1", "10 10 20 10 1", "1 2 3 4 0", "1 2 3 4 7", "a b c d 1", "1.5 2 3 4 1"],
)
def test_a_broken_label_line_is_named(folder: Path, line: str) -> None:
    labels = folder / "group1/labels/trainval003.txt"
    labels.write_text(f"1 2 30 40 1\n\n{line}\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"group1/labels/trainval003\.txt:3: expected x1 y1 x2 y2 type"):
        read_dataset(folder)


def test_commas_between_the_numbers_are_allowed(folder: Path) -> None:
    (folder / "group0/labels/trainval000.txt").write_text("1,2,30,40,2\n", encoding="utf-8")
    assert read_dataset(folder).splits["train"][0].boxes_px.tolist() == [[1, 2, 30, 40]]


def test_a_picture_without_defects_is_a_picture(folder: Path) -> None:
    (folder / "group0/labels/trainval000.txt").write_text("", encoding="utf-8")
    assert read_dataset(folder).splits["train"][0].boxes_px.shape == (0, 4)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "group0/labels/trainval004.txt").unlink()
    with pytest.raises(DatasetError, match=r"trainval004\.txt: cannot be read"):
        read_dataset(folder)
    (folder / "group1/pictures/trainval001_test.png").unlink()
    with pytest.raises(DatasetError, match=r"trainval\.txt:2: picture group1/pictures/trainval001\.jpg is missing"):
        read_dataset(folder)
    (folder / "trainval.txt").write_text("only-one-column\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"trainval\.txt:1: expected a picture and a label file"):
        read_dataset(folder)
    (folder / "trainval.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="names no pictures"):
        read_dataset(folder)


def test_an_unknown_layout_and_a_missing_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no known layout"):
        read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="is not a folder"):
        read_dataset(tmp_path / "absent")


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"broken\.png: is not a whole picture"):
        read_pixels(path)


def test_the_fingerprint_follows_pictures_and_labels_only(folder: Path) -> None:
    samples = read_dataset(folder).splits["train"]
    before = fingerprint(samples)
    assert fingerprint(list(reversed(samples))) == before
    cv2.imwrite(str(samples[0].picture), np.zeros((96, 96), np.uint8))
    assert fingerprint(samples) != before


def test_calibration_serves_every_class_and_group(folder: Path) -> None:
    samples = with_references(read_dataset(folder).splits["train"])
    drawn = calibration_set(samples, len(BOARD_LABELS), 9, seed=0)
    assert len({sample.name for sample in drawn}) == 9
    assert {label for sample in drawn for label in sample.classes.tolist()} == {4, 5}
    assert any(not len(sample.classes) for sample in drawn)
    groups = [sample.group for sample in drawn]
    assert abs(groups.count("group0") - groups.count("group1")) <= 1
    assert calibration_set(samples, len(BOARD_LABELS), 9, seed=0) == drawn
    assert len(calibration_set(samples, len(BOARD_LABELS), 1000, seed=0)) == len(samples)


def test_the_official_split_of_deeppcb(public_data: Path) -> None:
    splits = read_dataset(public_data / "DeepPCB").splits
    assert [len(samples) for samples in splits.values()] == [900, 100, 500]
    assert all(sample.reference for samples in splits.values() for sample in samples)
