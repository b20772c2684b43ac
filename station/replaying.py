"""Judges a stored picture again with all that decided its verdict, and says whether the same comes out. No disk.

The bundle is the one that the verdict names, by its sha256; thresholds, limits, seams and what else decided come from
the record beside the picture; the picture is what the model was shown. So the outcome, the reasons, the defects with
their scores and boxes, the score and the threshold must be the same bit for bit on the same kind of machine.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from station.errors import ModelError
from station.judge import lacking_part_id
from station.judged_with import EvidenceRecord, JudgedWith
from station.messages import Capture, Defect, Frame, ModelRef, Pixels, Reason, Verdict
from station.pipeline import Inspector, LoadedModel, Setup
from station.ports import Clock
from station.settings import FolderCamera, ModelSettings

DECIDED = ("outcome", "reasons", "score", "threshold", "defects")
"""What of a verdict is compared bit for bit."""


class Finding(StrEnum):
    """What came of judging again."""

    SAME = "same"
    DIFFERENT = "different"
    NOT_JUDGED = "not_judged"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class Replayed:
    """One verdict, judged again.

    Attributes:
        finding: `same` bit for bit; `different`; `not_judged`: no model had judged it, and there is nothing to repeat;
            `impossible`: something that is needed is not there or was altered.
        stored: the verdict as it was; None where the record cannot be read.
        again: the verdict as it came out now.
        reasons: what differs, or what is missing, one line each.
    """

    finding: Finding
    stored: Verdict | None
    again: Verdict | None = None
    reasons: tuple[str, ...] = ()


Load = Callable[[ModelRef, str | None], LoadedModel]
"""Loads the bundle that is meant, with the reference picture that has this sha256 where there was one; raises
ModelError."""


def replay(
    record: EvidenceRecord, picture: bytes | None, decode: Callable[[bytes], Pixels], load: Load, clock: Clock
) -> Replayed:
    """Judge again.

    Args:
        record: what stands beside the picture.
        picture: the PNG file; None: it is not there.
        decode: decodes it; raises ValueError.
        load: see `Load`.
        clock: time.
    """
    stored, judged = record.verdict, record.judged_with
    if record.missing is not None or picture is None:
        return _impossible(stored, record.missing or "the picture was deleted")
    if hashlib.sha256(picture).hexdigest() != record.picture_sha256:
        return _impossible(stored, "the picture was altered: its sha256 is not the one in the record")
    if judged is None:
        return _impossible(stored, "the record does not tell the thresholds: it was written by a former version")
    if stored.model is None:
        return Replayed(Finding.NOT_JUDGED, stored, None, ("no bundle could be used when it was judged",))
    try:
        pixels = decode(picture)
        loaded = load(stored.model, judged.reference_sha256)
        again = _inspected(stored, judged, pixels, loaded, clock)
    except (ModelError, ValueError) as exc:
        return _impossible(stored, " ".join(str(exc).split()))
    if Reason.PART_ID in stored.reasons:
        # Not in the picture, and no matter of judging: the part had no id of its own.
        again = lacking_part_id(again)
    differences = _differences(stored, again)
    if not differences:
        return Replayed(Finding.SAME, stored, again)
    if judged.machine is not None and loaded.machine != judged.machine:
        differences = (*differences, f"judged on {judged.machine}; here {loaded.machine}")
    return Replayed(Finding.DIFFERENT, stored, again, differences)


def _impossible(stored: Verdict, reason: str) -> Replayed:
    return Replayed(Finding.IMPOSSIBLE, stored, None, (reason,))


def _inspected(stored: Verdict, judged: JudgedWith, pixels: Pixels, loaded: LoadedModel, clock: Clock) -> Verdict:
    # Nothing of these settings decides: what did stands in the record.
    settings = FolderCamera(kind="folder", path=Path())
    inspector = Inspector(stored.station, stored.camera, stored.epoch, settings, ModelSettings(), clock)
    inspector.use(Setup(loaded))
    capture = Capture(
        pixels,
        stored.captured_at,
        clock.monotonic_s(),
        source=stored.source,
        first_line=stored.first_line,
        owned_rows=stored.owned_rows,
        lines_lost=stored.lines_lost,
        fault=judged.fault,
    )
    return inspector.inspect_again(Frame(stored.camera, stored.sequence, capture), judged)


def _differences(stored: Verdict, again: Verdict) -> tuple[str, ...]:
    found = []
    for what in DECIDED:
        before, now = getattr(stored, what), getattr(again, what)
        if before != now:
            found.append(f"{what}: {_shown(before)}, now {_shown(now)}")
    return tuple(found)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_shown(one) for one in value) or "none"
    if isinstance(value, Defect):
        box = value.box
        return f"{value.label} {value.score!r} at {box.x_px!r},{box.y_px!r} {box.width_px!r}×{box.height_px!r}"
    return "none" if value is None else str(value)
