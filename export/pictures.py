"""Pictures and masks from disk, as every part of the export sees them.

Eight bits, upright, grey or BGR. A rotation noted in the file (EXIF) is applied: labels refer to the upright picture.
Alpha is dropped, palettes are resolved, CMYK is converted. Pictures of more than eight bits are scaled by their bit
depth, not by their own brightest pixel: a dark part stays darker than a bright one.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from export.samples import DatasetError, Sample
from station.messages import Pixels
from station.picture import HEAD_BYTES, TAIL_BYTES, has_end_mark, refuse_damaged_jpeg

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"}
)
"""Files that are taken for pictures, whatever the case of the suffix."""

BIT_DEPTHS = (8, 10, 12, 14, 16)
"""What sensors deliver; a 16-bit file most often holds 10, 12 or 14."""

_LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".webp"})
_LOSSY_MASK_FROM = 128
_HIGHEST_8_BIT = 255


def is_picture(path: Path) -> bool:
    """Whether a file's name says that it is a picture."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def read_pixels(path: Path, channels: int = 1, bits: int | None = None) -> Pixels:
    """Read a picture as `[height, width]` (one channel) or `[height, width, 3]` in BGR order.

    Args:
        path: the file.
        channels: 1 or 3.
        bits: bit depth by which a 16-bit picture is scaled; None takes the smallest of `BIT_DEPTHS` that holds this
            picture's largest value. Pictures of one data set want one depth: see `read_sample`.

    Raises:
        DatasetError: the file is missing or no picture.
    """
    return to_8_bits(decode_file(path, channels), bits)


def read_sample(sample: Sample, channels: int = 1) -> Pixels:
    """Read a sample's picture, scaled by its data set's bit depth.

    Raises:
        DatasetError: the file is missing or no picture.
    """
    return read_pixels(sample.picture, channels, sample.bits)


def read_reference(sample: Sample, channels: int = 1) -> Pixels:
    """Read the picture of the same place without defects.

    Raises:
        DatasetError: the sample has none, or it cannot be read.
    """
    if sample.reference is None:
        raise DatasetError(f"{sample.picture}: has no reference picture, which a model that compares needs")
    return read_pixels(sample.reference, channels, sample.bits)


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Read a mask as `[height, width]`, True where there is a defect.

    Every value but zero is a defect, in any channel; in a lossy file (JPEG, WebP) every value from 128.

    Raises:
        DatasetError: the file is missing or no picture.
    """
    # In colour: the grey value of a dark blue can round to zero.
    decoded = decode_file(path, 3).max(axis=2)
    floor = _LOSSY_MASK_FROM if path.suffix.lower() in _LOSSY_SUFFIXES else 1
    return np.asarray(decoded >= floor, np.bool_)


def bit_depth(largest: int) -> int:
    """The smallest of `BIT_DEPTHS` that holds a value."""
    return next(bits for bits in BIT_DEPTHS if largest < 1 << bits)


def to_8_bits(decoded: npt.NDArray[Any], bits: int | None = None) -> Pixels:
    """Scale to 0..255 by the bit depth; 8-bit pictures stay as they are."""
    if decoded.dtype == np.uint8:
        return np.ascontiguousarray(decoded)
    bits = bits or bit_depth(int(decoded.max()))
    scaled = decoded.astype(np.float32) * np.float32(_HIGHEST_8_BIT / ((1 << bits) - 1))
    return np.ascontiguousarray(np.clip(np.rint(scaled), 0, _HIGHEST_8_BIT), np.uint8)


def decode_file(path: Path, channels: int) -> npt.NDArray[Any]:
    """A file's picture as uint8 or uint16, upright.

    Raises:
        DatasetError: the file is missing or no picture.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read: {exc.strerror}") from exc
    return decode(data, channels, str(path))


def decode(data: bytes, channels: int, name: str) -> npt.NDArray[Any]:
    """An encoded picture as uint8 or uint16, upright.

    Raises:
        DatasetError: the bytes are not a whole picture.
    """
    if not data:
        raise DatasetError(f"{name}: is not a whole picture: the file is empty")
    # Decoders invent the rest of a picture that was cut short.
    if not has_end_mark(data[:HEAD_BYTES], data[-TAIL_BYTES:], len(data)):
        raise DatasetError(f"{name}: is not a whole picture")
    flags = (cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_BGR) | cv2.IMREAD_ANYDEPTH
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as exc:
        raise DatasetError(f"{name}: is not a whole picture: {exc.err}") from exc
    if decoded is None:
        raise DatasetError(f"{name}: is not a whole picture")
    try:
        refuse_damaged_jpeg(data)
    except ValueError as exc:
        raise DatasetError(f"{name}: is not a whole picture: it {exc}") from exc
    if decoded.dtype not in (np.uint8, np.uint16):
        raise DatasetError(f"{name}: holds {decoded.dtype} values; save it with 8 or 16 bits a channel")
    return decoded
