"""Pictures that look alike: the same part shot twice, a picture saved again, neighbouring frames of a film.

A random split that puts such a pair on both sides measures memory, not skill. Each picture is shrunk to 32×32 grey
values, brought to mean 0 and deviation 1, and the mean of all others is taken away: what is left is what makes this
picture different from the rest, so that parts which always lie in the same place are not all alike. Two pictures are
look-alikes when these residuals correlate by at least `ALIKE`, and by at least `ALIKE_IN_DETAIL` after a high pass
(light that falls the same way is no likeness).

The residual of a pair is taken against the mean of the other n - 2 pictures. With d_i the difference from the mean of
all n and q = 1/(n - 2) that is r_i = (1 + q) d_i + q d_j, so that products of residuals follow from those of d.

On MagneticTile, whose 213 tiles were shot about six times each, with shifts and in other light, this finds 40 % of the
pairs of one tile, and 3.5 % of what it finds are pairs of two tiles: it is a help where nobody knows the parts, and no
substitute for `groups.csv`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

EDGE_PX = 32
"""Edge of the thumbnails."""

ALIKE = 0.93
ALIKE_IN_DETAIL = 0.6
DETAIL_SIGMA_PX = 3.0

_SIGNATURE_PX = 16
_SIGNATURE_ALIKE = 0.85
"""What the 16×16 means must reach before the thumbnails themselves are compared."""

_ROWS_AT_ONCE = 512
_PAIRS_AT_ONCE = 4096
_LEAST_DEVIATION = 1.0
_FEWEST = 3

Thumbnails = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LookAlike:
    """Two pictures, by index, and the correlation of what makes them different from the others."""

    first: int
    second: int
    alike: float


def thumbnail(pixels: npt.NDArray[np.uint8]) -> Thumbnails:
    """A picture, grey or BGR, as 32×32 grey values."""
    # The few pixels that are left are converted, not the many.
    small = cv2.resize(pixels, (EDGE_PX, EDGE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) if small.ndim > 2 else small, np.uint8)  # noqa: PLR2004


def look_alikes(thumbnails: Thumbnails) -> list[LookAlike]:
    """Every pair of look-alikes; `thumbnails` is `[n, 32, 32]`.

    Candidates come from 16×16 means: one matrix product of n × 256, about a second for 10,000 pictures.
    """
    count = len(thumbnails)
    if count < _FEWEST:
        return []
    scaled = _Scaled(thumbnails)
    found = []
    for rows, columns in scaled.candidates():
        for start in range(0, len(rows), _PAIRS_AT_ONCE):
            first, second = rows[start : start + _PAIRS_AT_ONCE], columns[start : start + _PAIRS_AT_ONCE]
            whole = scaled.residuals(first), scaled.residuals(second)
            alike = _pair_correlation(*whole, count)
            near = np.flatnonzero(alike >= ALIKE)
            detail = _pair_correlation(_high_pass(whole[0][near]), _high_pass(whole[1][near]), count)
            found += [
                LookAlike(int(first[index]), int(second[index]), float(alike[index]))
                for index in near[detail >= ALIKE_IN_DETAIL]
            ]
    return found


def clusters(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """For each of `count` members the lowest member that it is linked to, directly or through others."""
    root = list(range(count))

    def top(member: int) -> int:
        while root[member] != member:
            root[member] = root[root[member]]
            member = root[member]
        return member

    for first, second in pairs:
        low, high = sorted((top(first), top(second)))
        root[high] = low
    return [top(member) for member in range(count)]


class _Scaled:
    """Thumbnails at mean 0 and deviation 1, less their mean, made when asked for: 10,000 of them fill 40 MB."""

    def __init__(self, thumbnails: Thumbnails) -> None:
        self._thumbnails = thumbnails
        self._mean: Floats = np.zeros((EDGE_PX, EDGE_PX), np.float32)
        for part in self._parts():
            self._mean += self._standardized(part).sum(axis=0) / np.float32(len(thumbnails))

    def residuals(self, indices: npt.NDArray[np.int64]) -> Floats:
        return self._standardized(indices) - self._mean

    def candidates(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Pairs whose signatures correlate."""
        count = len(self._thumbnails)
        edge = EDGE_PX // _SIGNATURE_PX
        signatures = np.concatenate(
            [
                self.residuals(part).reshape(-1, _SIGNATURE_PX, edge, _SIGNATURE_PX, edge).mean(axis=(2, 4))
                for part in self._parts()
            ]
        ).reshape(count, -1)
        squares = (signatures**2).sum(axis=1)
        for part in self._parts():
            products = signatures[part] @ signatures[part[0] :].T
            alike = _correlation(products, squares[part][:, None], squares[part[0] :][None], count)
            rows, columns = np.nonzero(np.triu(alike >= _SIGNATURE_ALIKE, 1))
            yield rows + part[0], columns + part[0]

    def _parts(self) -> Iterator[npt.NDArray[np.int64]]:
        for start in range(0, len(self._thumbnails), _ROWS_AT_ONCE):
            yield np.arange(start, min(start + _ROWS_AT_ONCE, len(self._thumbnails)))

    def _standardized(self, indices: npt.NDArray[np.int64]) -> Floats:
        values = self._thumbnails[indices].astype(np.float32)
        deviation = np.maximum(values.std(axis=(1, 2), keepdims=True), np.float32(_LEAST_DEVIATION))
        return np.asarray((values - values.mean(axis=(1, 2), keepdims=True)) / deviation, np.float32)


def _high_pass(values: Floats) -> Floats:
    smooth = [cv2.GaussianBlur(value, (0, 0), DETAIL_SIGMA_PX) for value in values]
    return values - np.asarray(smooth, np.float32).reshape(values.shape)


def _pair_correlation(first: Floats, second: Floats, count: int) -> Floats:
    def product(left: Floats, right: Floats) -> Floats:
        return np.asarray(np.einsum("nyx,nyx->n", left, right), np.float32)

    return _correlation(product(first, second), product(first, first), product(second, second), count)


def _correlation(products: Floats, first: Floats, second: Floats, count: int) -> Floats:
    """Correlation of the residuals against all others, from products of the differences from the mean of all."""
    q = 1.0 / (count - 2)
    p = 1.0 + q
    both = p * q * (first + second) + (p * p + q * q) * products
    left = p * p * first + q * q * second + 2 * p * q * products
    right = p * p * second + q * q * first + 2 * p * q * products
    return np.asarray(both / np.sqrt(np.maximum(left * right, 1e-12)), np.float32)
