"""The frozen network's outputs for some views of each picture, computed once and kept in memory."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import keras
import numpy as np
import numpy.typing as npt

from export.dataset import Sample
from export.efficientnet import INPUT_SCALE, INPUT_ZERO_POINT
from export.views import Mask, ViewKnobs, cell_cover, random_view
from station.manifest import Preprocessing
from station.messages import Pixels
from station.preprocess import input_size, write_input

BATCH_AREA_PX = 8 * 224 * 224
SAY_EVERY_S = 10.0


class Picture(Protocol):
    """A sample in memory."""

    @property
    def sample(self) -> Sample:
        """Where it came from; its name is the key."""

    @property
    def pixels(self) -> Pixels:
        """`[height, width]` or `[height, width, 3]`."""

    @property
    def mask(self) -> Mask | None:
        """`[height, width]`, where somebody drew one."""


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """The network's outputs for one view.

    Attributes:
        fine: `[rows, columns, channels]` at an eighth of the resolution.
        coarse: `[rows / 2, columns / 2, channels]`.
        deep: `[rows / 4, columns / 4, channels]`; None where only the trunk's outputs are kept.
        cover: 1 in cells that the mask touches, `[rows, columns]`; None without a mask.
    """

    fine: npt.NDArray[np.float16]
    coarse: npt.NDArray[np.float16]
    deep: npt.NDArray[np.float16] | None
    cover: npt.NDArray[np.uint8] | None

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return sum(part.nbytes for part in (self.fine, self.coarse, self.deep, self.cover) if part is not None)


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    key: tuple[str, int]
    pixels: Pixels
    mask: Mask | None


class TapStore:
    """Keeps views by the sample's name and the view's number; view 0 is the picture as the station will see it."""

    def __init__(self, network: keras.Model, preprocessing: Preprocessing, knobs: ViewKnobs, seed: int) -> None:
        """Keep what a network of `build_trunk` or `build_features` puts out."""
        self._network = network
        self._preprocessing = preprocessing
        self._knobs = knobs
        self._seed = seed
        self._kept: dict[tuple[str, int], Taps] = {}
        self._bytes = 0

    @property
    def megabytes(self) -> float:
        """What is kept."""
        return self._bytes / 1e6

    def megabytes_of(self, pictures: Sequence[Picture], number: int) -> float:
        """What one view of some pictures takes."""
        return sum(self.view(item, number).nbytes for item in pictures) / 1e6

    def holds(self, pictures: Sequence[Picture], number: int) -> bool:
        """Whether a view of each of them is there."""
        return all((item.sample.name, number) in self._kept for item in pictures)

    def view(self, picture: Picture, number: int) -> Taps:
        """One view that `keep` has computed."""
        return self._kept[picture.sample.name, number]

    def keep(self, pictures: Sequence[Picture], number: int, say: Callable[[str], None]) -> None:
        """Compute one view of each picture, unless it is there already."""
        missing = [item for item in pictures if (item.sample.name, number) not in self._kept]
        by_size: dict[tuple[int, ...], list[Picture]] = {}
        for item in missing:
            by_size.setdefault(item.pixels.shape[:2], []).append(item)
        began = said = time.monotonic()
        done = 0
        for size, members in by_size.items():
            area_px = size[0] * size[1] * self._preprocessing.scale**2
            batch = max(1, int(BATCH_AREA_PX / area_px))
            for start in range(0, len(members), batch):
                self._compute([self._look(item, number) for item in members[start : start + batch]])
                done += len(members[start : start + batch])
                now = time.monotonic()
                if now - said >= SAY_EVERY_S:
                    said = now
                    left_s = (now - began) / done * (len(missing) - done)
                    say(f"features, view {number + 1}: {done} of {len(missing)} pictures, {left_s / 60:.1f} min left")

    def _look(self, item: Picture, number: int) -> _View:
        preprocessing = self._preprocessing
        key = (item.sample.name, number)
        height, width = input_size(item.pixels, preprocessing, (0, 0))
        if number == 0:
            tensor = np.empty((height, width, preprocessing.channels), np.uint8)
            placement = write_input(item.pixels, tensor, preprocessing)
            mask = item.mask
            if mask is not None:
                rows, columns = round(mask.shape[0] * placement.scale_y), round(mask.shape[1] * placement.scale_x)
                mask = _resize_mask(mask, rows, columns)
            return _View(key, tensor, mask)
        # Seeded by the name: a picture has the same views in every training that it takes part in.
        rng = np.random.default_rng([self._seed, number, *item.sample.name.encode()])
        pixels, mask = random_view(item.pixels, item.mask, (height, width), self._knobs, rng)
        return _View(key, pixels.reshape(height, width, preprocessing.channels), mask)

    def _compute(self, views: Sequence[_View]) -> None:
        inputs = np.stack([view.pixels for view in views]).astype(np.float32)
        outputs = self._network.predict_on_batch((inputs - INPUT_ZERO_POINT) * np.float32(INPUT_SCALE))
        fine, coarse = outputs[:2]
        deep = outputs[2] if len(outputs) > 2 else None  # noqa: PLR2004
        for index, view in enumerate(views):
            cover = None
            if view.mask is not None:
                cover = cell_cover(view.mask, fine.shape[1:3], self._preprocessing.stride_px)
            below = None if deep is None else deep[index].astype(np.float16)
            taps = Taps(fine[index].astype(np.float16), coarse[index].astype(np.float16), below, cover)
            self._kept[view.key] = taps
            self._bytes += taps.nbytes


def _resize_mask(mask: Mask, rows: int, columns: int) -> Mask:
    """Any pixel of a defect keeps its place in the smaller or larger mask."""
    if mask.shape == (rows, columns):
        return mask
    resized = np.zeros((rows, columns), np.bool_)
    at = np.argwhere(mask)
    scale = np.array([rows / mask.shape[0], columns / mask.shape[1]])
    low = np.floor(at * scale).astype(int)
    high = np.maximum(np.ceil((at + 1) * scale).astype(int), low + 1)
    for (top, left), (bottom, right) in zip(low, high, strict=True):
        resized[top:bottom, left:right] = True
    return resized
