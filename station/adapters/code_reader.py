"""QR codes and barcodes in a picture, by OpenCV's own readers."""

from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import numpy as np

from station.messages import Pixels

GREY_DIMENSIONS = 2


class OpenCvCodeReader:
    """Reads the codes of one camera's pictures, in one thread.

    A picture in which nothing can be read is looked at again at twice its size, and then sharpened: codes with small
    modules, noise and blur. The first look that reads anything counts. QR codes correct errors and check themselves
    (ISO/IEC 18004); of the barcodes only those with a check digit are read (EAN and UPC, GS1 General Specifications,
    section 7.9), so a misread shows.

    Args:
        symbols: what to look for.
    """

    def __init__(self, symbols: Literal["qr", "barcode", "any"]) -> None:
        self._readers: list[_Reader] = []
        if symbols != "barcode":
            self._readers.append(_Reader(cv2.QRCodeDetectorAruco().detectAndDecodeMulti, (_doubled, _sharpened)))
        if symbols != "qr":
            self._readers.append(_Reader(cv2.barcode.BarcodeDetector().detectAndDecodeMulti, (_doubled,)))

    def read(self, pixels: Pixels) -> Sequence[str]:
        """The texts of all codes that can be read; `pixels` as `[height, width]` or `[height, width, 3]`."""
        if not pixels.size:
            return ()
        grey = (
            pixels if pixels.ndim == GREY_DIMENSIONS else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)
        )
        return [text for reader in self._readers for text in reader.read(grey)]


class _Reader:
    """One detector, with what it may look at when the picture itself shows nothing."""

    def __init__(self, detect: Callable[..., Sequence[object]], again: Sequence[Callable[[Pixels], Pixels]]) -> None:
        self._detect = detect
        self._again = again

    def read(self, grey: Pixels) -> Sequence[str]:
        texts = self._look(grey)
        for change in self._again:
            if texts:
                break
            texts = self._look(change(grey))
        return texts

    def _look(self, grey: Pixels) -> Sequence[str]:
        try:
            found, texts, *_ = self._detect(np.ascontiguousarray(grey))
        except (cv2.error, UnicodeDecodeError):
            # The detectors refuse pictures that are too small for them, and texts that are none.
            return ()
        return [text for text in texts if text] if found and isinstance(texts, Sequence) else ()


def _doubled(grey: Pixels) -> Pixels:
    return np.asarray(cv2.resize(grey, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)


def _sharpened(grey: Pixels) -> Pixels:
    """Twice the size, with what a blur of 4 px takes away added once and a half."""
    large = _doubled(grey)
    return np.asarray(cv2.addWeighted(large, 2.5, cv2.GaussianBlur(large, (0, 0), 4.0), -1.5, 0.0), np.uint8)
