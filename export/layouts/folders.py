"""One folder a class; with or without masks, with or without folders for the splits.

::

    DIR/good/*.png            DIR/train/good/…          DIR/train/good/*.png              DIR/MT_Free/Imgs/*.jpg
    DIR/scratch/*.png         DIR/val/good/…            DIR/test/good/*.png               DIR/MT_Crack/Imgs/*.jpg, *.png
    DIR/dent/*.png            DIR/test/scratch/…        DIR/test/scratch/*.png
                                                        DIR/ground_truth/scratch/*_mask.png

The first is the plain form; the third is MVTec AD's, the fourth MagneticTile's. A class may hold further folders.
Classes beside a folder `test` alone (`good/`, `test/scratch/`) are trained on.

Masks are found in three places: `NAME_mask.png`, `NAME_label.png` or `NAME_gt.png` (any suffix) beside the picture;
`NAME.png` beside a picture of another format; and under `ground_truth/` or `masks/` at the same class and name.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from export.layouts.files import SPLIT_NAMES, files_in, folders_in, has_pictures, strangers, walk
from export.pictures import is_picture
from export.samples import DatasetError, Listing, Problem, Sample, Split, no_boxes
from export.synthesis.marks import PREFIX

MASK_FOLDERS = frozenset({"ground_truth", "ground_truths", "groundtruth", "mask", "masks"})
MASK_ENDINGS = ("_mask", "_label", "_gt")

_GOOD = frozenset(
    {
        "good",
        "ok",
        "okay",
        "normal",
        "free",
        "pass",
        "passed",
        "intact",
        "undamaged",
        "uncracked",
        "unbroken",
        "healthy",
        "clean",
        "flawless",
        "gut",
        "io",
    }
)
_NOT = frozenset(
    {
        "not",
        "no",
        "non",
        "un",
        "without",
        "ng",
        "bad",
    }
)
_FLAWS = frozenset(
    {
        "defect",
        "defects",
        "defective",
        "crack",
        "cracks",
        "cracked",
        "damage",
        "damaged",
        "anomaly",
        "anomalies",
        "anomalous",
        "fault",
        "faults",
        "flaw",
        "flaws",
        "issue",
        "issues",
    }
)
_GLUED = re.compile(r"^(no|non|un)(?=(defect|crack|damage|anomal|fault|flaw))")


def is_good_name(name: str) -> bool:
    """Whether a class name says "no defect".

    The name is cut into words at everything that is no letter and where a capital follows a small letter. It is good
    when one of the words is: good, ok, okay, normal, free, pass, passed, intact, undamaged, uncracked, unbroken,
    healthy, clean, flawless, gut, io; and none negates it (not, no, non, without, ng, bad). It is good, too, when a
    defect is negated: no_defect, non-cracked, undamaged, "without flaws", "defect-free".
    """
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word for word in re.split(r"[\W\d_]+", parted.lower()) if word]
    words = [piece for word in words for piece in _GLUED.sub(r"\1 ", word).split()]
    negated = any(word in _NOT for word in words)
    flawed = any(word in _FLAWS for word in words)
    praised = any(word in _GOOD for word in words)
    if flawed:
        return negated != ("free" in words)
    return praised and not negated


def find_good_label(labels: Sequence[str]) -> str | None:
    """The one label that says "no defect"; None where none or several do."""
    found = [label for label in labels if is_good_name(label)]
    return found[0] if len(found) == 1 else None


def recognize(root: Path) -> bool:
    """Whether pictures stand in folders below."""
    return any(has_pictures(folder) for folder in folders_in(root))


def read(root: Path) -> Listing:
    """Read class folders, split folders and masks.

    Raises:
        DatasetError: there is no class folder, or one stands on both sides of a split folder.
    """
    root = _unwrapped(root)
    mask_folders = [folder for folder in folders_in(root) if folder.name.lower() in MASK_FOLDERS]
    # A class may be called "mask"; it is one when nothing else holds pictures.
    if len(mask_folders) == len(folders_in(root)):
        mask_folders = []
    split_folders = _split_folders(root)
    classes = list(_class_folders(root, split_folders, mask_folders))
    problems = list(_unlabelled(root, split_folders))
    labels = tuple(sorted({label for label, _, folder in classes if has_pictures(folder)}))
    if not labels:
        raise DatasetError(f"{root}: holds no folder of pictures for a class; put each class into a folder of its own")
    samples: list[Sample] = []
    splits: dict[str, Split] = {}
    for label, split, folder in classes:
        pictures, masks, passed_over = _sorted_out(root, folder)
        problems += passed_over
        for picture in pictures:
            mask = masks.pop(picture, None) or _mask_elsewhere(picture, folder, label, split, mask_folders)
            name = picture.relative_to(root).as_posix()
            boxes_px, box_classes = no_boxes()
            samples.append(Sample(name, picture, boxes_px, box_classes, name, label=labels.index(label), mask=mask))
            if split:
                splits[name] = split
    problems += _lost_masks(root, mask_folders, {sample.mask for sample in samples if sample.mask})
    masked = any(sample.mask for sample in samples)
    layout = "folder per class, with masks" if masked else "folder per class"
    return Listing(root, layout, labels, samples, splits, problems)


def _unwrapped(root: Path) -> Path:
    """An unpacked archive often holds one folder with everything in it."""
    while True:
        inside = folders_in(root)
        if len(inside) != 1 or any(is_picture(path) for path in files_in(root)):
            return root
        (only,) = inside
        below = [folder for folder in folders_in(only) if has_pictures(folder)]
        named = only.name.lower() in SPLIT_NAMES or is_good_name(only.name)
        if named or len(below) < 2 or any(is_picture(path) for path in files_in(only)):  # noqa: PLR2004
            return root
        root = only


def _split_folders(root: Path) -> dict[Path, Split]:
    """Folders named like splits that hold class folders; all of the root's class folders are of this kind, or none."""
    return {
        folder: SPLIT_NAMES[folder.name.lower()]
        for folder in folders_in(root)
        if folder.name.lower() in SPLIT_NAMES and has_pictures(folder)
    }


def _class_folders(
    root: Path, split_folders: dict[Path, Split], mask_folders: Sequence[Path]
) -> Iterator[tuple[str, Split | None, Path]]:
    if not split_folders:
        for folder in folders_in(root):
            if folder not in mask_folders:
                yield folder.name, None, folder
        return
    beside = [
        folder
        for folder in folders_in(root)
        if folder not in split_folders and folder not in mask_folders and has_pictures(folder)
    ]
    if "train" in split_folders.values():
        if beside:
            raise DatasetError(
                f"{root}: holds folders for splits ({', '.join(sorted(path.name for path in split_folders))}) and "
                f"beside them other folders of pictures ({', '.join(path.name for path in beside)}); move these into a "
                f"split's folder or out of {root}"
            )
    elif not beside:
        raise DatasetError(
            f"{root}: holds {', '.join(sorted(path.name for path in split_folders))} but no folder train"
        )
    for folder in beside:
        yield folder.name, "train", folder
    for folder, split in split_folders.items():
        for inside in folders_in(folder):
            if inside.name.lower() not in MASK_FOLDERS:
                yield inside.name, split, inside


def _unlabelled(root: Path, split_folders: dict[Path, Split]) -> Iterator[Problem]:
    for folder in (root, *split_folders):
        files = files_in(folder)
        for path in files:
            if is_picture(path):
                name = path.relative_to(root).as_posix()
                yield Problem(name, "stands in no class's folder; move it into one, or away", "error", "unlabelled")
        yield from strangers(root, [path for path in files if not is_picture(path)])


def _sorted_out(root: Path, folder: Path) -> tuple[list[Path], dict[Path, Path], list[Problem]]:
    """The pictures of a class, the masks that stand beside them, and what is neither."""
    files = list(walk(folder))
    found = [path for path in files if is_picture(path)]
    by_place: dict[tuple[Path, str], list[Path]] = {}
    for path in found:
        by_place.setdefault((path.parent, path.stem), []).append(path)
    masks: dict[Path, Path] = {}
    problems = strangers(root, [path for path in files if not is_picture(path)])
    if not found:
        problems.append(
            Problem(folder.relative_to(root).as_posix(), "a class's folder without pictures", "warning", "empty")
        )
    for path in found:
        same = by_place[path.parent, path.stem]
        if path.suffix.lower() == ".png" and len(same) == 2:  # noqa: PLR2004
            masks[next(other for other in same if other != path)] = path
        for ending in MASK_ENDINGS:
            if path.stem.lower().endswith(ending):
                shown = by_place.get((path.parent, path.stem[: -len(ending)]), [])
                if len(shown) == 1:
                    masks[shown[0]] = path
    taken = set(masks.values())
    lost = _without_picture([path for path in found if path not in taken], taken)
    problems += [_lost(root, path) for path in found if path in lost]
    return [path for path in found if path not in taken | lost], masks, problems


def _without_picture(pictures: Sequence[Path], masks: set[Path]) -> set[Path]:
    """What is called as a mask is and stands where its picture should stand, in a class's folder.

    Where every picture is called so, it is what they are called. A PNG by itself is a mask when the other PNG files of
    the folder are masks of pictures in another format, unless it is called synthetic: those are PNG among all formats.
    """
    called = {path for path in pictures if path.stem.lower().endswith(MASK_ENDINGS)}
    lost = called if masks or len(called) < len(pictures) else set()
    others = [path for path in pictures if path not in lost]
    lone = {path for path in others if path.suffix.lower() == ".png" and not path.name.startswith(PREFIX)}
    of_another_format = sum(
        path.suffix.lower() == ".png" and not path.stem.lower().endswith(MASK_ENDINGS) for path in masks
    )
    return lost | lone if len(lone) < min(of_another_format, len(others)) else lost


def _mask_elsewhere(
    picture: Path, folder: Path, label: str, split: Split | None, mask_folders: Sequence[Path]
) -> Path | None:
    inside = picture.parent.relative_to(folder)
    for mask_folder in mask_folders:
        places = [mask_folder / label / inside]
        if split:
            places += [mask_folder / folder.parent.name / label / inside]
        for place in places:
            for ending in (*MASK_ENDINGS, ""):
                for suffix in (".png", picture.suffix, ".bmp", ".tif", ".tiff"):
                    mask = place / f"{picture.stem}{ending}{suffix}"
                    if mask.is_file():
                        return mask
    return None


def _lost_masks(root: Path, mask_folders: Sequence[Path], used: set[Path]) -> Iterator[Problem]:
    for mask_folder in mask_folders:
        for path in walk(mask_folder):
            if is_picture(path) and path not in used:
                yield _lost(root, path)


def _lost(root: Path, path: Path) -> Problem:
    return Problem(path.relative_to(root).as_posix(), "a mask without its picture; left out", "error", "mask")
