"""From what a camera or a file delivers to the picture that is judged: decoding, rotation, region, colour."""

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import simplejpeg

from station.errors import ModelError
from station.messages import Capture, Pixels, Reason
from station.section import Region
from station.settings import BaseCamera

_QUARTER_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True, slots=True)
class View:
    """Which part of a picture is judged, and in which form.

    Attributes:
        rotate_degrees: turn clockwise, done first.
        region: what to keep, in pixels of the turned picture; None keeps all.
        colour: `grey`, `bgr`, or `rgb` for a source that delivers red where blue should be: its channels are swapped.
    """

    rotate_degrees: Literal[0, 90, 180, 270] = 0
    region: Region | None = None
    colour: Literal["grey", "bgr", "rgb"] = "grey"

    @classmethod
    def of(cls, settings: BaseCamera) -> "View":
        """The view that a camera's settings ask for."""
        return cls(settings.rotate_degrees, settings.region, settings.colour)


def decode(data: bytes, *, grey: bool) -> Pixels:
    """Decode an encoded picture (PNG, JPEG, BMP, TIFF, …) to 8 bits; a rotation noted in the file is not applied.

    Raises:
        ValueError: the bytes are not a picture, or not the whole of one (decoders invent the rest).
    """
    if not has_end_mark(data[:HEAD_BYTES], data[-TAIL_BYTES:], len(data)):
        raise ValueError("is not a whole picture")
    flags = (cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_BGR) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as exc:
        raise ValueError(f"is not a picture: {exc.err}") from exc
    if pixels is None:
        raise ValueError("is not a picture")
    refuse_damaged_jpeg(data)
    return np.asarray(pixels, np.uint8)


def refuse_damaged_jpeg(data: bytes) -> None:
    """Refuse a JPEG whose data do not make up its picture: OpenCV fills in what is missing, and says so only on stderr.

    A JPEG has no checksum, so a single wrong bit may pass. Other formats pass; OpenCV itself refuses a damaged PNG.

    Args:
        data: a file that OpenCV has decoded, so that its size is within OpenCV's limits.

    Raises:
        ValueError: it is damaged; the text says how.
    """
    if not data.startswith(b"\xff\xd8"):
        return
    try:
        _, _, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        colours = "CMYK" if colours in ("CMYK", "YCCK") else "GRAY"
        # As small as can be: all data are read, and little is calculated.
        simplejpeg.decode_jpeg(data, colours, fastdct=True, min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as exc:
        raise ValueError(f"is a damaged JPEG: {str(exc).removeprefix('Corrupt JPEG data: ')}") from exc


HEAD_BYTES = 12
TAIL_BYTES = 4096


def has_end_mark(head: bytes, tail: bytes, size_bytes: int) -> bool:
    """Whether a file ends as a whole file of its format does; formats without an end mark always do, unless empty.

    PNG ends with its IEND chunk (ISO/IEC 15948, 11.2.5), JPEG with the EOI marker (ISO/IEC 10918-1, B.1.1.3) and
    perhaps some bytes of a camera's own; BMP and WebP (RIFF) give their length in the header.

    Args:
        head: the first `HEAD_BYTES` bytes.
        tail: the last `TAIL_BYTES` bytes.
        size_bytes: of the whole file.
    """
    if head.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" in tail
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if head.startswith(b"BM"):
        return size_bytes >= int.from_bytes(head[2:6], "little")
    if head.startswith(b"RIFF"):
        return size_bytes >= int.from_bytes(head[4:8], "little") + 8
    return size_bytes > 0


def apply(view: View, capture: Capture) -> Capture:
    """Turn, cut and convert a capture's picture; rows that a line-scan frame owns move along.

    A picture that does not hold the region is returned whole with the fault `wrong_size`.

    Raises:
        ValueError: a quarter turn of a line-scan frame: its owned rows would become columns.
    """
    if capture.pixels is None:
        return capture
    pixels = _convert(capture.pixels, view.colour)
    owned = capture.owned_rows
    if view.rotate_degrees:
        if owned is not None:
            owned = _turn_rows(owned, pixels.shape[0], view.rotate_degrees)
        pixels = np.asarray(cv2.rotate(pixels, _QUARTER_TURNS[view.rotate_degrees]), np.uint8)
    region = view.region
    if region is None:
        return replace(capture, pixels=pixels, owned_rows=owned)
    bottom, right = region.y_px + region.height_px, region.x_px + region.width_px
    if bottom > pixels.shape[0] or right > pixels.shape[1]:
        return replace(capture, pixels=pixels, owned_rows=owned, fault=capture.fault or Reason.WRONG_SIZE)
    if owned is not None:
        start, stop = (min(max(row - region.y_px, 0), region.height_px) for row in owned)
        owned = (start, stop)
    first_line = capture.first_line
    if first_line is not None and view.rotate_degrees == 0:
        first_line += region.y_px
    cut = pixels[region.y_px : bottom, region.x_px : right]
    return replace(capture, pixels=cut, owned_rows=owned, first_line=first_line)


def read_reference(path: Path, view: View) -> Pixels:
    """Read the picture of a good part that a camera's pictures are compared with, seen as they are.

    Raises:
        ModelError: it cannot be read, is no picture, or does not hold the region.
    """
    try:
        pixels = decode(path.read_bytes(), grey=view.colour == "grey")
    except OSError as exc:
        raise ModelError(f"reference {path}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ModelError(f"reference {path}: {exc}") from exc
    seen = apply(view, Capture(pixels, datetime.fromtimestamp(0, UTC), 0.0))
    if seen.pixels is None or seen.fault is not None:
        raise ModelError(f"reference {path}: {pixels.shape[1]}×{pixels.shape[0]} px do not hold the camera's region")
    return np.ascontiguousarray(seen.pixels)


def fingerprint(pixels: Pixels) -> str:
    """Sha256 (hexadecimal) of a picture's shape and pixels, however its file was encoded."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def _convert(pixels: Pixels, colour: Literal["grey", "bgr", "rgb"]) -> Pixels:
    coloured = pixels.ndim == 3  # noqa: PLR2004
    if colour == "grey":
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8) if coloured else pixels
    if not coloured:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), np.uint8)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), np.uint8) if colour == "rgb" else pixels


def _turn_rows(rows: tuple[int, int], height: int, degrees: int) -> tuple[int, int]:
    if degrees != 180:  # noqa: PLR2004
        raise ValueError(
            f"rotate_degrees = {degrees}: a line-scan camera's frames can be turned by 0 or 180 degrees only"
        )
    return height - rows[1], height - rows[0]
