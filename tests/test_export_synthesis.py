"""Synthetic defects: what is made, that it never tests anything, and what is said when it cannot be made."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_parts import SIDE_PX, write_masked_parts

from export.__main__ import main
from export.calibration_set import calibration_set
from export.cross_validation import cross_validate
from export.dataset import read_dataset
from export.evaluation import ALL, pictures_of
from export.pictures import read_mask, read_pixels
from export.quantize import read_folder
from export.request import Request
from export.samples import DatasetError, Sample, no_boxes
from export.splits import folds
from export.synthesis.blending import Drawn, Variation, bent, put_defects, put_pieces
from export.synthesis.copies import compare, nearest, whole_defects
from export.synthesis.make import boxes_of
from export.synthesis.marks import encode, learnt_from
from export.synthesis.methods import NONE
from export.synthesis.patches import Floats, Marked, Mask, cut, cut_patches, cut_pieces, read_marked, sketch, soften
from export.synthesis.pick import decide
from export.synthesis.quality import squared_mmd
from export.synthesis.training import add_to_training, synthesizing
from export.trained_on import DIGESTS, training_record
from station.messages import Pixels


def synthesize(data: Path, out: Path, *options: str) -> int:
    return main(["synthesize", "--data", str(data), "--out", str(out), *options])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masked_parts(tmp_path_factory.mktemp("real") / "parts", good=24, scratch=14)


@pytest.fixture(scope="module")
def pasted(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "more"
    assert synthesize(parts, out, "--method", "cut-and-paste", "--count", "12") == 0
    return out


def test_pasted_defects_stand_on_good_pictures_under_true_masks(parts: Path, pasted: Path, tmp_path: Path) -> None:
    goods = [read_pixels(path) for path in sorted((parts / "good").glob("*.png"))]
    pictures = sorted(path for path in (pasted / "scratch").glob("*.png") if not path.stem.endswith("_mask"))
    assert len(pictures) == 12
    for path in pictures:
        assert path.name.startswith("synthetic-cut-and-paste-")
        pixels, mask = read_pixels(path).astype(int), read_mask(path.with_name(f"{path.stem}_mask.png"))
        good = min(goods, key=lambda one: int(np.abs(pixels - one)[~mask].sum()))
        rim = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        # Outside nothing is changed; inside it is brighter, as the real scratches are.
        assert np.abs(pixels - good)[~rim].max() <= 1
        assert (pixels - good)[mask].mean() > 15
    record = json.loads((pasted / "synthesis.json").read_text(encoding="utf-8"))
    assert record["order"]["method"] == "cut-and-paste"
    assert record["quality"]["scratch"]["diversity"] > 0.5
    # What was pasted is a copy, wherever it stands; some scratches cross, and are no copy of one.
    assert record["quality"]["scratch"]["copies"] > 0.5
    for name in ("sheet.png", "nearest.png"):
        with pytest.raises(DatasetError, match="is a sheet of synthetic defects to look at"):
            learnt_from(tmp_path / "renamed.png", (pasted / name).read_bytes())


def test_synthetic_pictures_only_train(parts: Path, pasted: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(parts, both)
    for path in (pasted / "scratch").glob("*.png"):
        shutil.copy(path, both / "scratch" / path.name)
    before, dataset = read_dataset(parts), read_dataset(both)
    made = [sample for sample in dataset.samples if sample.synthetic is not None]
    assert len(made) == 12
    assert all(sample in dataset.splits["train"] for sample in made)
    for split in ("validation", "test"):
        assert [item.name for item in dataset.splits[split]] == [item.name for item in before.splits[split]]
    assert not any(sample.synthetic for sample in calibration_set(dataset.splits["train"], 2, 96, 0))
    assert not any(sample.synthetic for sample in pictures_of(dataset, ALL))
    digests = {name: facts.sha256[:12] for name, facts in dataset.facts.items()}
    for fold in folds(dataset, 3, 0):
        assert not any(sample.synthetic for sample in fold.test)
        tested = {digests[sample.name] for sample in fold.test}
        assert not any(tested & set(sample.synthetic or ()) for sample in fold.train)


def test_each_fold_makes_its_own_from_what_it_trains_on(parts: Path, pasted: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(parts, both)
    for path in (pasted / "scratch").glob("*.png"):
        shutil.copy(path, both / "scratch" / path.name)
    real = read_dataset(both)
    seen: list[set[str]] = []

    def trained(request: Request) -> Path:
        """In place of a training: looks at what it would get."""
        splits = request.dataset.splits
        digests = {item.name: real.facts[item.name].sha256[:12] for item in real.samples}
        held_out = {digests[item.name] for part in ("validation", "test") for item in splits[part]}
        made = [item for item in splits["train"] if item.synthetic is not None]
        assert made
        assert not any(held_out & set(item.synthetic or ()) for item in made)
        assert not any(item.synthetic for part in ("validation", "test") for item in splits[part])
        seen.append({item.name for item in made})
        request.out.mkdir(parents=True, exist_ok=True)
        (request.out / "metrics.json").write_text('{"test_int8": {"auroc": 0.9}}', encoding="utf-8")
        return request.out / "none.bundle"

    said: list[str] = []
    way = ("cut-and-paste", 4)
    request = Request(real, tmp_path / "out", "parts", "1", 1.0, 0, synthesis=way, say=said.append)
    cross_validate(request, 3, 0, synthesizing(trained))
    # Kept features go by a picture's name: those of one fold must not be taken for another's.
    assert len(set.union(*seen)) == sum(map(len, seen)) == 12
    assert len([line for line in said if "12 of 12 synthetic pictures are left out" in line]) == 3
    with pytest.raises(DatasetError, match=r"holds folds of a training with other options"):
        cross_validate(replace(request, synthesis=None), 3, 0, trained)


def test_a_training_with_pictures_of_its_own_ends_in_a_bundle(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["train", str(parts), "--out", str(out), "--preset", "plain-b", "--epochs", "1", "--allow-regression"]
    command.append("--no-plain")
    more = [*command, "--synthesize", "cut-and-paste", "--synthesize-count", "3"]
    assert main(more) == 0
    assert (out / "classifier.bundle").is_file()
    assert "making 3 pictures of each of scratch: cut-and-paste" in capsys.readouterr().out
    # Where the pictures were lost while they were made anew, the same command goes on.
    shutil.rmtree(out / "synthetic")
    (out / "classifier.bundle").unlink()
    assert main(more) == 0
    assert "going on with the stage of quantization" in capsys.readouterr().out
    assert main(command) == 1
    assert "holds a training with synthetic pictures; give the same --synthesize" in capsys.readouterr().err
    assert main([*more[:-1], "4"]) == 1
    assert "holds a training with other synthetic pictures (cut-and-paste, 3 of each class)" in capsys.readouterr().err


def test_what_needs_no_mask_trains_without_one(tmp_path: Path) -> None:
    bare = write_masked_parts(tmp_path / "bare", good=12, scratch=12)
    for mask in (bare / "scratch").glob("*_mask.png"):
        mask.unlink()
    dataset = read_dataset(bare)
    more = add_to_training(dataset, "procedural", 3, 0, tmp_path / "out", lambda _: None)
    assert len(more.splits["train"]) == len(dataset.splits["train"]) + 3
    # A bundle names the real pictures that it was trained on; synthetic ones are never asked for.
    assert training_record(more)[DIGESTS] == training_record(dataset)[DIGESTS]
    with pytest.raises(DatasetError, match="take --synthesize procedural, which draws defects and needs none"):
        add_to_training(dataset, "cut-and-paste", 3, 0, tmp_path / "out", lambda _: None)


def test_a_synthetic_picture_that_is_to_test_is_refused(parts: Path, pasted: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(parts, both)
    name = "synthetic-cut-and-paste-00001.png"
    shutil.copy(pasted / "scratch" / name, both / "scratch" / name)
    real = [f"{path.parent.name}/{path.name},train" for path in both.rglob("0*.png") if "_mask" not in path.name]
    (both / "split.csv").write_text("\n".join(["file,split", *real[1:], f"{real[0][:-5]}test", f"scratch/{name},test"]))
    with pytest.raises(DatasetError, match=rf"split\.csv: scratch/{name} is synthetic and stands in test"):
        read_dataset(both)
    for split in ("train", "test"):
        shutil.copytree(parts, tmp_path / "split" / split)
    shutil.copy(pasted / "scratch" / name, tmp_path / "split" / "test" / "scratch" / name)
    with pytest.raises(DatasetError, match=rf"{name} is synthetic and stands in test"):
        read_dataset(tmp_path / "split")


def test_what_was_made_from_a_held_out_picture_is_left_out(parts: Path, pasted: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(parts, both)
    dataset = read_dataset(parts)
    tested = dataset.facts[dataset.splits["test"][0].name].sha256
    name = "synthetic-by-hand-00001.png"
    pixels = read_pixels(next((pasted / "scratch").glob("synthetic-*1.png")))
    (both / "scratch" / name).write_bytes(encode(pixels, {"method": "by hand"}, [tested]))
    found = read_dataset(both)
    assert not any(sample.synthetic for sample in found.samples)
    (problem,) = (one for one in found.problems if one.kind == "leak" and "made from" in one.what)
    assert dataset.splits["test"][0].name in problem.what


def test_a_mark_outlives_a_new_name_and_a_name_without_a_mark_is_no_use(tmp_path: Path) -> None:
    data = encode(np.zeros((4, 5), np.uint8), {"method": "gan"}, ["a" * 64])
    assert learnt_from(tmp_path / "real.png", data) == ("a" * 12,)
    plain = cv2.imencode(".png", np.zeros((4, 5), np.uint8))[1].tobytes()
    assert learnt_from(tmp_path / "real.png", plain) is None
    with pytest.raises(DatasetError, match="does not say what it was made from"):
        learnt_from(tmp_path / "synthetic-1.png", plain)
    colour = encode(np.dstack([np.full((4, 5), value, np.uint8) for value in (10, 20, 30)]), {}, [])
    (tmp_path / "colour.png").write_bytes(colour)
    assert read_pixels(tmp_path / "colour.png", 3)[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--class", "dent"], "--class dent: there are scratch"),
        (["--good", "fine"], "has no class 'fine'"),
    ],
)
def test_orders_that_cannot_be_carried_out_are_refused(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    assert synthesize(parts, tmp_path / "out", *options) == 1
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_copied_pictures_train_beside_masks_of_another_format(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    grey = rng.integers(60, 200, (8, 40, 48)).astype(np.uint8)
    for label in ("good", "bad"):
        (tmp_path / label).mkdir()
        for number, pixels in enumerate(grey):
            cv2.imwrite(str(tmp_path / label / f"{number}.jpg"), pixels if label == "bad" else 255 - pixels)
            if label == "bad":
                cv2.imwrite(str(tmp_path / label / f"{number}.png"), np.where(pixels > 190, 255, 0).astype(np.uint8))
    # Fewer than there are masks: a lone PNG would be taken for a mask whose picture is lost.
    for number in range(2):
        name = tmp_path / "bad" / f"synthetic-drawn-{number}"
        name.with_suffix(".png").write_bytes(encode(grey[number] // 2, {}, ["0" * 64]))
        cv2.imwrite(f"{name}_mask.png", np.full((40, 48), 255, np.uint8))
    dataset = read_dataset(tmp_path)
    made = [sample for sample in dataset.samples if sample.synthetic is not None]
    assert [sample.mask is not None for sample in made] == [True, True]
    assert {sample.name for sample in made} <= {sample.name for sample in dataset.splits["train"]}
    assert not [problem for problem in dataset.problems if "mask without" in str(problem)]


@pytest.mark.parametrize("option", ["--count", "--minutes"])
def test_nothing_to_make_is_refused(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        synthesize(parts, tmp_path / "out", option, "0")
    assert ended.value.code == 2
    assert f"argument {option}: '0': must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_few_defects_or_no_masks_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = write_masked_parts(tmp_path / "few", good=12, scratch=2)
    assert synthesize(few, tmp_path / "out") == 1
    assert "training pictures say where they show scratch; at least 3 are needed" in capsys.readouterr().err
    # Two long scratches are cut into many windows, and are two all the same.
    for number in range(2):
        pixels, drawn = np.full((400, 400), 120, np.uint8), np.zeros((400, 400), np.uint8)
        cv2.line(drawn, (20, 30 + number), (380, 350), 255, 3)
        cv2.line(pixels, (20, 30 + number), (380, 350), 40, 3)
        cv2.imwrite(str(few / "scratch" / f"{number:03}.png"), pixels)
        cv2.imwrite(str(few / "scratch" / f"{number:03}_mask.png"), drawn)
    rows = [f"scratch/{number:03}.png,train" for number in range(2)]
    rows += [f"good/{number:03}.png,{('train', 'validation', 'test')[number % 3]}" for number in range(12)]
    (few / "split.csv").write_text("\n".join(["file,split", *rows]), encoding="utf-8")
    assert synthesize(few, tmp_path / "out") == 1
    assert "2 training pictures say where they show scratch; at least 3 are needed" in capsys.readouterr().err
    bare = write_masked_parts(tmp_path / "bare", good=12, scratch=12)
    for mask in (bare / "scratch").glob("*_mask.png"):
        mask.unlink()
    assert synthesize(bare, tmp_path / "out") == 1
    assert "say neither by a mask nor by a box where the defect is; draw a mask" in capsys.readouterr().err
    assert synthesize(bare, tmp_path / "out", "--method", "classical") == 1
    assert "or take the method procedural, which needs none" in capsys.readouterr().err
    assert synthesize(bare, bare / "out") == 1
    assert "lies inside of" in capsys.readouterr().err


def test_drawn_scratches_need_no_real_defect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = write_masked_parts(tmp_path / "few", good=12, scratch=3, colour=True)
    cv2.imwrite(str(few / "scratch" / "000_mask.png"), np.zeros((7, 9), np.uint8))
    assert synthesize(few, tmp_path / "more", "--method", "procedural", "--count", "5") == 0
    assert "1 file cannot be used: station-export data" in capsys.readouterr().out
    assert (tmp_path / "more" / "sheet.png").is_file()
    data = write_masked_parts(tmp_path / "data", good=12, scratch=6)
    assert synthesize(data, tmp_path / "out", "--method", "procedural", "--count", "5") == 0
    masks = [read_mask(path) for path in (tmp_path / "out" / "scratch").glob("*_mask.png")]
    assert len(masks) == 5
    assert all(mask.any() for mask in masks)
    record = json.loads((tmp_path / "out" / "synthesis.json").read_text(encoding="utf-8"))
    assert record["quality"]["scratch"]["copies"] == 0
    # Too few to tell one distribution from another.
    assert record["quality"]["scratch"]["kid"] is None


def a_marked(name: str, pixels: Pixels, mask: Mask) -> Marked:
    return Marked(Sample(name, Path(name), *no_boxes(), group=name, label=1), pixels, mask, 1, True)


def ragged(seed: int) -> tuple[Floats, Mask]:
    """A defect of its own: what it changes, and where."""
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.normal(0, 1, (48, 48)).astype(np.float32), (0, 0), 3)
    y, x = np.mgrid[:48, :48] - 24
    _, pieces = cv2.connectedComponents((field / field.std() - np.hypot(x, y) / 9 > -1).astype(np.uint8))
    mask = pieces == np.bincount(pieces[pieces > 0]).argmax()
    texture = cv2.GaussianBlur(rng.normal(0, 1, (48, 48)).astype(np.float32), (0, 0), 1.5)
    return np.asarray(mask * (40 + 12 * texture / texture.std()), np.float32), np.asarray(mask, np.bool_)


def put_at(change: Floats, mask: Mask, seed: int, strength: float) -> tuple[Marked, Pixels]:
    """The defect somewhere on a grained surface of its own, and that surface."""
    rng = np.random.default_rng(seed)
    ground = np.clip(rng.normal(130, 2, (120, 140)), 0, 255).astype(np.uint8)
    top, left = (int(value) for value in rng.integers(4, 60, 2))
    where = np.zeros(ground.shape, np.bool_)
    where[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    pixels = ground.astype(np.float32)
    pixels[top : top + mask.shape[0], left : left + mask.shape[1]] -= strength * change
    return a_marked(f"on {seed}", np.clip(pixels, 0, 255).astype(np.uint8), where), ground


@given(st.integers(0, 2**16), st.integers(0, 7), st.floats(0.7, 1.3), st.floats(0.85, 1.2))
@settings(max_examples=25)
def test_a_copy_is_known_on_any_surface_in_any_form_and_another_defect_is_none(
    seed: int, form: int, strength: float, size: float
) -> None:
    change, mask = ragged(seed)
    real, _ = put_at(change, mask, seed + 1, 1.0)
    turned_change, turned_mask = (np.rot90(field, form % 4) for field in (change, mask.astype(np.float32)))
    if form >= 4:
        turned_change, turned_mask = turned_change[:, ::-1], turned_mask[:, ::-1]
    edge = round(48 * size)
    resized = [cv2.resize(np.ascontiguousarray(field), (edge, edge)) for field in (turned_change, turned_mask)]
    copy, ground = put_at(np.asarray(resized[0], np.float32), resized[1] > 0.5, seed + 2, strength)
    other, other_ground = put_at(*ragged(seed + 70_000), seed + 3, 1.0)
    copied = compare([real], [(copy, ground)], 0)
    unlike = compare([real], [(other, other_ground)], 0)
    assert copied is not None
    assert unlike is not None
    # Resized once more, fine structure blurs; an unlike defect stays far below.
    assert copied.likeness > 0.8
    assert unlike.likeness < 0.75
    # A mask under which nothing is changed is no defect to compare.
    assert compare([real], [(replace(other, pixels=other_ground), other_ground)], 0) is None
    assert copied.real_ones_alike == 0
    # The same defect is not found in its own part where that does not count.
    own = whole_defects(real)
    assert nearest(own, own).likeness[0] == pytest.approx(1, abs=1e-4)
    assert nearest(own, own, of_another_part=True).likeness[0] == 0


def test_boxes_give_coco_with_boxes_around_the_masks(tmp_path: Path) -> None:
    source = write_masked_parts(tmp_path / "source", good=8, scratch=10)
    data = tmp_path / "yolo"
    (data / "images").mkdir(parents=True)
    (data / "labels").mkdir()
    (data / "classes.txt").write_text("scratch\n", encoding="utf-8")
    for path in source.rglob("0*.png"):
        if path.stem.endswith("_mask"):
            continue
        name = f"{path.parent.name}{path.stem}"
        shutil.copy(path, data / "images" / f"{name}.png")
        rows = []
        if path.parent.name == "scratch":
            left, top, right, bottom = boxes_of(read_mask(path.with_name(f"{path.stem}_mask.png")))[0] / SIDE_PX
            rows = [f"0 {(left + right) / 2} {(top + bottom) / 2} {right - left} {bottom - top}"]
        (data / "labels" / f"{name}.txt").write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "out"
    assert synthesize(data, out, "--method", "cut-and-paste", "--count", "6") == 0
    written = json.loads((out / "annotations.json").read_text(encoding="utf-8"))
    assert len(written["images"]) == 6
    by_picture = {image["id"]: image["file_name"] for image in written["images"]}
    for annotation in written["annotations"]:
        left, top, width, height = (int(value) for value in annotation["bbox"])
        mask = read_mask(out / "masks" / by_picture[annotation["image_id"]].replace(".png", "_mask.png"))
        inside = mask[top : top + height, left : left + width]
        # The box touches its defect on each side.
        assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_a_synthetic_picture_without_its_boxes_does_not_train_as_a_good_part(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    grey = rng.integers(60, 200, (13, 40, 48)).astype(np.uint8)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.txt").write_text("scratch\n", encoding="utf-8")
    for number, pixels in enumerate(grey[:12]):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), pixels)
        rows = "0 .5 .5 .2 .2" if number % 2 else ""
        (tmp_path / "labels" / f"{number}.txt").write_text(rows, encoding="utf-8")
    made = tmp_path / "images" / "synthetic-drawn-00001.png"
    made.write_bytes(encode(grey[12], {}, ["0" * 64]))
    dataset = read_dataset(tmp_path)
    assert not any(sample.synthetic for sample in dataset.samples)
    (told,) = (one for one in dataset.problems if one.severity == "error")
    assert str(told).startswith("error: images/synthetic-drawn-00001.png: is synthetic and shows a defect, but has no")
    (tmp_path / "labels" / "synthetic-drawn-00001.txt").write_text("0 .5 .5 .2 .2", encoding="utf-8")
    (sample,) = (sample for sample in read_dataset(tmp_path).splits["train"] if sample.synthetic is not None)
    assert len(sample.classes) == 1


def test_a_folder_to_calibrate_on_holds_no_synthetic_picture(tmp_path: Path) -> None:
    pixels = np.full((16, 16), 90, np.uint8)
    cv2.imwrite(str(tmp_path / "0.png"), pixels)
    assert read_folder(tmp_path, 1)[0] == ("0.png",)
    (tmp_path / "renamed.png").write_bytes(encode(pixels, {"method": "gan"}, ["0" * 64]))
    with pytest.raises(DatasetError, match=r"renamed\.png: is synthetic; only real pictures set the ranges"):
        read_folder(tmp_path, 1)


@given(st.integers(0, 2**32 - 1), st.integers(24, 120), st.integers(24, 120), st.floats(16, 200))
@settings(max_examples=60)
def test_a_defect_changes_its_mask_and_nothing_else(seed: int, height: int, width: int, side: float) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(40, 200, (height, width), np.uint8)

    def draw(ground: Floats, _: np.random.Generator) -> Drawn:
        y, x = np.mgrid[: ground.shape[0], : ground.shape[1]] / ground.shape[0] - 0.5
        alpha = (np.hypot(x, y) < 0.3).astype(np.float32)[..., None]
        return Drawn(alpha, np.full_like(ground, 0.2))

    put = put_defects(pixels, draw, [side], Variation(each=1), rng)
    if put is None:
        return
    result, mask = put
    changed = np.abs(result.astype(int) - pixels) > 1
    # The strength falls off over the scale of the patch; half of it is where the mask ends.
    reach = int(np.ceil(side / 64)) + 2
    near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
    assert mask.any()
    assert not (changed & ~near).any()
    assert (result[mask] > pixels[mask]).mean() > 0.9


def test_a_square_is_cut_where_it_says(parts: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8)[None, :].repeat(64, axis=0)
    same = cut(pixels, 0, 0, 64)[..., 0] * 255
    assert np.abs(same - pixels).max() < 0.01
    right = cut(pixels, 10, 0, 64)[..., 0] * 255
    assert np.abs(right[:, :50] - pixels[:, 10:60]).max() < 0.01
    dataset = read_dataset(parts)
    patches = cut_patches(read_marked(dataset.splits["train"], [1], 1), 0)
    for patch in patches:
        inside, outside = patch.pixels[patch.mask > 0.9], patch.ground[patch.mask > 0.9]
        assert inside.mean() - outside.mean() > 0.15


def test_the_kernel_distance_is_zero_for_one_distribution_and_grows_with_the_shift() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(0, 1, (200, 8)), rng.normal(0, 1, (200, 8))
    near, far = squared_mmd(first, second), squared_mmd(first, second + 1)
    assert abs(near) < 0.1
    assert far > 1


def edge_piece(shift: int) -> tuple[Pixels, Mask]:
    """A plate with a dark notch at its upper edge."""
    pixels = np.full((80, 90), 150, np.uint8)
    mask = np.zeros(pixels.shape, np.bool_)
    mask[:10, 30 + shift : 50 + shift] = True
    pixels[mask] = 60
    return pixels, mask


@given(st.integers(0, 2**32 - 1), st.integers(40, 150), st.integers(40, 150), st.integers(0, 20))
@settings(max_examples=60)
def test_a_whole_defect_stays_at_its_edge_and_keeps_its_strength(seed: int, height: int, width: int, at: int) -> None:
    pixels, mask = edge_piece(at)
    sample = Sample("a", Path("a"), *no_boxes(), group="a", label=1)
    (piece,) = cut_pieces([Marked(sample, pixels, mask, 1, True)])
    put = put_pieces(
        np.full((height, width), 140, np.uint8), [piece], None, Variation(each=1), np.random.default_rng(seed)
    )
    assert put is not None
    result, spot = put
    rows = np.flatnonzero(spot.any(axis=1))
    assert rows[0] == 0 or rows[-1] == height - 1
    assert 140 - 90 * 1.35 < result[spot].mean() < 140 - 90 * 0.6
    near = cv2.dilate(spot.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
    assert (result[~near] == 140).all()


def test_a_painted_shape_is_bent_and_its_paint_is_put_where_it_is() -> None:
    pixels, mask = edge_piece(0)
    sample = Sample("a", Path("a"), *no_boxes(), group="a", label=1)
    pieces = cut_pieces([Marked(sample, pixels, mask, 1, True)])

    def bright(ground: Floats, strength: Floats, drawn: Floats, _: np.random.Generator) -> Floats:
        assert strength.shape == drawn.shape == (*ground.shape[:2], 1)
        return np.full_like(ground, 0.2)

    put = put_pieces(np.full((100, 100), 100, np.uint8), pieces, bright, Variation(each=1), np.random.default_rng(3))
    assert put is not None
    assert (put[0][put[1]] > 110).all()
    shape = soften(mask.astype(np.float32)[..., None])
    assert not np.array_equal(bent(shape, 3.0, np.random.default_rng(0)), shape)
    assert np.array_equal(bent(shape, 0.0, np.random.default_rng(0)), shape)


@pytest.mark.parametrize(
    ("recalls", "picked"),
    [
        ({NONE: [0.5, 0.5, 0.5], "classical": [0.6, 0.5, 0.5]}, "classical"),
        ({NONE: [0.5, 0.5, 0.5], "classical": [0.9, 0.9, 0.4]}, NONE),
        ({NONE: [0.5, 0.5, 0.5], "classical": [0.51, 0.51, 0.51]}, NONE),
        ({NONE: [0.5, 0.5, 0.5], "classical": [0.6, 0.6, 0.6], "procedural": [0.7, 0.6, 0.6]}, "procedural"),
        ({NONE: [0.5, 0.5, 0.5], "classical": [0.6, 0.6, 0.6], "procedural": [0.9, 0.9, 0.4]}, "classical"),
    ],
)
def test_a_way_that_harms_in_one_fold_is_not_picked(recalls: dict[str, list[float]], picked: str) -> None:
    assert decide(recalls) == picked


@given(st.integers(0, 2**32 - 1), st.sampled_from([-1.0, 1.0]), st.integers(12, 40))
@settings(max_examples=40)
def test_a_sketch_says_where_in_a_wide_mask_the_line_runs(seed: int, sign: float, column: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((60, 60, 1), np.float32)
    mask[5:55, column - 4 : column + 6] = 1
    difference = rng.normal(0, 0.02, mask.shape).astype(np.float32)
    difference[:, column : column + 2] += 0.3 * sign
    drawn = sketch(difference, mask)
    assert set(np.unique(drawn)) <= {-1.0, 0.0, 1.0}
    assert (drawn[5:55, column : column + 2] == sign).all()
    assert not drawn[..., 0][:, : column - 1].any()
    assert not drawn[..., 0][:, column + 3 :].any()
    assert not drawn[mask == 0].any()
    assert not sketch(np.zeros_like(mask), mask).any()
    assert not sketch(difference, np.zeros_like(mask)).any()


def test_a_long_crack_is_bent_and_not_torn() -> None:
    mask = np.zeros((300, 20, 1), np.float32)
    mask[8:292, 9:12] = 1
    for seed in range(10):
        seen = bent(mask, Variation().bend_px, np.random.default_rng(seed))[..., 0] > 0
        assert seen[30:270].any(axis=1).mean() > 0.9
