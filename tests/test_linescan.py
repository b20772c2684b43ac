"""Slices to frames: every line has one owner, lost lines are told, and seam defects are reported once."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.errors import CameraError
from station.linescan import FRAME_LINES, OVERLAP_LINES, FrameAssembler, SeamOwner
from station.messages import Box, Capture, Defect, Pixels, Reason, Slice

START = datetime(2030, 1, 1, tzinfo=UTC)
WIDTH = 4


def line_pixels(first: int, lines: int) -> Pixels:
    """Each line tells its own number, never 0."""
    return np.repeat((np.arange(first, first + lines) % 251 + 1).astype(np.uint8)[:, None], WIDTH, axis=1)


def piece(first: int, lines: int, *, partial: bool = False) -> Slice:
    end = first + lines
    return Slice(line_pixels(first, lines), first, START + timedelta(seconds=end), float(end), partial)


def told(frame: Capture) -> tuple[int, int]:
    """First line and pixels' height; the frame must be whole."""
    assert frame.pixels is not None
    assert frame.first_line is not None
    return frame.first_line, frame.pixels.shape[0]


def owned(frame: Capture) -> tuple[int, int]:
    assert frame.first_line is not None
    assert frame.owned_rows is not None
    return frame.first_line + frame.owned_rows[0], frame.first_line + frame.owned_rows[1]


def test_the_first_frames() -> None:
    assembler = FrameAssembler(WIDTH)
    frames = []
    for first in range(0, 1760, 32):
        frames += assembler.feed(piece(first, 32))
    assert [told(f) for f in frames] == [(0, 640), (544, 640), (1088, 640)]
    assert [owned(f) for f in frames] == [(0, 592), (592, 1136), (1136, 1680)]
    assert [f.captured_monotonic_s for f in frames] == [640.0, 1184.0, 1728.0]
    assert frames[0].captured_at == START + timedelta(seconds=640)
    assert frames[1].source == "lines 544-1183"
    assert all(f.fault is None and f.lines_lost == 0 for f in frames)
    for frame in frames:
        first, lines = told(frame)
        assert frame.pixels is not None
        assert np.array_equal(frame.pixels, line_pixels(first, lines))


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, int, list[Slice]]:
    """Frame and overlap sizes, and slices with losses and stops."""
    frame_lines = 16 * draw(st.integers(1, 5))
    overlap = 2 * draw(st.integers(0, frame_lines // 4 - 1))
    line = draw(st.integers(0, 50))
    pieces = []
    for _ in range(draw(st.integers(1, 40))):
        if draw(st.integers(0, 9)) == 0:
            line += draw(st.integers(1, 4 * frame_lines))
        lines = draw(st.integers(1, 2 * frame_lines))
        pieces.append(piece(line, lines, partial=draw(st.integers(0, 11)) == 0))
        line += lines
    return frame_lines, overlap, pieces


@given(streams())
def test_every_line_has_one_owner_and_every_loss_is_counted_once(stream: tuple[int, int, list[Slice]]) -> None:
    frame_lines, overlap, pieces = stream
    assembler = FrameAssembler(WIDTH, frame_lines, overlap)
    frames = [frame for each in pieces for frame in assembler.feed(each)]
    end = pieces[-1].first_line + len(pieces[-1].pixels)
    frames += assembler.finish(START, 0.0)
    delivered = {n for p in pieces for n in range(p.first_line, p.first_line + len(p.pixels))}
    owners: dict[int, int] = {}
    for index, frame in enumerate(frames):
        for line in range(*owned(frame)):
            assert line not in owners, "two owners"
            owners[line] = index
    assert delivered <= set(owners)
    assert sum(f.lines_lost for f in frames) == end - pieces[0].first_line - len(delivered)
    for frame in frames:
        first, height = told(frame)
        assert frame.pixels is not None
        assert frame.owned_rows is not None
        assert 0 <= frame.owned_rows[0] < frame.owned_rows[1] <= height <= frame_lines
        missing = [n for n in range(first, first + height) if n not in delivered]
        if missing or frame.lines_lost:
            assert frame.fault is Reason.LINES_LOST
        else:
            assert frame.fault in (None, Reason.PARTIAL)
        assert height == frame_lines or frame.fault is not None
        for row in range(height):
            expected = (first + row) % 251 + 1 if first + row in delivered else 0
            assert (frame.pixels[row] == expected).all()


@given(streams())
def test_a_whole_defect_is_seen_by_the_frame_that_owns_its_centre(stream: tuple[int, int, list[Slice]]) -> None:
    frame_lines, overlap, pieces = stream
    assembler = FrameAssembler(WIDTH, frame_lines, overlap)
    begin = pieces[0].first_line
    for frame in (f for each in pieces for f in assembler.feed(each)):
        if frame.fault is not None:
            continue
        first, height = told(frame)
        start, stop = owned(frame)
        assert start - first >= overlap // 2 or first == begin
        assert first + height - stop >= overlap // 2


def test_a_loss_beside_a_frame_flags_every_frame_that_shows_it() -> None:
    assembler = FrameAssembler(WIDTH)
    frames = assembler.feed(piece(0, 600))
    frames += assembler.feed(piece(610, 1200))
    assert [told(f) for f in frames] == [(0, 640), (544, 640), (1088, 640)]
    assert [f.fault for f in frames] == [Reason.LINES_LOST, Reason.LINES_LOST, None]
    assert [f.lines_lost for f in frames] == [0, 10, 0]


def test_a_stop_ends_the_frame_and_the_next_one_begins_with_context() -> None:
    assembler = FrameAssembler(WIDTH)
    frames = assembler.feed(piece(0, 700))
    frames += assembler.feed(piece(700, 20, partial=True))
    frames += assembler.feed(piece(720, 600))
    assert [told(f) for f in frames] == [(0, 640), (544, 176), (672, 640)]
    assert [owned(f) for f in frames] == [(0, 592), (592, 720), (720, 1264)]
    assert [f.fault for f in frames] == [None, Reason.PARTIAL, None]
    rest = assembler.finish(START, 0.0)
    assert [owned(f) for f in rest] == [(1264, 1320)]
    assert [f.fault for f in rest] == [Reason.PARTIAL]


def test_nothing_is_left_after_the_end() -> None:
    assembler = FrameAssembler(WIDTH)
    assert assembler.finish(START, 0.0) == []
    assembler.feed(piece(0, 10))
    assert [owned(f) for f in assembler.finish(START, 0.0)] == [(0, 10)]
    assert assembler.finish(START, 0.0) == []


@pytest.mark.parametrize(
    ("bad", "told_of"),
    [
        (piece(5, 3), "line 5 came after line 9"),
        (Slice(np.zeros((3, 7), np.uint8), 10, START, 0.0), "shape"),
        (Slice(np.zeros((0, WIDTH), np.uint8), 10, START, 0.0), "shape"),
    ],
)
def test_an_impossible_slice_is_refused(bad: Slice, told_of: str) -> None:
    assembler = FrameAssembler(WIDTH)
    assembler.feed(piece(0, 10))
    with pytest.raises(CameraError, match=told_of):
        assembler.feed(bad)


@pytest.mark.parametrize(("frame_lines", "overlap"), [(0, 0), (20, 2), (64, 33), (64, 32), (64, -2)])
def test_sizes_that_cannot_tile_are_refused(frame_lines: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        FrameAssembler(WIDTH, frame_lines, overlap)


STEP = FRAME_LINES - OVERLAP_LINES


def found(x: float, y: float, size: float, label: str = "spur") -> Defect:
    return Defect(label=label, score=0.9, box=Box(x_px=x - size / 2, y_px=y - size / 2, width_px=size, height_px=size))


jitter = st.tuples(*[st.floats(-3, 3) for _ in range(3)])


@given(
    st.lists(
        st.tuples(
            st.integers(0, 20),
            st.one_of(st.floats(STEP * 1.0, STEP * 3.0), st.floats(-16, 16).map(lambda d: 2 * STEP + 48 + d)),
            st.lists(jitter, min_size=4, max_size=4),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_each_defect_is_reported_once_whatever_the_two_frames_predict(
    truth: list[tuple[int, float, list[tuple[float, float, float]]]],
) -> None:
    # Closer than this the detector itself sees one defect.
    placed: list[tuple[int, float]] = []
    kept = []
    for column, y, noise in truth:
        if all(abs(column - c) * 25 >= 25 or abs(y - other) >= 25 for c, other in placed):
            placed.append((column, y))
            kept.append((column * 25.0, y, noise))
    owner = SeamOwner()
    claims = []
    for index in range(4):
        first = index * STEP
        seen = [
            found(x + noise[index][0], y - first + noise[index][1], 30 + noise[index][2])
            for x, y, noise in kept
            if first + 16 <= y < first + FRAME_LINES - 16
        ]
        start = 0 if index == 0 else OVERLAP_LINES // 2
        mine = owner.claim(first, (start, FRAME_LINES - OVERLAP_LINES // 2), seen)
        claims += [(d.box.centre_px[0], d.box.centre_px[1] + first) for d in mine]
    assert len(claims) == len(kept)
    for x, y, _ in kept:
        assert sum(abs(x - u) <= 3.01 and abs(y - v) <= 3.01 for u, v in claims) == 1


def test_a_defect_that_only_the_later_frame_sees_is_still_reported() -> None:
    owner = SeamOwner()
    assert owner.claim(0, (0, 592), []) == ()
    late = found(100, 592 - 544 - 4, 30)
    assert owner.claim(544, (48, 592), [late]) == (late,)


def test_the_label_may_differ_between_the_two_frames() -> None:
    owner = SeamOwner()
    early = found(100, 590, 30, "spur")
    assert owner.claim(0, (0, 592), [early]) == (early,)
    assert owner.claim(544, (48, 592), [found(101, 50, 32, "short")]) == ()


def test_after_a_frame_that_was_not_judged_nothing_is_dropped() -> None:
    owner = SeamOwner()
    owner.claim(0, (0, 592), [found(100, 590, 30)])
    same_place = found(100, 50, 30)
    assert owner.claim(1088, (48, 592), [same_place]) == (same_place,)


def test_what_stands_in_the_context_rows_is_the_neighbours() -> None:
    owner = SeamOwner()
    assert owner.claim(0, (0, 592), [found(100, 620, 30)]) == ()
    assert owner.claim(544, (48, 592), [found(100, 20, 30)]) == ()
