"""Whether a synthetic defect is a copy of a real one, wherever it was put.

Compared is what a defect changes: its difference from the ground it stands on, within its mask. A real defect that was
pasted onto another surface changes the same, though most of what is seen around it is another surface. Two defects are
laid onto each other in all eight forms, in some sizes and at all shifts, and are as alike as the largest correlation
of their fine structure says: 1 is the same up to strength, form, size and place. (Normalized cross-correlation; Lewis,
Vision Interface 1995.) Smooth shading is left out, in which any two dark spots are alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from export.synthesis.patches import PATCH_PX, Floats, Marked, cut, cut_field, paint_over, pieces_of, soften, squares_of
from station.messages import Pixels

COPY_FROM = 0.9
"""From this likeness on a defect is called a copy."""

SIZES = (0.84, 0.92, 1.0, 1.09, 1.19)
"""Around the size at which the longer side of both is the same: an edge of the picture may have cut one of them."""

FINE_PX = 3.0
"""What a Gaussian of this deviation leaves is shading, in pixels of the square."""

LOOKED_AT = 64
"""Synthetic defects that are compared with all real ones."""

MARGIN = 1.25
LEAST_SIDE_PX = 16
_RIM_PX = 7


@dataclass(frozen=True, slots=True, eq=False)
class Defect:
    """One whole defect, or a window of a large one, in a square.

    Attributes:
        pixels: float32 `[64, 64, channels]`, 0..1: how it looks, with what is around it.
        changes: float32 `[sizes, 64, 64]`: what it changes, in each of `SIZES`; the middle one is that of `pixels`.
        group: the part that shows it.
    """

    pixels: Floats
    changes: Floats
    group: str


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """For each defect that was asked for the one that it is most like.

    Attributes:
        index: int `[n]`, into those that it was compared with.
        likeness: float `[n]`, 0..1; 0 where there was none to compare with, or none that is alike at all.
    """

    index: npt.NDArray[np.int64]
    likeness: npt.NDArray[np.float64]

    @property
    def copies(self) -> float:
        """Share of those that are a copy."""
        return float((self.likeness >= COPY_FROM).mean()) if len(self.likeness) else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Copied:
    """How like real defects the synthetic ones are.

    Attributes:
        likeness: median over synthetic defects, each with the real one that it is most like.
        copies: share of them that are copies.
        real_ones_alike: share of the real defects that would be called a copy of another part's.
        made, real: `[n, 64, 64, channels]`: the synthetic ones, the most alike first, and what each is most like.
    """

    likeness: float
    copies: float
    real_ones_alike: float
    made: Floats
    real: Floats


def compare(real: Sequence[Marked], made: Sequence[tuple[Marked, Pixels | None]], seed: int) -> Copied | None:
    """Look for copies of real defects of one class; None where on either side nothing changes its picture.

    Args:
        real: all that was learnt from.
        made: synthetic pictures, each with its ground where that is known.
        seed: as of `cut_patches`; of more than `LOOKED_AT` defects some are drawn.
    """
    rng = np.random.default_rng(seed)
    wholes = [defect for one in real for defect in whole_defects(one)]
    known = [*wholes, *(defect for one in real for defect in windows_of_defects(one, seed))]
    asked = _some([defect for picture, ground in made for defect in whole_defects(picture, ground)], rng)
    if not asked or not known:
        return None
    found = nearest(asked, known)
    order = np.argsort(-found.likeness)
    return Copied(
        likeness=float(np.median(found.likeness)),
        copies=found.copies,
        real_ones_alike=nearest(_some(wholes, rng), known, of_another_part=True).copies,
        made=np.stack([asked[index].pixels for index in order]),
        real=np.stack([known[found.index[index]].pixels for index in order]),
    )


def whole_defects(picture: Marked, ground: Pixels | None = None) -> list[Defect]:
    """Each defect of a picture.

    Args:
        picture: what is looked at.
        ground: the picture without its defects; None: guessed from around them.
    """
    change = _change(picture, ground)
    found = []
    for piece in pieces_of(picture.mask):
        rows, columns = np.nonzero(piece)
        side = MARGIN * max(int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1, LEAST_SIDE_PX)
        own = change * cv2.dilate(piece.astype(np.uint8), np.ones((_RIM_PX, _RIM_PX), np.uint8))
        middle = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
        found += _defect(picture, own, middle, side)
    return found


def windows_of_defects(picture: Marked, seed: int) -> list[Defect]:
    """The squares that a network learnt a picture's defects from, as `cut_patches` cuts them."""
    change = _change(picture, None)
    found = []
    for left, top, side in squares_of(picture, seed):
        found += _defect(picture, change, (left + side / 2, top + side / 2), side)
    return found


def nearest(asked: Sequence[Defect], known: Sequence[Defect], *, of_another_part: bool = False) -> Nearest:
    """Find for each defect the known one that it is most like.

    Args:
        asked: for these.
        known: among these.
        of_another_part: those of the same group do not count.
    """
    index = np.zeros(len(asked), np.int64)
    likeness = np.zeros(len(asked))
    spectra = [np.fft.rfft2(one.changes[len(SIZES) // 2]) for one in asked]
    for number, one in enumerate(known):
        turned = np.conj(np.fft.rfft2(_forms(one.changes)))
        for at, spectrum in enumerate(spectra):
            if of_another_part and asked[at].group == one.group:
                continue
            most = float(np.fft.irfft2(spectrum * turned, s=(PATCH_PX, PATCH_PX)).max())
            if most > likeness[at]:
                index[at], likeness[at] = number, most
    return Nearest(index, likeness)


def _change(picture: Marked, ground: Pixels | None) -> Floats:
    """`[height, width]`: what the defects change."""
    without = paint_over(picture.pixels, picture.mask) if ground is None else ground
    difference = picture.pixels.astype(np.float32) - without
    flat = difference if difference.ndim == 2 else difference.mean(axis=2)  # noqa: PLR2004
    if ground is not None:
        # All that was changed is the defect, and it was put there softly.
        return np.asarray(flat, np.float32)
    return np.asarray(flat * soften(picture.mask.astype(np.float32)[..., None])[..., 0], np.float32)


def _defect(picture: Marked, change: Floats, middle: tuple[float, float], side: float) -> list[Defect]:
    """The defect in the square; none where it changes nothing."""
    changes = []
    for size in SIZES:
        edge = size * side
        seen = cut_field(change, middle[0] - edge / 2, middle[1] - edge / 2, edge)
        fine = seen - cv2.GaussianBlur(seen, (0, 0), FINE_PX)
        length = float(np.linalg.norm(fine))
        if length == 0:
            return []
        changes.append(fine / np.float32(length))
    square = cut(picture.pixels, middle[0] - side / 2, middle[1] - side / 2, side)
    return [Defect(square, np.stack(changes), picture.sample.group)]


def _forms(fields: Floats) -> Floats:
    """Fields `[n, edge, edge]` mirrored and in quarter turns: `[8 n, edge, edge]`."""
    turns = [np.rot90(fields, quarter, (1, 2)) for quarter in range(4)]
    return np.concatenate([*turns, *(turn[:, :, ::-1] for turn in turns)])


def _some(defects: Sequence[Defect], rng: np.random.Generator) -> list[Defect]:
    return [defects[index] for index in rng.permutation(len(defects))[:LOOKED_AT]]
