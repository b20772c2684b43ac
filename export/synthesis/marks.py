"""Synthetic pictures are marked in their name and in the file itself, so that no copy of one is taken for a real part.

The mark is a PNG text chunk (ISO/IEC 15948, 11.3.3) with JSON: how the picture was made, and from which pictures, by
the first twelve hexadecimal digits of the sha256 of their files. A picture that was learnt from must not test what was
made from it.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from export.samples import DatasetError
from station.messages import Pixels

PREFIX = "synthetic-"
"""Begins the name of every synthetic picture."""

KEYWORD = "inspection-station synthetic"
SHEET = "sheet"
DIGITS = 12
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY_DIMENSIONS = 2


def encode(pixels: Pixels, facts: Mapping[str, Any], learnt_from: Sequence[str], *, sheet: bool = False) -> bytes:
    """A PNG file of `[height, width]` or `[height, width, 3]` (BGR) with the mark in it.

    Args:
        pixels: the picture.
        facts: how it was made; plain values.
        learnt_from: sha256 of every picture that it was learnt from or put together from.
        sheet: it shows many defects to people, and no part.
    """
    info = PngInfo()
    sources = sorted(digest[:DIGITS] for digest in learnt_from)
    info.add_text(KEYWORD, json.dumps({**facts, "learnt_from": sources, **({SHEET: True} if sheet else {})}))
    upright = pixels if pixels.ndim == _GREY_DIMENSIONS else pixels[..., ::-1]
    stream = io.BytesIO()
    Image.fromarray(upright).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def learnt_from(path: Path, data: bytes) -> tuple[str, ...] | None:
    """The digests in a synthetic picture's mark; None for a real picture.

    Raises:
        DatasetError: it is a sheet, or the name or the file says synthetic, and the mark cannot be read: where it came
            from is unknown.
    """
    marked = data.startswith(_PNG) and KEYWORD.encode() in data
    if not marked and not path.name.startswith(PREFIX):
        return None
    try:
        with Image.open(io.BytesIO(data)) as picture:
            facts = json.loads(picture.info[KEYWORD])
        sources = tuple(str(digest) for digest in facts["learnt_from"])
    except (OSError, KeyError, TypeError, ValueError) as exc:
        raise DatasetError(
            f"{path}: is called synthetic, and does not say what it was made from ({exc}); delete it, or give a real "
            f"picture a name that does not begin with {PREFIX}"
        ) from exc
    if facts.get(SHEET):
        raise DatasetError(f"{path}: is a sheet of synthetic defects to look at, not a picture of a part; remove it")
    return sources
