"""The rendered web: the same pixels however it is cut, and defects that are what they are called."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from station.boards import BOARD_LABELS, LARGEST_BOX_PX, PITCH_LINES, SHARE_LINES, Imaging, TrueDefect, Web
from station.linescan import OVERLAP_LINES

MIDDLE = (48 + 208) // 2


@pytest.fixture(scope="module")
def web() -> Web:
    return Web(11, defect_share=0.9)


@pytest.fixture(scope="module")
def examples() -> dict[str, list[tuple[TrueDefect, NDArray[np.bool_], NDArray[np.bool_]]]]:
    """By label: the defect, and the copper of its whole board without and with this and its other defects."""
    found: dict[str, list[tuple[TrueDefect, NDArray[np.bool_], NDArray[np.bool_]]]] = {k: [] for k in BOARD_LABELS}
    for seed in range(3):
        rough = Imaging(roughness_px=0.45)
        source = Web(500 + seed, defect_share=0.95, imaging=rough)
        for index in range(8):
            base = index * PITCH_LINES
            good = source.artwork(base, PITCH_LINES, defects=False)
            bad = source.artwork(base, PITCH_LINES)
            for defect in source.defects(base, base + PITCH_LINES):
                x1, y1, x2, y2 = defect.box
                alone = good.copy()
                window = (slice(y1 - base, y2 - base), slice(x1, x2))
                alone[window] = bad[window]
                shifted = TrueDefect(defect.label, (x1, y1 - base, x2, y2 - base), defect.contrast)
                found[defect.label].append((shifted, good > MIDDLE, alone > MIDDLE))
    return found


def pieces(copper: NDArray[np.bool_]) -> int:
    """Connected pieces of copper, or of substrate when given its inverse."""
    return int(cv2.connectedComponents(copper.astype(np.uint8), connectivity=8)[0]) - 1


def hole_count(copper: NDArray[np.bool_]) -> int:
    """Areas of substrate, without the single pixels that two rough edges may enclose."""
    _, _, stats, _ = cv2.connectedComponentsWithStats((~copper).astype(np.uint8), connectivity=4)
    return int((stats[1:, cv2.CC_STAT_AREA] >= 4).sum())


@settings(max_examples=15)
@given(first=st.integers(0, 4 * PITCH_LINES), cuts=st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_any_slicing_gives_the_same_pixels(first: int, cuts: list[int]) -> None:
    web = _shared()
    whole = web.render(first, sum(cuts))
    parts = []
    line = first
    for lines in cuts:
        parts.append(web.render(line, lines))
        line += lines
    assert np.array_equal(np.concatenate(parts), whole)


_cached: list[Web] = []


def _shared() -> Web:
    if not _cached:
        _cached.append(Web(11, defect_share=0.9))
    return _cached[0]


def test_another_process_would_see_the_same(web: Web) -> None:
    again = Web(11, defect_share=0.9)
    far = 500 * PITCH_LINES + 77
    assert again.defects(far, far + 4000) == web.defects(far, far + 4000)
    assert np.array_equal(again.render(far, 300), web.render(far, 300))
    assert web.render(0, 5).dtype == np.uint8
    assert not np.array_equal(Web(12).render(100, 200), Web(13).render(100, 200))


def test_the_order_of_questions_does_not_matter(web: Web) -> None:
    backwards = Web(11, defect_share=0.9)
    late = [backwards.defects(n * 1000, n * 1000 + 1000) for n in (9, 4, 0)]
    assert late == [web.defects(n * 1000, n * 1000 + 1000) for n in (9, 4, 0)]


@given(cut=st.integers(0, 6 * PITCH_LINES))
@settings(max_examples=30)
def test_each_defect_belongs_to_one_range_of_lines(cut: int) -> None:
    end = 6 * PITCH_LINES
    web = _shared()
    assert sorted(web.defects(0, cut) + web.defects(cut, end), key=str) == sorted(web.defects(0, end), key=str)


def test_defects_do_not_change_the_noise_elsewhere() -> None:
    good, bad = Web(21, defect_share=0.0), Web(21, defect_share=0.9)
    lines = 2 * PITCH_LINES
    changed = good.render(0, lines) != bad.render(0, lines)
    defects = bad.defects(0, lines)
    assert defects
    assert good.defects(0, lines) == ()
    for defect in defects:
        x1, y1, x2, y2 = defect.box
        assert changed[y1:y2, x1:x2].any()
        changed[y1:y2, x1:x2] = False
    assert not changed.any()
    assert np.array_equal(bad.render(0, lines, defects=False), good.render(0, lines))


def test_about_the_share_of_frames_that_was_asked_for() -> None:
    web = Web(5, defect_share=0.1)
    frames = 1500
    hit = {int(d.centre[1] // SHARE_LINES) for d in web.defects(0, frames * SHARE_LINES)}
    assert 0.07 < len(hit) / frames < 0.13


def test_boxes_fit_the_overlap_and_hold_some_surroundings(web: Web) -> None:
    defects = web.defects(0, 40 * PITCH_LINES)
    assert {d.label for d in defects} == set(BOARD_LABELS)
    for defect in defects:
        x1, y1, x2, y2 = defect.box
        assert 20 <= x2 - x1 <= LARGEST_BOX_PX < OVERLAP_LINES
        assert 20 <= y2 - y1 <= LARGEST_BOX_PX < OVERLAP_LINES
        assert 0 <= x1 < x2 <= 640
        assert 0.6 <= defect.contrast <= 1.0


def test_every_kind_was_placed_often(
    examples: dict[str, list[tuple[TrueDefect, NDArray[np.bool_], NDArray[np.bool_]]]],
) -> None:
    assert min(len(found) for found in examples.values()) >= 12


def test_an_open_cuts_one_net_in_two(
    examples: dict[str, list[tuple[TrueDefect, NDArray[np.bool_], NDArray[np.bool_]]]],
) -> None:
    for defect, good, bad in examples["open"]:
        assert pieces(bad) == pieces(good) + 1, defect


def test_a_short_joins_two_nets(
    examples: dict[str, list[tuple[TrueDefect, NDArray[np.bool_], NDArray[np.bool_]]]],
) -> None:
    for defect, good, bad in examples["short"]:
        assert pieces(bad) == pieces(good) - 1, defect


def test_spurious_copper_stands_alone(
    examples: dict[str, list[tuple[TrueDefect, NDArray[np.bool_], NDArray[np.bool_]]]],
) -> None:
    for defect, good, bad in examples["copper"]:
        assert pieces(bad) == pieces(good) + 1, defect
        assert not (good & ~bad).any()


def test_a_pinhole_is_one_more_hole(
    examples: dict[str, list[tuple[TrueDefect, NDArray[np.bool_], NDArray[np.bool_]]]],
) -> None:
    for defect, good, bad in examples["pin-hole"]:
        assert hole_count(bad) == hole_count(good) + 1, defect
        assert pieces(bad) == pieces(good)


@pytest.mark.parametrize(("label", "sign"), [("mousebite", -1), ("spur", 1)])
def test_a_bite_or_a_spur_changes_the_edge_only(
    examples: dict[str, list[tuple[TrueDefect, NDArray[np.bool_], NDArray[np.bool_]]]], label: str, sign: int
) -> None:
    for defect, good, bad in examples[label]:
        change = int(bad.sum()) - int(good.sum())
        assert change * sign >= 6, defect
        assert pieces(bad) == pieces(good), defect
        assert hole_count(bad) == hole_count(good), defect


def test_good_boards_have_nothing_that_is_a_defect_by_its_form() -> None:
    """No lone piece of copper is as small as spurious copper, and no hole as small as a pin-hole but a drilled one."""
    for seed in range(2):
        web = Web(900 + seed, defect_share=0.0)
        copper = web.artwork(0, 4 * PITCH_LINES) > MIDDLE
        _, _, stats, _ = cv2.connectedComponentsWithStats(copper.astype(np.uint8), connectivity=8)
        assert np.maximum(stats[1:, cv2.CC_STAT_WIDTH], stats[1:, cv2.CC_STAT_HEIGHT]).min() > 22
        art = web.artwork(0, 4 * PITCH_LINES)
        count, _, stats, _ = cv2.connectedComponentsWithStats((~copper).astype(np.uint8), connectivity=4)
        for label in range(1, count):
            if stats[label, cv2.CC_STAT_AREA] < 250:
                x, y, w, h = (int(v) for v in stats[label, :4])
                assert art[y : y + h, x : x + w].min() < 24


def test_the_camera_sees_about_what_is_stated() -> None:
    web = Web(31, defect_share=0.0)
    seen = web.render(0, 2 * PITCH_LINES)[:, 280:360].astype(np.float64)
    art = web.artwork(0, 2 * PITCH_LINES)[:, 280:360]
    inside = cv2.erode((art == 48).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    copper = cv2.erode((art == 208).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert 54 < seen[inside].mean() < 66
    assert 154 < seen[copper].mean() < 186


def test_training_cameras_differ() -> None:
    looks = [Imaging.varied(seed) for seed in range(40)]
    assert len(set(looks)) == 40
    assert max(look.substrate for look in looks) > 80
    assert min(look.substrate for look in looks) < 45
    assert all(look.substrate + look.contrast <= 232 for look in looks)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Web(1, width_px=100), "width_px = 100"),
        (lambda: Web(1, defect_share=1.0), "defect_share = 1.0"),
        (lambda: Web(1).render(-1, 5), "lines -1"),
        (lambda: Web(1).render(0, 0), "lines 0"),
    ],
)
def test_bad_arguments_are_named(make: object, told: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=told):
        make()
