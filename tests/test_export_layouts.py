"""Every layout of labelled pictures, as it stands on disk, and every way in which it is broken."""

import contextlib
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled_folders import picture, write_classes, write_mask, write_pictures
from PIL import Image

from export.dataset import read_dataset
from export.layouts import voc, yolo
from export.layouts.folders import is_good_name
from export.pictures import read_mask, read_pixels, read_sample
from export.samples import Dataset, DatasetError, Split


def kinds(dataset: Dataset) -> Counter[str]:
    return Counter(problem.kind for problem in dataset.problems)


def names(dataset: Dataset, split: Split) -> set[str]:
    return {sample.name for sample in dataset.splits[split]}


@pytest.mark.parametrize(
    ("name", "good"),
    [
        *((name, True) for name in ("good", "OK", "MT_Free", "01_ok", "normal parts", "noDefect", "no_defects")),
        *((name, True) for name in ("defect-free", "uncracked", "Non-Defective", "crack free", "without damage")),
        *((name, False) for name in ("not ok", "bad", "ng", "crack", "cracked", "MT_Blowhole", "defective")),
        *((name, False) for name in ("scratch", "abnormal", "not defect-free", "book", "no good")),
    ],
)
def test_good_is_told_by_the_name(name: str, good: bool) -> None:
    assert is_good_name(name) is good


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    write_classes(tmp_path, good=20, scratch=10)
    write_pictures(tmp_path, ["scratch/deeper/Größe 1.PNG", "good/good000.jpg", "scratch/good000.jpg"])
    for junk in (".hidden.png", "good/Thumbs.db", "good/.DS_Store", "__MACOSX/good/x.png", "README.md"):
        (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / junk).write_bytes(b"x")
    dataset = read_dataset(tmp_path)
    assert dataset.labels == ("good", "scratch")
    assert dataset.good_label == "good"
    labels = {sample.name: sample.label for sample in dataset.samples}
    assert labels["scratch/deeper/Größe 1.PNG"] == 1
    assert labels["scratch/good000.jpg"] == 1
    # A PNG beside a picture of another format and the same name is its mask.
    masks = {sample.name: sample.mask for sample in dataset.samples if sample.mask}
    assert masks == {"good/good000.jpg": tmp_path / "good/good000.png"}
    assert len(labels) == 20 - 1 + 10 + 3
    assert not dataset.problems


def test_the_good_class_can_be_named(tmp_path: Path) -> None:
    write_classes(tmp_path, a=4, b=4)
    assert read_dataset(tmp_path).good_label is None
    assert read_dataset(tmp_path, good_label="b").good == 1
    with pytest.raises(DatasetError, match=r"has no class 'c'; its classes are a, b"):
        read_dataset(tmp_path, good_label="c")


def test_folders_for_the_splits_are_obeyed(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("valid", 3), ("test", 2)):
        write_classes(tmp_path / split, good=count, bad=count)
    dataset = read_dataset(tmp_path)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {
        "train": 16,
        "validation": 6,
        "test": 4,
    }
    assert dataset.labels == ("bad", "good")
    write_classes(tmp_path, more=2)
    with pytest.raises(DatasetError, match=r"folders for splits \(test, train, valid\).*other folders.*more"):
        read_dataset(tmp_path)


def test_good_parts_with_defects_to_test(tmp_path: Path) -> None:
    write_classes(tmp_path, good=20)
    write_classes(tmp_path / "test", crack=4, good=2)
    dataset = read_dataset(tmp_path)
    assert {sample.label for sample in dataset.splits["train"]} == {dataset.good}
    assert [len(samples) for samples in dataset.splits.values()] == [17, 3, 6]
    (tmp_path / "good").rename(tmp_path / "test" / "more")
    with pytest.raises(DatasetError, match="holds test but no folder train"):
        read_dataset(tmp_path)


def test_a_train_folder_alone_is_no_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", good=20, bad=20)
    dataset = read_dataset(tmp_path)
    assert all(dataset.splits.values())
    assert dataset.split_by.startswith("drawn")


def test_the_layout_of_mvtec(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", good=20)
    write_classes(tmp_path / "test", good=4, crack=3)
    for index in range(3):
        write_mask(tmp_path / f"ground_truth/crack/crack{index:03}_mask.png")
    write_mask(tmp_path / "ground_truth/crack/lost_mask.png")
    dataset = read_dataset(tmp_path)
    assert dataset.good_label == "good"
    assert {dataset.labels[sample.label or 0] for sample in dataset.splits["train"]} == {"good"}
    assert len(dataset.splits["validation"]) == 3
    assert "validation drawn from train" in dataset.split_by
    masked = [sample for sample in dataset.splits["test"] if sample.mask]
    assert [sample.name for sample in masked] == [f"test/crack/crack{index:03}.png" for index in range(3)]
    assert masked[0].mask is not None
    assert read_mask(masked[0].mask).sum() == 16
    assert [str(problem) for problem in dataset.problems] == [
        "error: ground_truth/crack/lost_mask.png: a mask without its picture; left out"
    ]


def test_one_folder_around_everything_is_entered(tmp_path: Path) -> None:
    write_classes(tmp_path / "unpacked", good=5, bad=5)
    assert read_dataset(tmp_path).labels == ("bad", "good")
    assert read_dataset(write_classes(tmp_path / "alone", good=12)).labels == ("good",)


def test_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    write_classes(tmp_path, good=12, bad=12)
    (tmp_path / "good/empty.png").write_bytes(b"")
    (tmp_path / "good/text.png").write_bytes(b"no picture")
    whole = (tmp_path / "good/good000.png").read_bytes()
    (tmp_path / "good/cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "good/again.png").write_bytes(whole)
    (tmp_path / "good/other class.png").write_bytes((tmp_path / "bad/bad001.png").read_bytes())
    (tmp_path / "loose.png").write_bytes(whole)
    (tmp_path / "good/table.xlsx").write_bytes(b"x")
    (tmp_path / "nothing").mkdir()
    write_mask(tmp_path / "bad/bad000_mask.png", width=10)
    for name in ("bad/bad002", "good/good002"):
        write_mask(tmp_path / f"{name}_mask.png", value=0)
    dataset = read_dataset(tmp_path)
    assert dataset.labels == ("bad", "good")
    listed = {problem.file: (problem.kind, problem.severity) for problem in dataset.problems}
    assert listed == {
        "good/empty.png": ("empty", "error"),
        "good/text.png": ("broken", "error"),
        "good/cut.png": ("broken", "error"),
        "good/good000.png": ("duplicate", "warning"),
        "good/other class.png": ("contradiction", "warning"),
        "loose.png": ("unlabelled", "error"),
        "good/table.xlsx": ("ignored", "note"),
        "nothing": ("empty", "warning"),
        "bad/bad000_mask.png": ("mask", "error"),
        # Of a good part it is right.
        "bad/bad002_mask.png": ("mask", "warning"),
    }
    used = {sample.name: sample for sample in dataset.samples}
    assert used["bad/bad000.png"].mask is None
    assert used["bad/bad002.png"].mask is None
    assert used["good/good002.png"].mask is not None
    # The same file never stands in two splits.
    assert used["good/again.png"].group == used["good/good000.png"].group
    assert used["good/other class.png"].group == used["bad/bad001.png"].group
    assert not {"good/empty.png", "good/text.png", "good/cut.png"} & set(used)


def test_a_mask_without_its_picture_is_no_picture(tmp_path: Path) -> None:
    write_classes(tmp_path / "endings", good=12, bad=6)
    write_mask(tmp_path / "endings/bad/gone_mask.png")
    # As MagneticTile: pictures are JPEG, masks PNG.
    write_pictures(tmp_path / "formats", [f"{label}/{index}.jpg" for label in ("good", "bad") for index in range(8)])
    for name in ("bad/0", "bad/1", "bad/gone"):
        write_mask(tmp_path / f"formats/{name}.png")
    for folder, lost, count in (("endings", "bad/gone_mask.png", 18), ("formats", "bad/gone.png", 16)):
        dataset = read_dataset(tmp_path / folder)
        assert [str(problem) for problem in dataset.problems] == [
            f"error: {lost}: a mask without its picture; left out"
        ]
        assert len(dataset.samples) == count
    # Where all are called so, it is what the pictures are called; a PNG among JPEG is a picture.
    write_pictures(tmp_path / "names", [f"{name}/{index}_label.png" for name in ("a", "b") for index in range(6)])
    write_pictures(tmp_path / "names", ["a/extra.png", "b/extra_label.jpg", "b/other_label.jpg"])
    (tmp_path / "names/a/extra.png").rename(tmp_path / "names/a/extra_label.png")
    dataset = read_dataset(tmp_path / "names")
    assert not dataset.problems
    assert len(dataset.samples) == 15


def test_nothing_that_can_be_used_is_an_error(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png", "b.png"])
    with pytest.raises(DatasetError, match=r"no known layout; its 2 pictures have no labels; expected one of"):
        read_dataset(tmp_path)
    (tmp_path / "good").mkdir()
    (tmp_path / "good/x.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"holds no picture that can be used; the first problem: error: "):
        read_dataset(tmp_path)


def test_a_list_of_names_does_not_make_yolo(tmp_path: Path) -> None:
    write_classes(tmp_path, good=5, bad=5)
    (tmp_path / "classes.txt").write_text("good\nbad\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("taken on a Monday\n", encoding="utf-8")
    (tmp_path / "old.bundle").write_bytes(b"")
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "folder per class"
    assert len(dataset.samples) == 10


def test_pictures_are_upright_and_eight_bits(tmp_path: Path) -> None:
    colours = np.zeros((10, 20, 3), np.uint8)
    colours[:5, :10] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x112] = 6
    image = Image.fromarray(colours)
    image.save(tmp_path / "turned.png", exif=exif)
    turned = read_pixels(tmp_path / "turned.png", 3)
    assert turned.shape == (20, 10, 3)
    assert turned[2, 7].tolist() == [0, 0, 255]
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    for name in ("cmyk.jpg", "palette.png", "alpha.png"):
        pixels = read_pixels(tmp_path / name, 3)
        assert pixels.shape == (10, 20, 3)
        assert np.abs(pixels[2, 2].astype(int) - (0, 0, 255)).max() < 12, name


def test_deep_pictures_are_scaled_by_one_depth(tmp_path: Path) -> None:
    for label in ("good", "bad"):
        (tmp_path / label).mkdir()
    for index in range(12):
        noise = np.random.default_rng(index).integers(0, 4096 if index else 1000, (12, 12), np.uint16)
        cv2.imwrite(str(tmp_path / ("good" if index % 2 else "bad") / f"{index}.tiff"), noise)
    dataset = read_dataset(tmp_path)
    dark = next(sample for sample in dataset.samples if sample.name == "bad/0.tiff")
    assert dark.bits == 12
    assert 55 < read_sample(dark).max() <= 62
    assert read_pixels(dark.picture).max() > 240
    assert dataset.channels == 1


def test_coco(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"train/{index}.jpg" for index in range(4)] + ["val/4.jpg", "val/unlisted.jpg"])
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    categories = [{"id": 0, "name": "all"}, {"id": 7, "name": "dent"}, {"id": 3, "name": "scratch"}]
    for split, numbers in (("train", range(4)), ("val", range(4, 5))):
        (annotations / f"instances_{split}.json").write_text(
            json.dumps(
                {
                    "images": [{"id": number, "file_name": f"{number}.jpg"} for number in numbers],
                    "annotations": [
                        {"image_id": number, "category_id": 3 if number % 2 else 7, "bbox": [2, 3, 10, 100]}
                        for number in numbers
                    ]
                    + [{"image_id": numbers[0], "category_id": 3, "segmentation": [[1, 1, 5, 1, 5, 4]]}]
                    + [{"image_id": 99, "category_id": 3, "bbox": [1, 1, 2, 2]}],
                    "categories": categories,
                }
            ),
            encoding="utf-8",
        )
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "COCO"
    assert dataset.labels == ("scratch", "dent")
    assert names(dataset, "validation") == {"val/4.jpg"}
    first = next(sample for sample in dataset.samples if sample.name == "train/0.jpg")
    assert first.boxes_px.tolist() == [[2, 3, 12, 16], [1, 1, 5, 4]]
    assert first.classes.tolist() == [1, 0]
    assert first.label is None
    assert kinds(dataset) == {"label": 2 + 5, "unlabelled": 1}
    (annotations / "instances_val.json").write_text("{", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"instances_val\.json: is no JSON"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": [{"id": 1}]}, r"images\[0\]: expected an id and a file_name"),
        ({"annotations": [{"image_id": 1, "category_id": 9, "bbox": [0, 0, 1, 1]}]}, "category_id 9 is in no category"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1]}]}, r"annotations\[0\]: expected bbox"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, None]}]}, "expected bbox"),
        ({"annotations": [3]}, r"annotations\[0\]: expected an image_id"),
        ({"categories": None}, "has no list of categories"),
        ({"categories": [{"id": "1", "name": "a"}]}, r"categories\[0\]: expected an id and a name"),
    ],
)
def test_a_broken_coco_entry_is_named(tmp_path: Path, change: dict[str, object], expected: str) -> None:
    write_pictures(tmp_path, ["1.png"])
    content = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(DatasetError, match=expected):
        read_dataset(tmp_path)


def annotation(*boxes: tuple[str, int, int, int, int], name: str = "x.jpg") -> str:
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for label, a, b, c, d in boxes
    )
    return f"<?xml version='1.0'?><annotation><filename>{name}</filename>{objects}</annotation>"


def test_pascal_voc(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"JPEGImages/{index}.jpg" for index in range(6)])
    (tmp_path / "Annotations").mkdir()
    for index in range(5):
        text = annotation(("dent", 1, 1, 10, 8)) if index else annotation()
        (tmp_path / f"Annotations/{index}.xml").write_text(text, encoding="utf-8")
    (tmp_path / "Annotations/gone.xml").write_text(annotation(name="gone.jpg"), encoding="utf-8")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("0\n1\n2\n", encoding="utf-8")
    (tmp_path / "ImageSets/Main/val.txt").write_text("3\n4\n", encoding="utf-8")
    dataset = read_dataset(tmp_path)
    assert dataset.labels == ("dent",)
    assert names(dataset, "validation") == {"JPEGImages/3.jpg", "JPEGImages/4.jpg"}
    boxes = {sample.name: sample.boxes_px.tolist() for sample in dataset.samples}
    # Corners count from 1 and belong to the box.
    assert boxes["JPEGImages/1.jpg"] == [[0, 0, 10, 8]]
    assert boxes["JPEGImages/0.jpg"] == []
    assert kinds(dataset) == {"label": 1, "unlabelled": 1}
    (tmp_path / "Annotations/1.xml").write_text(annotation(("dent", 0, 2, 10, 8)), encoding="utf-8")
    (again,) = (sample for sample in read_dataset(tmp_path).samples if sample.name == "JPEGImages/1.jpg")
    assert again.boxes_px.tolist() == [[0, 2, 10, 8]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', r"1\.xml:1: a document type"),
        ("<annotation><object></annotation>", r"1\.xml:1: is no XML"),
        (annotation(("", 1, 2, 3, 4)), r"1\.xml: object 1: expected a name"),
        ("<annotation><object><name>a</name></object></annotation>", r"object 1: expected bndbox"),
        (annotation(("a", 1, 2, 3, 4)).replace("<xmax>3", "<xmax>nan"), r"object 1: expected bndbox"),
    ],
)
def test_a_broken_xml_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    (tmp_path / "1.xml").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=expected):
        read_dataset(tmp_path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: f"<annotation>{text}".encode()))
def test_no_bytes_break_the_xml_reader(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes(content)
    with contextlib.suppress(DatasetError):
        voc.parse(path)


YAML = """\
# a comment
path: ../datasets/parts  # where it stood
train: ../train/images
val: valid/images
nc: 2
names: ['dent # 1', "scratch"]
"""


def test_yolo(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"train/images/{index}.jpg" for index in range(4)] + ["valid/images/5.jpg"])
    for index in range(3):
        label = tmp_path / f"train/labels/{index}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text(f"{index % 2} 0.5 0.5 0.25 0.5\n\n1 0.1 0.1 0.3 0.1 0.3 0.4\n", encoding="utf-8")
    (tmp_path / "train/labels/lost.txt").write_text("0 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    (tmp_path / "data.yaml").write_text(YAML, encoding="utf-8")
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "YOLO"
    assert dataset.labels == ("dent # 1", "scratch")
    assert names(dataset, "validation") == {"valid/images/5.jpg"}
    first = next(sample for sample in dataset.samples if sample.name == "train/images/0.jpg")
    assert first.boxes_px[0].tolist() == [9, 4, 15, 12]
    assert first.boxes_px[1] == pytest.approx([2.4, 1.6, 7.2, 6.4], abs=1e-4)
    assert first.classes.tolist() == [0, 1]
    assert Counter(problem.severity for problem in dataset.problems) == {"error": 1, "note": 2}
    (tmp_path / "train/labels/1.txt").write_text("0 0.5 0.5 0.1 0.1\n2 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"1\.txt:2: expected class x y width height, class 0 to 1"):
        read_dataset(tmp_path)


def test_yolo_beside_the_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"{index}.png" for index in range(8)])
    (tmp_path / "classes.txt").write_text("dent\n", encoding="utf-8")
    for index in range(8):
        (tmp_path / f"{index}.txt").write_text("0 0.5 0.5 0.5 0.5\n", encoding="utf-8")
    dataset = read_dataset(tmp_path)
    assert dataset.labels == ("dent",)
    assert all(sample.boxes_px.tolist() == [[6, 4, 18, 12]] for sample in dataset.samples)
    assert not dataset.problems


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", categories=("L", "N"), include_characters=" _-'#:"), min_size=1).map(
            lambda name: " ".join(name.split()) or "x"
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["flow", "block", "numbered"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
def test_names_survive_yaml(tmp_path: Path, written: list[str], form: str) -> None:
    quoted = [f'"{name}"' for name in written]
    text = {
        "flow": f"names: [{', '.join(quoted)}]  # all of them",
        "block": "names:\n" + "\n".join(f"  - {name}" for name in quoted),
        "numbered": "names:\n" + "\n".join(f"  {index}: {name}" for index, name in enumerate(quoted)),
    }[form]
    path = tmp_path / "data.yaml"
    path.write_text(f"nc: 3\n{text}\ntrain: images\n", encoding="utf-8")
    described = yolo.parse_yaml(path)
    assert list(described.names) == written
    assert described.places == {"train": ("images",)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=80)
@given(text=st.text(max_size=60) | st.lists(st.floats().map(str), max_size=8).map(" ".join))
def test_no_text_breaks_the_label_reader(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(text, encoding="utf-8")
    with contextlib.suppress(DatasetError):
        boxes, classes = yolo.parse_labels(path, 3)
        assert len(boxes) == len(classes)
        assert ((boxes >= 0) & (boxes <= 1)).all()


def test_a_mask_counts_every_value_but_zero(tmp_path: Path) -> None:
    assert read_mask(write_mask(tmp_path / "faint.png", value=1)).sum() == 16
    blue = np.zeros((8, 8, 3), np.uint8)
    blue[2, 2, 0] = 1
    cv2.imwrite(str(tmp_path / "blue.png"), blue)
    assert read_mask(tmp_path / "blue.png").sum() == 1
    assert picture(1).shape == (16, 24)


def test_the_layout_of_magnetic_tile(public_data: Path) -> None:
    dataset = read_dataset(public_data / "MagneticTile")
    assert dataset.good_label == "MT_Free"
    assert len(dataset.samples) == 1344
    # Four masks of uneven tiles mark nothing; so do those of good ones, where that is right.
    assert sum(sample.mask is not None for sample in dataset.samples) == 1344 - 4
    assert len({sample.group for sample in dataset.samples}) == 213
    assert {problem.kind for problem in dataset.problems} <= {"leak", "mask"}
    assert sum(problem.kind == "mask" for problem in dataset.problems) == 4
