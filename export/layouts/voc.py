"""Pascal VOC: an XML file for each picture, with `object/name` and `object/bndbox`.

::

    DIR/Annotations/*.xml                  DIR/train/*.jpg, *.xml        DIR/*.jpg, *.xml
    DIR/JPEGImages/*.jpg                   DIR/valid/…
    DIR/ImageSets/Main/train.txt …

Corners count from 1 and belong to the box (VOC2012 development kit, `VOCreadrecxml.m`); in a set where some corner is
0 they are taken to count from 0, as several labelling tools write them. An XML file with a document type is refused:
entities could grow without bound.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from export.layouts.files import SPLIT_NAMES, read_lines, walk
from export.layouts.index import PictureIndex
from export.samples import DatasetError, Listing, Problem, Sample, Split

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_HEAD_BYTES = 4096


def find(root: Path) -> list[Path]:
    """The XML files below that hold an annotation."""
    return [path for path in walk(root) if path.suffix.lower() == ".xml" and b"<annotation" in _head(path)]


def read(root: Path, files: list[Path]) -> Listing:
    """Read the files that `find` gave.

    Raises:
        DatasetError: a file is no XML, or an object has no name or no box.
    """
    index = PictureIndex(root)
    problems: list[Problem] = []
    found: dict[str, tuple[Path, Path, list[tuple[str, list[float]]]]] = {}
    for path in files:
        tree = parse(path)
        objects = [_object(path, number, item) for number, item in enumerate(tree.iter("object"), start=1)]
        listed = (tree.findtext("filename") or "").strip()
        near = [path.parent, path.parent.parent / "JPEGImages", path.parent.parent / "images", root / "images"]
        # The XML file's own name is the surer one: files are renamed, and what stands inside stays.
        picture = index.find(path.stem, near) or (index.find(listed, near) if listed else None)
        if picture is None:
            name = path.relative_to(root).as_posix()
            problems.append(Problem(name, f"its picture {listed or path.stem} is missing", "error", "label"))
            continue
        name = picture.relative_to(root).as_posix()
        if name in found:
            raise DatasetError(f"{path}: {name} is described by {found[name][0]}, too; each picture needs exactly one")
        found[name] = path, picture, objects
    labels = tuple(sorted({label for _, _, objects in found.values() for label, _ in objects}))
    first = 0.0 if any(min(box) < 1 for _, _, objects in found.values() for _, box in objects) else 1.0
    samples = []
    for name, (_, picture, objects) in found.items():
        boxes_px = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
        boxes_px[:, :2] -= first
        classes = np.array([labels.index(label) for label, _ in objects], np.int64)
        samples.append(Sample(name, picture, boxes_px, classes, name))
    problems += index.unused("has no XML file; left out")
    splits = dict(_splits(root, {name: path for name, (path, _, _) in found.items()}))
    if len(splits) != len(samples):
        if splits:
            unlisted = next(name for name in found if name not in splits)
            raise DatasetError(f"{root}: {unlisted} stands in no list of ImageSets and no folder of a split")
        splits = {}
    return Listing(root, "Pascal VOC", labels, samples, splits, problems)


def parse(path: Path) -> Element:
    """The root of an XML file.

    Raises:
        DatasetError: the file cannot be read, is no XML, or has a document type.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise DatasetError(f"{path}:{parser.CurrentLineNumber}: a document type (<!DOCTYPE …>) is not allowed here")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read: {exc.strerror}") from exc
    except expat.ExpatError as exc:
        raise DatasetError(f"{path}:{exc.lineno}: is no XML: {expat.ErrorString(exc.code)}") from exc
    return builder.close()


def _object(path: Path, number: int, item: Element) -> tuple[str, list[float]]:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise DatasetError(f"{path}: object {number}: expected a name")
    try:
        box = [float(item.findtext(f"bndbox/{corner}") or "") for corner in _CORNERS]
    except ValueError:
        box = []
    if not box or not np.isfinite(box).all():
        raise DatasetError(f"{path}: object {number}: expected bndbox with {', '.join(_CORNERS)} in pixels")
    return name, box


def _splits(root: Path, files: dict[str, Path]) -> Iterator[tuple[str, Split]]:
    """By the lists of ImageSets/Main, else by a folder of a split's name."""
    by_stem: dict[str, Split] = {}
    for folder in (root / "ImageSets" / "Main", root / "ImageSets"):
        for listing in sorted(folder.glob("*.txt")):
            if split := SPLIT_NAMES.get(listing.stem.lower()):
                words = (line.split() for line in read_lines(listing))
                by_stem |= {row[0]: split for row in words if row}
    for name, path in files.items():
        parts = [part.lower() for part in path.relative_to(root).parts[:-1]]
        if by_stem:
            if path.stem in by_stem:
                yield name, by_stem[path.stem]
        elif split := next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), None):
            yield name, split


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            # Without the zeros of UTF-16.
            return stream.read(_HEAD_BYTES).replace(b"\0", b"")
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read: {exc.strerror}") from exc
