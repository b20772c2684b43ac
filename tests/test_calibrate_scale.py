"""Scales from rendered targets whose size in pixels is known."""

import math

import cv2
import numpy as np
import pytest
from rendered_scene import Camera, Scene, board, circles, tilted, turned

from station.calibration import PlaneMap
from station.errors import CalibrationError
from station.scale import pixel_mm, to_mm
from station.scale_fit import fit_plane, fit_web
from station.target import Sighting, Target, find, sheet, stretches_for
from station.target_print import pdf, png

BOARD = Target("charuco", 9, 6, 4.0, 2.8)
CIRCLES = Target("circles", 8, 5, 4.5, 2.2)
ASYMMETRIC = Target("asymmetric", 4, 7, 3.8, 2.6)
SCENES: dict[Target, Scene] = {
    BOARD: board(9, 6, 4.0, 2.8),
    CIRCLES: circles(8, 5, 4.5, 2.2),
    ASYMMETRIC: circles(4, 7, 3.8, 2.6, asymmetric=True),
}
TARGETS = [BOARD, CIRCLES, ASYMMETRIC]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
@pytest.mark.parametrize(("turn", "across", "along"), [(0.0, 0.1, 0.1), (0.03, 0.1, 0.13), (-0.08, 0.1, 0.055)])
def test_a_web_with_oblong_pixels_is_measured_within_half_a_percent(
    target: Target, turn: float, across: float, along: float
) -> None:
    camera = Camera(480, round(32 / along), lambda x, y: (x * across, y * along), blur_px=1.0)
    seen = camera.see(turned(SCENES[target], turn, 5.0, 5.0), seed=3)
    fitted = fit_web(find(target, "web.png", seen, stretches_for(None, target, 480)), (480, len(seen)))
    assert fitted.mm_per_px[0] == pytest.approx(across, rel=0.005)
    assert fitted.mm_per_px[1] == pytest.approx(along, rel=0.005)
    assert fitted.residual_px < 0.3


def test_the_encoder_tells_the_length_of_a_line_and_must_not_contradict_the_target() -> None:
    camera = Camera(480, 320, lambda x, y: (x * 0.1, y * 0.1))
    view = find(BOARD, "web.png", camera.see(turned(SCENES[BOARD], 0.02, 5, 4), seed=1))
    told = fit_web(view, (480, 320), mm_per_line=0.1005)
    assert told.mm_per_px[1] == 0.1005
    assert told.along_from_encoder
    assert pixel_mm(told.map, 240, 160)[2] == pytest.approx(0.1 * 0.1005, rel=0.005)
    assert any("encoder or line rate say" in one for one in fit_web(view, (480, 320), 0.103).warnings)
    with pytest.raises(CalibrationError, match="one of them is wrong"):
        fit_web(view, (480, 320), mm_per_line=0.2)


@pytest.mark.parametrize("target", [BOARD, CIRCLES], ids=lambda target: target.kind)
def test_a_tilted_camera_has_another_scale_at_each_place(target: Target) -> None:
    place = tilted(480, 360, 0.1, tilt_degrees=12, swing_degrees=-7)
    seen = Camera(480, 360, place, blur_px=1.0).see(turned(SCENES[target], 0.05, -16.0, -10.0), seed=2)
    fitted = fit_plane([find(target, "top.png", seen)], (480, 360))
    for x, y in ((240.0, 180.0), (100.0, 100.0), (380.0, 260.0)):
        edges = [np.array([x + dx, x + dx, x + dx]) for dx in (-0.5, 0.5)]
        (u0, v0), (u1, v1) = (place(edge, np.array([y - 0.5, y, y + 0.5])) for edge in edges)
        area = abs((u1[1] - u0[1]) * (v0[2] - v0[0]) - (v1[1] - v0[1]) * (u0[2] - u0[0]))
        assert pixel_mm(fitted.map, x, y)[2] == pytest.approx(area, rel=0.01)


def test_a_lens_that_bends_is_told_from_several_views() -> None:
    looks = [(0, 0, 0.0), (28, 5, 0.1), (-25, 10, 0.3), (5, 28, -0.2), (-8, -27, 0.5), (20, -20, 1.2), (-20, 22, 2.0)]
    views = []
    for number, (tilt, swing, turn) in enumerate(looks):
        camera = Camera(480, 360, tilted(480, 360, 0.1, tilt, swing, k1=-0.25), blur_px=0.8)
        # The middle of the board, at (18, 12) mm of it, stays in the middle of the picture.
        u = -(18 * math.cos(turn) - 12 * math.sin(turn))
        v = -(18 * math.sin(turn) + 12 * math.cos(turn))
        seen = camera.see(turned(SCENES[BOARD], turn, u, v), seed=number)
        views.append(find(BOARD, f"{number}.png", seen))
    alone, together = fit_plane(views[:1], (480, 360)), fit_plane(views, (480, 360))
    assert together.lens_rms_px is not None
    assert together.lens_rms_px < 0.3
    assert isinstance(together.map, PlaneMap)
    assert together.map.distortion[0] == pytest.approx(-0.25, abs=0.05)
    assert together.residual_px < alone.residual_px / 2
    # In a corner a pixel shows more of the plane than in the middle.
    truth = tilted(480, 360, 0.1, k1=-0.25)
    u_mm, v_mm = truth(np.array([99.5, 100.5, 100.0, 100.0]), np.array([80.0, 80.0, 79.5, 80.5]))
    area = abs((u_mm[1] - u_mm[0]) * (v_mm[3] - v_mm[2]) - (v_mm[1] - v_mm[0]) * (u_mm[3] - u_mm[2]))
    assert pixel_mm(together.map, 100, 80)[2] == pytest.approx(area, rel=0.01)
    with pytest.raises(CalibrationError, match="2 views of the target"):
        fit_plane(views[:2], (480, 360))


def test_pictures_without_the_target_are_named() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (240, 320), np.uint8)
    for target in TARGETS:
        with pytest.raises(CalibrationError, match=r"wall.png: the target \(.*\) is not in it"):
            find(target, "wall.png", noise)
    camera = Camera(320, 240, lambda x, y: (x * 0.1, y * 0.1))
    cut = camera.see(turned(SCENES[BOARD], 0, 22, 16), seed=1)
    with pytest.raises(CalibrationError, match=r"cut\.png"):
        find(BOARD, "cut.png", cut)
    with pytest.raises(CalibrationError, match="all of its circles must be in the picture"):
        find(CIRCLES, "cut.png", camera.see(turned(SCENES[CIRCLES], 0, 5, 5), seed=1))


def test_points_that_are_not_those_of_the_target_are_refused() -> None:
    rng = np.random.default_rng(1)
    points = CIRCLES.points_mm
    view = Sighting("bent.png", points * 10 + rng.normal(0, 12, points.shape), points)
    with pytest.raises(CalibrationError, match=r"bent.png: the points do not lie as on this target"):
        fit_plane([view], (480, 360))
    with pytest.raises(CalibrationError, match=r"bent.png: the points do not lie as on this target"):
        fit_web(view, (480, 360))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (("charuco", 2, 8, 10, 7), "at least 3×3"),
        (("charuco", 9, 6, 10, 10), "do not fit into 10 mm"),
        (("circles", 9, 6, 0, 1), "must be above 0"),
        (("asymmetric", 4, 8, 10, 5), "even number of rows"),
        (("charuco", 9, 6, 10, 7, "9x9"), "allowed: 4x4, 5x5, 6x6"),
    ],
)
def test_targets_that_contradict_themselves_are_refused(numbers: tuple[object, ...], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        Target(*numbers)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_what_is_printed_is_what_is_looked_for(target: Target) -> None:
    data = png(sheet(target), dpi=254)
    assert data[37:41] == b"pHYs"
    assert int.from_bytes(data[41:45], "big") == 10_000
    printed = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)
    fitted = fit_plane([find(target, "sheet.png", printed)], (printed.shape[1], printed.shape[0]))
    assert fitted.mm_per_px == pytest.approx((0.1, 0.1), rel=0.002)
    assert fitted.points == len(target.points_mm)


def test_a_pdf_has_the_size_of_its_sheet_and_a_table_that_leads_to_its_objects() -> None:
    drawn = sheet(BOARD)
    data = pdf(drawn)
    assert data.startswith(b"%PDF-1.6")
    assert f"/MediaBox [0 0 {drawn.width_mm / 25.4 * 72:.4f} {drawn.height_mm / 25.4 * 72:.4f}]".encode() in data
    table = int(data.rsplit(b"startxref\n", 1)[1].split()[0])
    for number, line in enumerate(data[table:].splitlines()[3:8], start=1):
        assert data[int(line.split()[0]) :].startswith(b"%d 0 obj" % number)


def test_a_map_is_the_same_forwards_in_small_steps_and_at_once() -> None:
    camera = Camera(480, 320, lambda x, y: (x * 0.1, y * 0.1))
    fitted = fit_web(find(BOARD, "web.png", camera.see(turned(SCENES[BOARD], 0.02, 5, 4), seed=1)), (480, 320))
    ends = to_mm(fitted.map, np.array([[100.0, 50.0], [300.0, 50.0]]))
    assert float(np.hypot(*(ends[1] - ends[0]))) == pytest.approx(20.0, rel=0.003)
