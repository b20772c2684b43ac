"""What stands beside a stored picture: its verdict, and what decided it besides the picture and the bundle.

So a picture can be judged again, months later, with the same outcome and the same scores.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue

from station.calibration import PlaneMap, WebMap
from station.manifest import QualityLimits, Thresholds
from station.messages import Message, Name, Reason, Verdict


class SeamState(Message):
    """What a line-scan camera's `SeamOwner` remembered before a frame.

    Attributes:
        stop: line at which the rows of the frame before end; None: there was none.
        claimed: centres (x, y) in pixels of the web of what the frame before has claimed near its end.
    """

    stop: int | None = None
    claimed: tuple[tuple[float, float], ...] = ()


class JudgedWith(Message):
    """Everything but picture and bundle that an `Inspector` judged a frame with; floats survive JSON bit for bit.

    Attributes:
        thresholds: that the scores were compared with; None: there was no bundle.
        quality: limits of the quality gate; None: there was no bundle.
        frozen_after: so many identical pictures in a row are frozen; 0: that was switched off.
        repeats: how many identical pictures in a row this was the last of.
        fault: what the camera itself knew of the picture.
        seams: of a line-scan frame whose defects were shared out among its neighbours.
        reference_sha256: of the pixels of the good part's picture, as they were compared; None: there was none.
        beside: reasons that only the camera's calibration gave: `misplaced`, `uncalibrated`.
        scale: from pixels to millimetres, for the areas of defects; None: defects had none.
        product: parameters of the product, as its part of the station writes and reads them.
        machine: processor, runtime and threads.
    """

    thresholds: Thresholds | None = None
    quality: QualityLimits | None = None
    frozen_after: int = 0
    repeats: int = 1
    fault: Reason | None = None
    seams: SeamState | None = None
    reference_sha256: str | None = None
    beside: tuple[Reason, ...] = ()
    scale: PlaneMap | WebMap | None = Field(default=None, discriminator="form")
    product: Mapping[Name, JsonValue] | None = None
    machine: str | None = None


class EvidenceRecord(Message):
    """What stands beside a stored picture (`<verdict id>.json`), or in its place (`<verdict id>.missing`).

    Attributes:
        verdict: as it was handed to the journal.
        bundle_sha256: of the bundle that judged; None when there was none.
        judged_with: what decided besides; None in records of stations that did not keep it yet.
        picture_sha256, picture_bytes: of the PNG file.
        missing: why there is no picture; None when there is one.
    """

    schema_version: Literal[1] = 1
    verdict: Verdict
    bundle_sha256: str | None
    judged_with: JudgedWith | None = None
    picture_sha256: str | None = None
    picture_bytes: int | None = None
    missing: str | None = None
