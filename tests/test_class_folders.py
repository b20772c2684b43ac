"""Folders of classes that are drawn from public data: as many as promised, the same each time, parts kept apart."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from board_crops import CROP_PX, write_class_crops
from cracked_tiles import write_tiles

from export.dataset import SPLITS, fingerprint, read_dataset
from export.layouts import deeppcb
from export.pictures import read_pixels
from export.samples import Dataset, DatasetError

COUNTS = {"good": 40, "open": 25, "pin-hole": 10}


def counts_of(dataset: Dataset) -> dict[str, int]:
    return dict(Counter(dataset.labels[sample.label] for sample in dataset.samples if sample.label is not None))


def groups_apart(dataset: Dataset) -> bool:
    split_of = {(sample.group, split) for split in SPLITS for sample in dataset.splits[split]}
    return len({group for group, _ in split_of}) == len(split_of)


@pytest.fixture(scope="module")
def boards(public_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_crops(public_data / "DeepPCB", COUNTS, tmp_path_factory.mktemp("boards") / "data")


def test_crops_are_as_many_as_asked_for_and_their_boards_stay_apart(boards: Path) -> None:
    dataset = read_dataset(boards)
    assert counts_of(dataset) == COUNTS
    assert dataset.grouped_by == "groups.csv"
    assert dataset.good_label == "good"
    assert groups_apart(dataset)
    # The same place of a layout is a likeness, and no two boards.
    assert {problem.kind for problem in dataset.problems} <= {"leak"}
    assert {(facts.width_px, facts.height_px) for facts in dataset.facts.values()} == {(CROP_PX, CROP_PX)}


def test_a_crop_is_cut_from_its_group_and_shows_its_class_alone(boards: Path, public_data: Path) -> None:
    source = deeppcb.find(public_data / "DeepPCB")
    assert source is not None
    board_of = {board.name: board for board in deeppcb.read(source).samples}
    for sample in read_dataset(boards).samples[::5]:
        board = board_of[sample.group]
        crop, whole = read_pixels(sample.picture), read_pixels(board.picture)
        views = np.lib.stride_tricks.sliding_window_view(whole, crop.shape)
        # A few pixels rule most places out.
        places = np.argwhere((views[:, :, ::16, ::16] == crop[::16, ::16]).all(axis=(2, 3)))
        corners = [(x, y) for y, x in places if (views[y, x] == crop).all()]
        expected = [] if sample.name.startswith("good/") else [sample.name.split("/")[0]]
        assert any(
            [
                deeppcb.BOARD_LABELS[kind]
                for (left, top, right, bottom), kind in zip(board.boxes_px, board.classes, strict=True)
                if left < x + CROP_PX and right > x and top < y + CROP_PX and bottom > y
            ]
            == expected
            for x, y in corners
        ), sample.name


def test_layouts_can_stay_apart_and_nothing_else_changes(boards: Path, public_data: Path, tmp_path: Path) -> None:
    again = write_class_crops(public_data / "DeepPCB", COUNTS, tmp_path / "data", whole_layouts=True)
    dataset = read_dataset(again)
    assert fingerprint(dataset.samples) == fingerprint(read_dataset(boards).samples)
    assert groups_apart(dataset)
    assert len({sample.group for sample in dataset.samples}) <= 11


def test_more_crops_than_there_is_room_for_leave_nothing_behind(public_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has room for \d+ crops of good; 2000 are wanted"):
        write_class_crops(public_data / "DeepPCB", {"good": 2000}, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_tiles_are_as_many_as_asked_for_and_stay_apart(public_data: Path, tmp_path: Path) -> None:
    counts = {"cracked": 52, "intact": 347}
    dataset = read_dataset(write_tiles(public_data / "MagneticTile", counts, tmp_path / "data"))
    assert counts_of(dataset) == counts
    assert dataset.good_label == "intact"
    assert dataset.grouped_by == "groups.csv"
    assert groups_apart(dataset)
    assert not any(sample.mask for sample in dataset.samples)
    assert len({sample.group for sample in dataset.samples}) < len(dataset.samples)


def test_what_is_not_the_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="trainval"):
        write_class_crops(tmp_path, {"good": 1}, tmp_path / "data")
    with pytest.raises(DatasetError, match="holds no known layout"):
        write_tiles(tmp_path, {"cracked": 1}, tmp_path / "data")
