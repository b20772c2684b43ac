"""A target as a file to print: PNG with its resolution, or PDF in lines; both are 1:1 unless the page is fitted.

The PDF is written by hand (ISO 32000-1): one page of filled rectangles and circles needs no library.
"""

import math
import zlib
from itertools import pairwise
from struct import pack

import cv2
import numpy as np

from station.target import Shape, Sheet

_MM_PER_INCH = 25.4
_POINTS_PER_MM = 72 / _MM_PER_INCH
_FINE = 4
_SHIFT = 4
_PNG_HEADER = 33
"""Bytes of signature and IHDR, behind which pHYs may stand (ISO/IEC 15948, 5.6)."""
_QUARTER = 4 / 3 * (math.sqrt(2) - 1)
"""Control points of the cubic curve nearest to a quarter of a circle."""


def png(sheet: Sheet, dpi: int) -> bytes:
    """The sheet as a grey PNG that states its resolution.

    Args:
        sheet: what to draw.
        dpi: pixels an inch.
    """
    per_mm = dpi / _MM_PER_INCH
    width, height = round(sheet.width_mm * per_mm), round(sheet.height_mm * per_mm)
    fine = np.full((height * _FINE, width * _FINE), 255, np.uint8)
    scale = per_mm * _FINE
    for shape in sheet.shapes:
        _draw(fine, shape, scale)
    x, y, letters = sheet.text_at_mm
    cv2.putText(
        fine,
        sheet.text.replace("×", "x"),
        (round(x * scale), round(y * scale)),
        cv2.FONT_HERSHEY_SIMPLEX,
        letters * scale / 22,
        0,
        max(1, round(letters * scale / 12)),
        cv2.LINE_AA,
    )
    encoded = cv2.imencode(".png", cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA))[1].tobytes()
    per_metre = round(dpi / _MM_PER_INCH * 1000)
    body = b"pHYs" + pack(">IIB", per_metre, per_metre, 1)
    chunk = pack(">I", 9) + body + pack(">I", zlib.crc32(body))
    return encoded[:_PNG_HEADER] + chunk + encoded[_PNG_HEADER:]


def _draw(fine: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], shape: Shape, scale: float) -> None:
    if shape.kind == "circle":
        # Pixels are squares around their middle, hence the half.
        centre = tuple(round((value * scale - 0.5) * (1 << _SHIFT)) for value in (shape.x, shape.y))
        radius = round(shape.width / 2 * scale * (1 << _SHIFT))
        cv2.circle(fine, (centre[0], centre[1]), radius, 0, -1, cv2.LINE_8, _SHIFT)
        return
    left, top = round(shape.x * scale), round(shape.y * scale)
    right, bottom = round((shape.x + shape.width) * scale), round((shape.y + shape.height) * scale)
    fine[top:bottom, left:right] = 0


def pdf(sheet: Sheet) -> bytes:
    """The sheet as one PDF page of its own size, in lines."""
    height = sheet.height_mm * _POINTS_PER_MM
    drawing = ["0 g"]
    for shape in sheet.shapes:
        x, y = shape.x * _POINTS_PER_MM, height - shape.y * _POINTS_PER_MM
        if shape.kind == "rectangle":
            wide, tall = shape.width * _POINTS_PER_MM, shape.height * _POINTS_PER_MM
            drawing.append(f"{x:.4f} {y - tall:.4f} {wide:.4f} {tall:.4f} re f")
        else:
            drawing.append(_circle(x, y, shape.width / 2 * _POINTS_PER_MM))
    x_mm, y_mm, letters_mm = sheet.text_at_mm
    text = sheet.text.replace("×", "x").replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    drawing.append(
        f"BT /F1 {letters_mm * 1.4 * _POINTS_PER_MM:.2f} Tf {x_mm * _POINTS_PER_MM:.2f} "
        f"{height - y_mm * _POINTS_PER_MM:.2f} Td ({text}) Tj ET"
    )
    stream = "\n".join(drawing).encode("ascii")
    page = (
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {sheet.width_mm * _POINTS_PER_MM:.4f} {height:.4f}] "
        "/Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>"
    )
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /ViewerPreferences << /PrintScaling /None >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        page.encode("ascii"),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out = bytearray(b"%PDF-1.6\n")
    starts = []
    for number, content in enumerate(objects, start=1):
        starts.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % start for start in starts)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    return bytes(out)


def _circle(x: float, y: float, radius: float) -> str:
    near = radius * _QUARTER
    parts = [f"{x + radius:.4f} {y:.4f} m"]
    turns = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 0))
    for (from_x, from_y), (to_x, to_y) in pairwise(turns):
        first = x + from_x * radius + to_x * near, y + from_y * radius + to_y * near
        second = x + to_x * radius + from_x * near, y + to_y * radius + from_y * near
        end = x + to_x * radius, y + to_y * radius
        parts.append(" ".join(f"{value:.4f}" for point in (first, second, end) for value in point) + " c")
    return "\n".join([*parts, "f"])
