"""What the layouts share: walking a folder, names of splits, text files."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from export.pictures import is_picture
from export.samples import DatasetError, Problem, Split

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""What the splits are called in folders, lists and tables, in lower case."""

CONTROL_FILES = frozenset({"groups.csv", "split.csv"})

_JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "__pycache__"})
_DOCUMENTS = frozenset({".md", ".rst", ".pdf", ".html", ".htm"})
_DOCUMENT_STEMS = ("readme", "license", "licence", "source", "copying", "changelog")


def walk(root: Path) -> Iterator[Path]:
    """Every file below a folder in the order of the names; hidden files and what desktops leave behind are passed over.

    Links to folders are followed, each folder once. A folder that holds a bundle is the result of a training, and is
    passed over, too.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    seen: set[str] = set()

    def refused(exc: OSError) -> None:
        raise DatasetError(f"{exc.filename}: cannot be listed: {exc.strerror}") from exc

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refused):
        real = os.path.realpath(folder)
        result = Path(folder) != root and any(file.endswith(".bundle") for file in files)
        if real in seen or result:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        for name in sorted(files):
            if not _is_junk(name):
                yield Path(folder, name)


def folders_in(root: Path) -> list[Path]:
    """The folders directly below a folder, by name."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not _is_junk(path.name))


def files_in(folder: Path) -> list[Path]:
    """The files directly in a folder, by name, without what `walk` passes over."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not _is_junk(path.name))


def has_pictures(folder: Path) -> bool:
    """Whether a picture stands somewhere below."""
    return any(is_picture(path) for path in walk(folder))


def strangers(root: Path, files: Sequence[Path]) -> list[Problem]:
    """A note for each file that is neither a picture nor something that belongs beside pictures."""
    return [
        Problem(path.relative_to(root).as_posix(), "is no picture; passed over", "note", "ignored")
        for path in files
        if path.name.lower() not in CONTROL_FILES
        and path.suffix.lower() not in _DOCUMENTS
        and not path.stem.lower().startswith(_DOCUMENT_STEMS)
    ]


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file, with or without a byte-order mark.

    Raises:
        DatasetError: the file is missing or no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise DatasetError(f"{path}: is not UTF-8 text: byte {exc.start}") from exc


def _is_junk(name: str) -> bool:
    return name.startswith((".", "~$")) or name.lower() in _JUNK
