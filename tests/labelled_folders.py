"""Labelled folders on disk: small ones of pictures that differ, so that no two are taken for the same part, and the
frame of larger ones that are drawn from public data.
"""

import csv
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from station.messages import Pixels


def picture(number: int, width: int = 24, height: int = 16) -> Pixels:
    """Grey noise of its own."""
    return np.random.default_rng(number).integers(0, 256, (height, width), np.uint8)


def write_picture(path: Path, number: int, width: int = 24, height: int = 16) -> Path:
    """A picture of that name; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, encoded = cv2.imencode(path.suffix.lower(), picture(number, width, height))
    assert done
    # OpenCV's own writer does not take every name.
    path.write_bytes(encoded.tobytes())
    return path


def write_pictures(root: Path, names: Iterable[str]) -> Path:
    """Different pictures at these paths below a folder."""
    for name in names:
        write_picture(root / name, zlib.crc32(str(root / name).encode()))
    return root


def write_classes(root: Path, **counts: int) -> Path:
    """A folder for each class with so many pictures."""
    return write_pictures(
        root, [f"{label}/{label}{index:03}.png" for label, count in counts.items() for index in range(count)]
    )


def write_mask(path: Path, width: int = 24, height: int = 16, value: int = 255) -> Path:
    """A mask with one defect."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((height, width), np.uint8)
    mask[4:8, 5:9] = value
    cv2.imwrite(str(path), mask)
    return path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into; it gets its name when all is written, so that what has the name is whole."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(folder)


def write_groups(folder: Path, groups: Iterable[tuple[str, str]]) -> None:
    """`groups.csv` of (file, group)."""
    with (folder / "groups.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "group"])
        table.writerows(groups)
