"""From a picture to the network's input: size, padding, stretching, colour. Pixels are written into the tensor."""

import math

import cv2
import numpy as np

from station.detections import Placement
from station.errors import InferenceError
from station.manifest import Preprocessing
from station.messages import Pixels

FEW_MULTIPLES = 3
"""A side of fewer multiples is not shrunk to the nearest one: it could lose a third, and small defects with it."""


def input_size(pixels: Pixels, preprocessing: Preprocessing, model_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the input tensor that this picture needs.

    Args:
        pixels: `[height, width]` or `[height, width, 3]`.
        preprocessing: of the bundle.
        model_size: height and width that the model was exported with.

    Raises:
        InferenceError: it is no picture of 8 bits.
    """
    _check(pixels)
    if preprocessing.geometry == "resize":
        return model_size
    multiple = preprocessing.multiple_px
    if preprocessing.geometry == "fitted":
        height, width = (_whole(edge * preprocessing.scale / multiple) for edge in pixels.shape[:2])
        return height * multiple, width * multiple
    height, width = _scaled(pixels, preprocessing.scale)
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def write_input(pixels: Pixels, tensor: Pixels, preprocessing: Preprocessing) -> Placement:
    """Write a picture into the network's input.

    Args:
        pixels: `[height, width]` or `[height, width, 3]` BGR.
        tensor: `[input height, input width, channels]`, a view of the runtime's memory.
        preprocessing: of the bundle.

    Returns:
        Where the picture lies on the input.

    Raises:
        InferenceError: the picture is no picture of 8 bits, or larger than the tensor.
    """
    _check(pixels)
    height, width = pixels.shape[:2]
    plane = tensor[..., 0] if preprocessing.channels == 1 else tensor
    way = cv2.INTER_AREA if preprocessing.scale < 1 else cv2.INTER_LINEAR
    if preprocessing.geometry != "native":
        rows, columns = plane.shape[:2]
        if (rows, columns) == (height, width):
            _convert(pixels, plane)
        else:
            resized = np.empty((rows, columns, *pixels.shape[2:]), np.uint8) if _recolours(pixels, plane) else plane
            _into(resized, cv2.resize(pixels, (columns, rows), dst=resized, interpolation=way))
            if resized is not plane:
                _convert(resized, plane)
        return Placement(height, width, rows / height, columns / width)
    rows, columns = _scaled(pixels, preprocessing.scale)
    if rows > plane.shape[0] or columns > plane.shape[1]:
        raise InferenceError(f"a {rows}×{columns} picture does not fit the input of {plane.shape[0]}×{plane.shape[1]}")
    plane[rows:] = preprocessing.pad_value
    plane[:rows, columns:] = preprocessing.pad_value
    if (rows, columns) != (height, width):
        pixels = np.asarray(cv2.resize(pixels, (columns, rows), interpolation=way), np.uint8)
    _convert(pixels, plane[:rows, :columns])
    return Placement(height, width, rows / height, columns / width)


def _whole(multiples: float) -> int:
    return max(1, math.ceil(multiples) if multiples < FEW_MULTIPLES else round(multiples))


def _scaled(pixels: Pixels, scale: float) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    return max(1, round(height * scale)), max(1, round(width * scale))


def _check(pixels: Pixels) -> None:
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) not in {2, 3} or shape[2:] not in {(), (3,)} or 0 in shape:
        raise InferenceError(
            f"a picture must be uint8 [height, width] or [height, width, 3]; this one is {pixels.dtype} {list(shape)}"
        )


def _recolours(pixels: Pixels, plane: Pixels) -> bool:
    return pixels.ndim != plane.ndim


def _convert(pixels: Pixels, plane: Pixels) -> None:
    """Copy, turning colour to grey or grey to colour where the two differ."""
    if not _recolours(pixels, plane):
        np.copyto(plane, pixels)
    elif plane.ndim == 2:  # noqa: PLR2004
        _into(plane, cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY, dst=plane))
    else:
        _into(plane, cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR, dst=plane))


def _into(wanted: Pixels, result: cv2.typing.MatLike) -> None:
    # OpenCV writes elsewhere without a word when it cannot use the array that it was given.
    if not np.shares_memory(wanted, result):
        np.copyto(wanted, np.asarray(result, np.uint8))
