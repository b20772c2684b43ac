"""Slices of lines → overlapping inspection frames, and who reports what stands in the overlap.

Frame k shows the lines `[k * step, k * step + frame_lines)` with `step = frame_lines - overlap_lines`. It *owns* the
rows from half the overlap below its top to half the overlap above its bottom (the first frame owns from its top), so
that every line has one owner and a defect up to `overlap_lines` high whose centre a frame owns is seen whole by it.

Lost lines are shown as zeros in their place, and every frame that shows any of them carries the fault `lines_lost`:
what lies beside the loss is never passed as whole. Each lost line is counted once, by the frame that owns it. When
more is lost than a frame holds, the frames that would be all zeros are left out and the next one carries the count.

A slice that the stopped belt cut short ends its frame early: that frame is `partial` and owns all its remaining rows;
the next one begins half the overlap earlier, for context.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from station.errors import CameraError
from station.judged_with import SeamState
from station.messages import Capture, Defect, Pixels, Reason, Slice

FRAME_LINES = 640
OVERLAP_LINES = 96
LINES_MULTIPLE = 16

_CENTRE_STEP = 0.5
"""Boxes of whole pixels have their centres on whole and half lines."""


class FrameAssembler:
    """Joins slices into frames; pure logic, one per opened camera.

    Args:
        width_px: pixels of a line.
        frame_lines: lines of a frame; a multiple of 16, the detector's coarsest grid.
        overlap_lines: lines that neighbouring frames share: even, less than half a frame; at least the height of the
            largest defect.

    Raises:
        ValueError: a size is not allowed.
    """

    def __init__(self, width_px: int, frame_lines: int = FRAME_LINES, overlap_lines: int = OVERLAP_LINES) -> None:
        if frame_lines <= 0 or frame_lines % LINES_MULTIPLE:
            raise ValueError(f"frame_lines = {frame_lines}; allowed: a positive multiple of {LINES_MULTIPLE}")
        if overlap_lines % 2 or not 0 <= overlap_lines < frame_lines // 2:
            raise ValueError(f"overlap_lines = {overlap_lines}; allowed: even, 0 to less than {frame_lines // 2}")
        self._half = overlap_lines // 2
        self._buffer = np.zeros((frame_lines, width_px), np.uint8)
        self._lost = np.zeros(frame_lines, np.bool_)
        self._start = 0
        self._filled = 0
        self._owned_from = 0
        self._skipped = 0
        self._begun = False

    @property
    def _next_line(self) -> int:
        return self._start + self._filled

    def feed(self, piece: Slice) -> list[Capture]:
        """Take the next slice; return the frames that it completes.

        Raises:
            CameraError: the slice has another width, no lines, or lines that were delivered already.
        """
        pixels = piece.pixels
        if len(pixels) == 0 or pixels.shape != (len(pixels), self._buffer.shape[1]):
            raise CameraError(f"slice of shape {pixels.shape}; expected [lines, {self._buffer.shape[1]}]")
        if not self._begun:
            self._begun = True
            self._start = self._owned_from = piece.first_line
        missing = piece.first_line - self._next_line
        if missing < 0:
            raise CameraError(f"line {piece.first_line} came after line {self._next_line - 1}")
        frames = self._lose(missing, piece) if missing else []
        frames += self._append(pixels, pixels.shape[0], piece)
        if piece.partial and self._next_line > self._owned_from:
            frames.append(self._cut_short(piece.captured_at, piece.captured_monotonic_s))
        return frames

    def finish(self, captured_at: datetime, captured_monotonic_s: float) -> list[Capture]:
        """The stream has ended: return what no frame owns yet as a `partial` frame."""
        if self._next_line <= self._owned_from:
            return []
        return [self._cut_short(captured_at, captured_monotonic_s)]

    def _append(self, pixels: Pixels | None, lines: int, piece: Slice) -> list[Capture]:
        """Add `lines` lines; None stands for lost ones."""
        frames = []
        done = 0
        while done < lines:
            room = min(len(self._buffer) - self._filled, lines - done)
            place = slice(self._filled, self._filled + room)
            self._buffer[place] = 0 if pixels is None else pixels[done : done + room]
            self._lost[place] = pixels is None
            self._filled += room
            done += room
            if self._filled == len(self._buffer):
                frames.append(self._complete(piece))
        return frames

    def _lose(self, missing: int, piece: Slice) -> list[Capture]:
        if missing <= len(self._buffer):
            return self._append(None, missing, piece)
        frames: list[Capture] = []
        blank = 0
        while not self._lost[: self._filled].all():
            part = len(self._buffer) - self._filled
            frames += self._append(None, part, piece)
            blank += part
        # The next frame counts what the frames left out would have owned; it shows lost lines above the new ones.
        self._start = piece.first_line - self._half
        self._skipped = max(self._start - self._owned_from, 0)
        self._owned_from = max(self._owned_from, self._start)
        self._buffer[: self._half] = 0
        self._lost[: self._half] = True
        self._filled = self._half
        return frames

    def _complete(self, piece: Slice) -> Capture:
        frame_lines, half = len(self._buffer), self._half
        stop = self._start + frame_lines - half
        frame = self._frame(stop, piece.captured_at, piece.captured_monotonic_s, None)
        kept = 2 * half
        self._buffer[:kept] = self._buffer[frame_lines - kept :].copy()
        self._lost[:kept] = self._lost[frame_lines - kept :].copy()
        self._start += frame_lines - kept
        self._filled = kept
        return frame

    def _cut_short(self, captured_at: datetime, captured_monotonic_s: float) -> Capture:
        stop = self._next_line
        frame = self._frame(stop, captured_at, captured_monotonic_s, Reason.PARTIAL)
        kept = min(self._half, self._filled)
        self._buffer[:kept] = self._buffer[self._filled - kept : self._filled].copy()
        self._lost[:kept] = self._lost[self._filled - kept : self._filled].copy()
        self._start = stop - kept
        self._filled = kept
        return frame

    def _frame(
        self, owned_stop: int, captured_at: datetime, captured_monotonic_s: float, fault: Reason | None
    ) -> Capture:
        lost = self._lost[: self._filled]
        owned = (self._owned_from - self._start, owned_stop - self._start)
        lines_lost = int(lost[owned[0] : owned[1]].sum()) + self._skipped
        frame = Capture(
            pixels=self._buffer[: self._filled].copy(),
            captured_at=captured_at,
            captured_monotonic_s=captured_monotonic_s,
            source=f"lines {self._start}-{self._next_line - 1}",
            first_line=self._start,
            owned_rows=owned,
            lines_lost=lines_lost,
            fault=Reason.LINES_LOST if lost.any() or self._skipped else fault,
        )
        self._owned_from = owned_stop
        self._skipped = 0
        return frame


class SeamOwner:
    """Reports each defect once where two frames of a web meet.

    Two frames predict slightly different boxes for the defect that both see, so that by the centre alone both might
    claim it, or neither. Here the earlier frame claims what it sees on its own rows; the later one claims from
    `margin_px` above its rows on, and drops what the earlier one has claimed: the same place within `same_px`, whatever
    the label. One claim drops one defect.

    A defect cannot get lost as long as the two predicted centres are at most `margin_px` apart.
    """

    def __init__(self, margin_px: float = 8.0, same_px: float = 10.0) -> None:
        self._margin_px = margin_px
        self._same_px = same_px
        self._stop: int | None = None
        self._claimed: tuple[tuple[float, float], ...] = ()

    @property
    def state(self) -> SeamState:
        """What is remembered of the frame before."""
        return SeamState(stop=self._stop, claimed=self._claimed)

    @state.setter
    def state(self, state: SeamState) -> None:
        self._stop, self._claimed = state.stop, state.claimed

    def claim(self, first_line: int, owned_rows: tuple[int, int], defects: Sequence[Defect]) -> tuple[Defect, ...]:
        """The defects that this frame reports, in their order; call it for each judged frame, in order.

        Args:
            first_line: number of the frame's row 0 on the web.
            owned_rows: rows `[start, stop)` that the frame owns.
            defects: what was found, boxes in pixels of the frame.
        """
        start, stop = first_line + owned_rows[0], first_line + owned_rows[1]
        margin = self._margin_px
        # Midway between two possible centres: a predicted centre that is off by a tenth of a line decides nothing.
        seam = stop - _CENTRE_STEP / 2
        earlier = self._claimed if self._stop == start else ()
        centres = [(d.box.centre_px[0], d.box.centre_px[1] + first_line) for d in defects]
        # Nearest pairs first: with two defects close to the seam each one meets its own claim.
        pairs = sorted(
            (max(abs(x - u), abs(y - v)), i, j)
            for i, (x, y) in enumerate(centres)
            for j, (u, v) in enumerate(earlier)
            if max(abs(x - u), abs(y - v)) <= self._same_px
        )
        known: set[int] = set()
        spent: set[int] = set()
        for _, i, j in pairs:
            if i not in known and j not in spent:
                known.add(i)
                spent.add(j)
        mine = [i for i, (_, y) in enumerate(centres) if i not in known and start - margin <= y < seam]
        self._stop = stop
        self._claimed = tuple(centres[i] for i in mine if centres[i][1] >= stop - margin - self._same_px)
        return tuple(defects[i] for i in mine)
