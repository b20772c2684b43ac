"""COCO: a JSON file with `images`, `annotations` (`bbox`: left, top, width, height) and `categories`.

::

    DIR/annotations/train.json        DIR/train/_annotations.coco.json        DIR/annotations.json
    DIR/annotations/val.json          DIR/train/*.jpg                         DIR/images/*.jpg
    DIR/train/*.jpg, DIR/val/*.jpg    DIR/valid/…

Several files are splits, told by the file's or its folder's name. A picture without annotations has no defects.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from export.layouts.files import SPLIT_NAMES, files_in, folders_in
from export.layouts.index import PictureIndex
from export.samples import DatasetError, Listing, Problem, Sample, Split

_TELLING_NAME = re.compile(r"annot|coco|instances", re.IGNORECASE)
_BOX_VALUES = 4


def find(root: Path) -> Mapping[Path, Mapping[str, Any]]:
    """The COCO files in a folder and in the folders below it, parsed.

    Raises:
        DatasetError: a file that by its name should be one is no JSON.
    """
    found = {}
    for path in (path for folder in (root, *folders_in(root)) for path in files_in(folder)):
        if path.suffix.lower() != ".json":
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as exc:
            if _TELLING_NAME.search(path.name):
                raise DatasetError(f"{path}: is no JSON: {exc}") from exc
            continue
        if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations")):
            found[path] = content
    return found


def read(root: Path, files: Mapping[Path, Mapping[str, Any]]) -> Listing:
    """Read the files that `find` gave.

    Raises:
        DatasetError: an entry is not what COCO says, or several files do not tell which split they are.
    """
    index = PictureIndex(root)
    splits: dict[str, Split] = {}
    problems: list[Problem] = []
    names = _category_names(files)
    labels = tuple(dict.fromkeys(names.values()))
    samples: dict[str, Sample] = {}
    for path, content in files.items():
        split = _split_of(root, path)
        if split is None and len(files) > 1:
            raise DatasetError(f"{path}: does not tell its split; call it train.json, val.json or test.json")
        for sample in _read_file(root, path, content, index, names, labels, problems):
            if sample.name in samples:
                raise DatasetError(f"{path}: {sample.name} stands in two entries; each picture needs exactly one")
            samples[sample.name] = sample
            if split is not None:
                splits[sample.name] = split
    problems += index.unused("no COCO file names it; left out")
    return Listing(root, "COCO", labels, list(samples.values()), splits, problems)


def _read_file(
    root: Path,
    path: Path,
    content: Mapping[str, Any],
    index: PictureIndex,
    names: Mapping[int, str],
    labels: Sequence[str],
    problems: list[Problem],
) -> list[Sample]:
    listed = path.relative_to(root).as_posix()
    boxes: dict[int, list[tuple[list[float], int]]] = {}
    files: dict[int, str] = {}
    for position, image in enumerate(content["images"]):
        if not isinstance(image, dict) or not _is_id(image.get("id")) or not isinstance(image.get("file_name"), str):
            raise DatasetError(f"{path}: images[{position}]: expected an id and a file_name")
        if files.setdefault(image["id"], image["file_name"]) != image["file_name"]:
            raise DatasetError(f"{path}: images[{position}]: the id {image['id']} is taken by another picture")
        boxes[image["id"]] = []
    for position, annotation in enumerate(content["annotations"]):
        where = f"annotations[{position}]"
        if not isinstance(annotation, dict) or not _is_id(annotation.get("category_id")):
            raise DatasetError(f"{path}: {where}: expected an image_id, a category_id and a bbox")
        box = _box(annotation)
        if box is None:
            raise DatasetError(f"{path}: {where}: expected bbox: left, top, width, height in pixels")
        if annotation["category_id"] not in names:
            raise DatasetError(f"{path}: {where}: category_id {annotation['category_id']} is in no category")
        if annotation.get("image_id") not in boxes:
            problems.append(
                Problem(listed, f"{where}: image_id {annotation.get('image_id')!r} is no image", "error", "label")
            )
            continue
        boxes[annotation["image_id"]].append((box, labels.index(names[annotation["category_id"]])))
    samples = []
    for number, file in files.items():
        picture = index.find(file, _places(root, path))
        if picture is None:
            problems.append(Problem(listed, f"its picture {file} is missing", "error", "label"))
            continue
        name = picture.relative_to(root).as_posix()
        rows = np.array([box for box, _ in boxes[number]], np.float32).reshape(-1, 4)
        classes = np.array([label for _, label in boxes[number]], np.int64)
        samples.append(Sample(name, picture, rows, classes, name))
    return samples


def _box(annotation: Mapping[str, Any]) -> list[float] | None:
    """Left, top, right, bottom; from the outline where there is no box."""
    box = annotation.get("bbox")
    if _numbers(box) and len(box) == _BOX_VALUES:
        left, top, width, height = (float(value) for value in box)
        return [left, top, left + width, top + height]
    outline = annotation.get("segmentation")
    if not box and isinstance(outline, list) and outline and all(_numbers(part) and len(part) > 1 for part in outline):
        xs = [float(value) for part in outline for value in part[0::2]]
        ys = [float(value) for part in outline for value in part[1::2]]
        return [min(xs), min(ys), max(xs), max(ys)]
    return None


def _numbers(values: Any) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value) for value in values
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _category_names(files: Mapping[Path, Mapping[str, Any]]) -> dict[int, str]:
    """Category id → name, by id, of those that occur: exporters add one for the whole set that nothing uses."""
    names: dict[int, str] = {}
    used: set[int] = set()
    for path, content in files.items():
        categories = content.get("categories")
        if not isinstance(categories, list):
            raise DatasetError(f"{path}: has no list of categories")
        for position, category in enumerate(categories):
            if (
                not isinstance(category, dict)
                or not _is_id(category.get("id"))
                or not isinstance(category.get("name"), str)
            ):
                raise DatasetError(f"{path}: categories[{position}]: expected an id and a name")
            if names.setdefault(category["id"], category["name"]) != category["name"]:
                raise DatasetError(
                    f"{path}: category {category['id']} is {category['name']!r} here and {names[category['id']]!r} "
                    "elsewhere"
                )
        for annotation in content["annotations"]:
            if isinstance(annotation, dict) and _is_id(annotation.get("category_id")):
                used.add(annotation["category_id"])
    return {number: names[number] for number in sorted(names) if number in used}


def _split_of(root: Path, path: Path) -> Split | None:
    words = re.split(r"[\W_\d]+", path.stem.lower())
    if path.parent != root:
        words.append(path.parent.name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _places(root: Path, path: Path) -> list[Path]:
    """Where a COCO file's pictures usually stand."""
    places = [path.parent, path.parent / "images"]
    for word in (path.stem, *re.split(r"[\W_]+", path.stem)):
        places += [root / word, root / "images" / word]
    return [*places, root / "images", root]
