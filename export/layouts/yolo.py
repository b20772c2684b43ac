"""YOLO: a text file for each picture, a line a defect: class, middle x, middle y, width, height, as parts of 1.

::

    DIR/data.yaml                    names: [scratch, dent]
    DIR/images/train/*.jpg           DIR/train/images/*.jpg       DIR/*.jpg
    DIR/labels/train/*.txt           DIR/train/labels/*.txt       DIR/*.txt
    DIR/images/val/…                 DIR/valid/…                  DIR/classes.txt

The names of the classes stand in `data.yaml` (or another YAML file with `names`), `classes.txt` or `obj.names`. Splits
are told by `train`, `val` and `test` in the YAML file, else by the folders' names. A line with more than five numbers
is an outline, and becomes the box around it. A picture without a text file has no defects.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.layouts.files import SPLIT_NAMES, files_in, folders_in, read_lines, walk
from export.layouts.index import PictureIndex
from export.samples import DatasetError, Listing, Problem, Sample, Split

NAMES_FILES = ("classes.txt", "obj.names", "classes.names")
OUTSIDE_AT_MOST = 0.001
"""By how much rounding may carry a box out of its picture."""

_BOX_NUMBERS = 5
_LEAST_OUTLINE_NUMBERS = 7


@dataclass(frozen=True, slots=True)
class Description:
    """What a YAML file of YOLO's says.

    Attributes:
        names: of the classes, by index.
        places: split → folders or list files, as written.
        path: folder that the places start from, as written.
    """

    names: tuple[str, ...]
    places: Mapping[Split, tuple[str, ...]]
    path: str = ""


def recognize(root: Path) -> bool:
    """Whether text files hold labels: beside a YAML file with names or a list of names, or in a folder `labels`."""
    named = bool(_yaml_file(root) or _names_file(root))
    return any(
        (named or "labels" in (part.lower() for part in path.relative_to(root).parts[:-1])) and _is_label(path)
        for path in walk(root)
        if path.suffix.lower() == ".txt" and path.name not in NAMES_FILES
    )


def read(root: Path) -> Listing:
    """Read the names, the pictures and their label files.

    Raises:
        DatasetError: a line cannot be read, a class has no name, or a place that the YAML file names is missing.
    """
    yaml, names_file = _yaml_file(root), _names_file(root)
    description = parse_yaml(yaml) if yaml else Description((), {})
    names = description.names
    if not names and names_file:
        names = tuple(line.strip() for line in read_lines(names_file) if line.strip())
    index = PictureIndex(root)
    problems: list[Problem] = []
    splits = _splits(root, yaml, description, index, problems)
    used: set[Path] = {path for path in (names_file,) if path}
    samples = []
    highest = -1
    for picture in index.pictures:
        name = picture.relative_to(root).as_posix()
        label_file = _label_file(root, picture)
        if label_file is None:
            problems.append(Problem(name, "has no label file; taken to be without defects", "note", "unlabelled"))
            boxes, classes = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        else:
            used.add(label_file)
            boxes, classes = parse_labels(label_file, len(names) or None)
        highest = max(highest, int(classes.max(initial=-1)))
        samples.append(Sample(name, picture, boxes, classes, name))
    if not names:
        names = tuple(f"class {number}" for number in range(highest + 1))
        problems.append(
            Problem("", "the classes have no names; write them into classes.txt, one a line", "warning", "label")
        )
    lists = {(root / place).resolve() for places in description.places.values() for place in places}
    problems += [
        Problem(path.relative_to(root).as_posix(), "a label file without its picture", "error", "label")
        for path in walk(root)
        if path.suffix.lower() == ".txt" and path not in used and path.resolve() not in lists and _is_label(path)
    ]
    if splits and len(splits) < len(samples):
        problems += [
            Problem(sample.name, "stands in no split; left out", "error", "unlabelled")
            for sample in samples
            if sample.name not in splits
        ]
        samples = [sample for sample in samples if sample.name in splits]
    return Listing(root, "YOLO", names, samples, splits, problems, relative_boxes=True)


def parse_labels(path: Path, labels: int | None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Boxes (left, top, right, bottom as parts of 1) and classes of a label file.

    Args:
        path: the file.
        labels: number of classes; None where it is not known.

    Raises:
        DatasetError: a line is not a class and a box or an outline within the picture.
    """
    boxes: list[list[float]] = []
    classes: list[int] = []
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if not words:
            continue
        try:
            label, values = int(words[0]), np.array([float(word) for word in words[1:]])
        except ValueError:
            label, values = -1, np.zeros(0)
        box = _box(values)
        if box is None or label < 0 or (labels is not None and label >= labels):
            classes_known = f"0 to {labels - 1}" if labels else "a whole number"
            raise DatasetError(
                f"{path}:{number}: expected class x y width height, class {classes_known}, the others 0 to 1, "
                f"found {line.strip()!r}"
            )
        boxes.append(box)
        classes.append(label)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64)


def parse_yaml(path: Path) -> Description:
    """Read `names`, `path`, `train`, `val` and `test` of a YAML file.

    This is not all of YAML: a key starts its line; a value is plain, quoted, a list `[a, b]`, a mapping `{0: a}`, or
    follows on indented lines as `- a` or `0: a`. YOLO's files are written so.

    Raises:
        DatasetError: the file has no names, or they are not numbered from 0 without a gap.
    """
    found: dict[str, list[tuple[str | None, str]]] = {}
    key = ""
    for line in read_lines(path):
        text = _without_comment(line).rstrip()
        if not text.strip() or text.strip() in ("---", "..."):
            continue
        if match := re.match(r"^([A-Za-z_][\w-]*)\s*:(?:\s+(.*))?$", text):
            key = match[1].lower()
            found[key] = list(_flow(match[2] or ""))
        elif key and text[0] in " \t-":
            found[key] += _flow(text.strip().removeprefix("- "))
    names = found.get("names", [])
    numbers = [number for number, _ in names]
    if not names or (any(numbers) and [str(index) for index in range(len(names))] != numbers):
        raise DatasetError(f"{path}: expected names of the classes, as a list or numbered from 0")
    places: dict[Split, tuple[str, ...]] = {}
    for word in ("train", "val", "valid", "validation", "test"):
        if values := tuple(value for _, value in found.get(word, []) if value):
            places[SPLIT_NAMES[word]] = values
    base = found.get("path", [])
    return Description(tuple(value for _, value in names), places, base[0][1] if base else "")


def _flow(text: str) -> Iterator[tuple[str | None, str]]:
    """Entries of a value that stands on one line: (key or None, value)."""
    text = text.strip()
    if text[:1] in ("[", "{"):
        text = text[1:].rstrip().rstrip("]}")
        parts = re.findall(r"""(?:[^,"']|"[^"]*"|'[^']*')+""", text)
    else:
        parts = [text] if text else []
    for part in parts:
        if not part.strip():
            continue
        if match := re.match(r"""^\s*["']?(\d+)["']?\s*:\s*(.+)$""", part):
            yield match[1], _plain(match[2])
        else:
            yield None, _plain(part)


def _plain(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def _without_comment(line: str) -> str:
    """YAML's comments start at a # after white space, outside of quotes."""
    match = re.match(r"""^((?:[^"'#]|"[^"]*"|'[^']*'|(?<=\S)[#"'])*)(?:(?<=\s)#.*|^#.*)?$""", line)
    return match[1] if match else line


def _box(values: npt.NDArray[np.float64]) -> list[float] | None:
    if len(values) == _BOX_NUMBERS - 1:
        x, y, width, height = values
        box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    elif len(values) >= _LEAST_OUTLINE_NUMBERS - 1 and len(values) % 2 == 0:
        box = [values[0::2].min(), values[1::2].min(), values[0::2].max(), values[1::2].max()]
    else:
        return None
    low, high = -OUTSIDE_AT_MOST, 1 + OUTSIDE_AT_MOST
    # False for NaN, too.
    inside = low <= box[0] < box[2] <= high and low <= box[1] < box[3] <= high
    return [float(np.clip(value, 0, 1)) for value in box] if inside else None


def _yaml_file(root: Path) -> Path | None:
    for path in files_in(root):
        if path.suffix.lower() in (".yaml", ".yml") and any(line.startswith("names") for line in read_lines(path)):
            return path
    return None


def _names_file(root: Path) -> Path | None:
    places = [root, *(folder for folder in folders_in(root) if folder.name.lower() in ("labels", "train", "data"))]
    return next(
        (folder / name for folder in places for name in NAMES_FILES if (folder / name).is_file()),
        None,
    )


def _label_file(root: Path, picture: Path) -> Path | None:
    """Beside the picture, or where the last folder `images` of its path is called `labels`."""
    parts = list(picture.relative_to(root).parts)
    places = [picture.with_suffix(".txt")]
    for at in range(len(parts) - 2, -1, -1):
        if parts[at].lower() == "images":
            places.insert(0, root.joinpath(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt"))
            break
    else:
        places.append((root / "labels").joinpath(*parts).with_suffix(".txt"))
    return next((place for place in places if place.is_file()), None)


def _is_label(path: Path) -> bool:
    """Whether a text file looks like labels and not like a read-me."""
    first = next((line.split() for line in read_lines(path) if line.strip()), [])
    return len(first) >= _BOX_NUMBERS and all(re.fullmatch(r"-?[\d.]+(e-?\d+)?", word) for word in first)


def _splits(
    root: Path, yaml: Path | None, description: Description, index: PictureIndex, problems: list[Problem]
) -> dict[str, Split]:
    if description.places and yaml:
        return dict(_places(root, yaml, description, index, problems))
    splits = {}
    for picture in index.pictures:
        relative = picture.relative_to(root)
        parts = [part.lower() for part in relative.parts[:-1]]
        if split := next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), None):
            splits[relative.as_posix()] = split
    return splits


def _places(
    root: Path, yaml: Path, description: Description, index: PictureIndex, problems: list[Problem]
) -> Iterator[tuple[str, Split]]:
    for split, places in description.places.items():
        for place in places:
            found = _resolve(root, description.path, place)
            if found is None:
                if split == "train":
                    raise DatasetError(f"{yaml}: {split}: {place} is missing")
                problems.append(
                    Problem(yaml.relative_to(root).as_posix(), f"{split}: {place} is missing", "warning", "label")
                )
                continue
            if found.is_dir():
                inside = [picture for picture in index.pictures if picture.is_relative_to(found)]
            else:
                rows = (line.strip() for line in read_lines(found))
                named = [(row, index.find(row, [root, found.parent])) for row in rows if row]
                lost = next((row for row, picture in named if picture is None), None)
                if lost is not None:
                    raise DatasetError(f"{found}: its picture {lost} is missing")
                inside = [picture for _, picture in named if picture is not None]
            for picture in inside:
                yield picture.relative_to(root).as_posix(), split


def _resolve(root: Path, base: str, place: str) -> Path | None:
    """A place of the YAML file; folders of another machine and leading ../ are dropped step by step."""
    parts = [part for part in Path(place).parts if part not in ("..", ".", "/")]
    bases = [root / base, root]
    for start in range(len(parts)):
        for folder in bases:
            found = folder.joinpath(*parts[start:])
            if found.exists() and found.resolve().is_relative_to(root.resolve()):
                return root / found.resolve().relative_to(root.resolve())
    return None
