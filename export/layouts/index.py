"""Every picture below a folder, to be found by path, by name or by stem: what label files name is rarely exact."""

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from export.layouts.files import walk
from export.pictures import is_picture
from export.samples import Problem


class PictureIndex:
    """The pictures below a folder; remembers which have been asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pictures = [path for path in walk(root) if is_picture(path)]
        self._by_path = {_normal(path.relative_to(root).as_posix()): path for path in self.pictures}
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in self.pictures:
            self._by_name.setdefault(_normal(path.name), []).append(path)
            self._by_stem.setdefault(_normal(path.stem), []).append(path)
        self._used: set[Path] = set()

    def find(self, name: str, near: Sequence[Path]) -> Path | None:
        """The picture that a label file means.

        Args:
            name: as it stands in the label file; folders in it may be those of another machine.
            near: folders to look in first, in this order.

        Returns:
            The picture at that path in one of the folders; else the only one of that name; else the only one of that
            stem; else None.
        """
        asked = _normal(name.replace("\\", "/")).lstrip("/")
        bare = asked.rsplit("/", 1)[-1]
        for folder in near:
            for tail in (asked, bare):
                place = _normal((folder / tail).relative_to(self.root).as_posix()) if folder != self.root else tail
                if place in self._by_path:
                    return self._take(self._by_path[place])
        named = self._by_name.get(bare, [])
        if not named:
            named = self._by_stem.get(bare.rsplit(".", 1)[0] if "." in bare else bare, [])
        if len(named) > 1:
            named = [path for path in named if path.parent in near] or named
        return self._take(named[0]) if len(named) == 1 else None

    def unused(self, what: str) -> Iterator[Problem]:
        """An error for each picture that no label file has named."""
        for path in self.pictures:
            if path not in self._used:
                yield Problem(path.relative_to(self.root).as_posix(), what, "error", "unlabelled")

    def _take(self, path: Path) -> Path:
        self._used.add(path)
        return path


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
