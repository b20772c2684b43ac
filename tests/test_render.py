"""The rendered data set: readable by the reader of real ones, repeatable, and without a leak between the sides."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from export.__main__ import main
from export.dataset import read_dataset, read_pixels
from export.render import (
    CALIBRATION_SEEDS,
    DEMO_SEEDS,
    HELD_OUT_SEEDS,
    PIECE_EDGE_PX,
    PROVENANCE,
    QUANTIZATION_SEEDS,
    TRAINING_SEEDS,
    RenderError,
    RenderKnobs,
    render_dataset,
    render_pieces,
)
from station.boards import Imaging, Web

SMALL = RenderKnobs(train_webs=10, test_webs=2, frames=2)


def quiet(_: str) -> None:
    """Takes the progress lines."""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "boards"
    assert main(["render", "--out", str(folder), "--train-webs", "10", "--test-webs", "2", "--frames", "2"]) == 0
    return folder


def test_the_reader_of_real_boards_reads_it(rendered: Path) -> None:
    dataset = read_dataset(rendered)
    assert {side: len(samples) for side, samples in dataset.splits.items()} == {"train": 18, "validation": 2, "test": 4}
    boxes = 0
    for sample in (s for samples in dataset.splits.values() for s in samples):
        picture = read_pixels(sample.picture)
        assert picture.shape == (640, 640)
        assert sample.reference is not None
        changed = picture != read_pixels(sample.reference)
        for x1, y1, x2, y2 in sample.boxes_px.astype(int):
            assert 0 <= x1 < x2 <= 640
            assert 0 <= y1 < y2 <= 640
            assert changed[y1:y2, x1:x2].any()
            boxes += 1
    assert boxes > 30


def test_no_web_stands_on_two_sides(rendered: Path) -> None:
    dataset = read_dataset(rendered)
    seeds = {side: {s.picture.name.split("_")[0] for s in samples} for side, samples in dataset.splits.items()}
    assert not seeds["train"] & seeds["validation"]
    assert not seeds["train"] & seeds["test"]
    assert not seeds["validation"] & seeds["test"]


def test_the_record_tells_what_was_rendered(rendered: Path) -> None:
    record = json.loads((rendered / PROVENANCE).read_text())
    assert record["knobs"]["first_seed"] == TRAINING_SEEDS.start
    assert [web["seed"] for web in record["webs"]] == list(range(10_000, 10_012))
    assert [web["side"] for web in record["webs"]] == ["trainval"] * 10 + ["test"] * 2


def test_the_same_knobs_give_the_same_files(rendered: Path, tmp_path: Path) -> None:
    render_dataset(tmp_path / "again", SMALL, quiet)

    def digests(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }

    assert digests(tmp_path / "again") == digests(rendered)


def test_the_seeds_of_the_parts_do_not_meet() -> None:
    parts = (DEMO_SEEDS, CALIBRATION_SEEDS, HELD_OUT_SEEDS, TRAINING_SEEDS, QUANTIZATION_SEEDS)
    edges = [edge for part in parts for edge in (part.start, part.stop)]
    assert edges == sorted(edges)
    assert np.all([len(part) >= 1000 for part in parts])


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        (RenderKnobs(train_webs=0), "--train-webs = 0"),
        (RenderKnobs(train_webs=7), "--train-webs = 7; allowed: a multiple of 10"),
        (RenderKnobs(frames=0), "--frames = 0"),
        (RenderKnobs(first_seed=-1), "--first-seed = -1"),
        (RenderKnobs(defect_share=1.5), "--defect-share = 1.5"),
    ],
)
def test_a_bad_option_is_named(tmp_path: Path, knobs: RenderKnobs, told: str) -> None:
    with pytest.raises(RenderError, match=told):
        render_dataset(tmp_path / "out", knobs, quiet)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RenderError, match="not an empty folder"):
        render_dataset(tmp_path, SMALL, quiet)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_pieces_show_every_kind_and_can_be_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    assert main(["render", "--out", str(folder), "--pieces", "8"]) == 0
    record = json.loads((folder / PROVENANCE).read_text())
    assert len(record["pieces"]) == 8
    assert sum(len(piece["defects"]) > 0 for piece in record["pieces"]) >= 6
    for piece in record["pieces"]:
        assert piece["seed"] in QUANTIZATION_SEEDS
        imaging = Imaging() if piece["camera"] == "demo" else Imaging.varied(piece["seed"])
        web = Web(piece["seed"], defect_share=0.95, imaging=imaging)
        left = piece["left_px"]
        again = web.render(piece["first_line"], PIECE_EDGE_PX)[:, left : left + PIECE_EDGE_PX]
        assert np.array_equal(read_pixels(folder / piece["file"]), again)


def test_pieces_refuse_what_they_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="--pieces = 0"):
        render_pieces(tmp_path / "out", 0, quiet)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RenderError, match="not an empty folder"):
        render_pieces(tmp_path, 3, quiet)
