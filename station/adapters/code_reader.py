"""QR codes and barcodes in a picture, by OpenCV's own readers."""

from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import numpy as np

from station.messages import Pixels
from station.part_id_messages import ReadCodes

GREY_DIMENSIONS = 2


class OpenCvCodeReader:
    """Reads the codes of one camera's pictures, in one thread.

    A picture in which nothing can be read, or a QR code is seen and not read, is looked at again at twice its size, and
    then sharpened: codes with small modules, noise and blur. The look that reads most counts. QR codes correct errors
    and check themselves (ISO/IEC 18004); of the barcodes only those with a check digit are read (EAN and UPC, GS1
    General Specifications, section 7.9), so a misread shows. A barcode that cannot be read is not told: any stripes
    look like one.

    Args:
        symbols: what to look for.
    """

    def __init__(self, symbols: Literal["qr", "barcode", "any"]) -> None:
        self._readers: list[_Reader] = []
        if symbols != "barcode":
            detect = cv2.QRCodeDetectorAruco().detectAndDecodeMulti
            self._readers.append(_Reader(detect, (_doubled, _sharpened), tells_unread=True))
        if symbols != "qr":
            detect = cv2.barcode.BarcodeDetector().detectAndDecodeMulti
            self._readers.append(_Reader(detect, (_doubled,), tells_unread=False))

    def read(self, pixels: Pixels) -> ReadCodes:
        """The codes that stand there; `pixels` as `[height, width]` or `[height, width, 3]`."""
        if not pixels.size:
            return ReadCodes()
        grey = (
            pixels if pixels.ndim == GREY_DIMENSIONS else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)
        )
        found = [reader.read(grey) for reader in self._readers]
        return ReadCodes(tuple(text for one in found for text in one.texts), sum(one.unread for one in found))


class _Reader:
    """One detector, with what it may look at when the picture itself does not show all."""

    def __init__(
        self,
        detect: Callable[..., Sequence[object]],
        again: Sequence[Callable[[Pixels], Pixels]],
        *,
        tells_unread: bool,
    ) -> None:
        self._detect = detect
        self._again = again
        self._tells_unread = tells_unread

    def read(self, grey: Pixels) -> ReadCodes:
        best = self._look(grey)
        for change in self._again:
            if best.texts and not best.unread:
                break
            look = self._look(change(grey))
            if len(look.texts) > len(best.texts):
                # What one look saw stands there, though another did not see it.
                seen = max(len(best.texts) + best.unread, len(look.texts) + look.unread)
                best = ReadCodes(look.texts, seen - len(look.texts))
        return best

    def _look(self, grey: Pixels) -> ReadCodes:
        try:
            found, texts, *_ = self._detect(np.ascontiguousarray(grey))
        except (cv2.error, UnicodeDecodeError):
            # The detectors refuse pictures that are too small for them, and texts that are none.
            return ReadCodes()
        if not found or not isinstance(texts, Sequence):
            return ReadCodes()
        read = tuple(text for text in texts if text)
        return ReadCodes(read, len(texts) - len(read) if self._tells_unread else 0)


def _doubled(grey: Pixels) -> Pixels:
    return np.asarray(cv2.resize(grey, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)


def _sharpened(grey: Pixels) -> Pixels:
    """Twice the size, with what a blur of 4 px takes away added once and a half."""
    large = _doubled(grey)
    return np.asarray(cv2.addWeighted(large, 2.5, cv2.GaussianBlur(large, (0, 0), 4.0), -1.5, 0.0), np.uint8)
