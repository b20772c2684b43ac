"""`station calibrate` as an engineer gives it, and what a camera then does with what it wrote."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rendered_scene import Camera, Scene, Spot, board, surface, turned
from test_station import embedded, statuses, verdicts

from station.__main__ import main
from station.adapters.camera_identity import identify
from station.adapters.system_clock import SystemClock
from station.calibrated import CameraCalibration, read_calibration
from station.calibration import CalibrationKind, QualityCalibration, ScaleCalibration, read_file
from station.manifest import QualityLimits, read_bundle
from station.messages import Box, Capture, Defect, Frame, ModelRef, Outcome, Pixels, Reason, Scores, Verdict
from station.pipeline import Inspector, LoadedModel, Setup
from station.recipe import NO_RECIPE, Recipe
from station.settings import SHIPPED_BUNDLE, CameraSettings, DeviceCamera, ModelSettings, load

WIDTH, HEIGHT, MM = 240, 180, 0.1
SPOT = Spot(12.0, 9.0, 2.0, 1.5)
PART = [Spot(6, 5, 5, 3, 0.3), Spot(17, 6, 3, 5, 0.1), Spot(8, 13, 6, 2, is_round=False), Spot(18, 14, 3, 2, 0.8)]
EYE = Camera(WIDTH, HEIGHT, lambda x, y: (x * MM, y * MM), read_noise=0.7, shot_noise=0.01)
GEOMETRY = ["--columns", "7", "--rows", "5", "--pitch-mm", "3", "--dot-mm", "2.1"]
TARGET = turned(board(7, 5, 3.0, 2.1), 0.02, 1.5, 1.5)
CAMERA = '[camera.c]\nkind = "folder"\npath = "in"\n'


class OneSpot:
    """A model that finds the same spot in each picture."""

    ref = ModelRef(name="one", version="1", sha256="0" * 64)

    def infer(self, pixels: Pixels) -> Scores:
        assert pixels.ndim == 2
        reach_u, reach_v = SPOT.reach_mm
        box = Box(
            x_px=(SPOT.u - reach_u) / MM,
            y_px=(SPOT.v - reach_v) / MM,
            width_px=2 * reach_u / MM,
            height_px=2 * reach_v / MM,
        )
        return Scores((Defect(label="spot", score=0.9, box=box),), 0.9)


def part(spots: Sequence[Spot] = PART) -> Scene:
    """A part with fine marks all over it: without such, noise is all that the focus measure sees."""
    plain = surface(0.6, spots)
    return lambda u, v: np.where((u % 1.1 < 0.4) & (v % 2.0 < 0.7), 0.15, plain(u, v))


def write(folder: Path, **pictures: Pixels) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    return folder


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """A configuration with one camera that names a calibration."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "station.toml"
    path.write_text(f'version = 1\n{CAMERA}calibration = "calibration"\n', encoding="utf-8")
    return path


def calibrate(line: Path, kind: str, pictures: Path, *more: str) -> int:
    return main(["calibrate", kind, "--config", str(line), "--pictures", str(pictures), *more])


def good_parts(folder: Path, count: int = 12) -> Path:
    """Parts that lie up to 0.8 px from their place, under a lamp that flickers by 1 %."""
    rng = np.random.default_rng(0)
    for index in range(count):
        u, v = rng.uniform(-0.08, 0.08, 2)
        lit = replace(EYE, light=200 * (1 + rng.normal(0, 0.01)))
        write(folder, **{f"good-{index:02}": lit.see(turned(part(), 0, u, v), seed=index)})
    return folder


def inspector(
    line: Path,
    limits: QualityLimits,
    recipe: Recipe = NO_RECIPE,
    *,
    changed: dict[str, Any] | None = None,
    identity: Callable[[CameraSettings], str | None] = identify,
) -> Inspector:
    """The camera of the configuration, with a bundle of these limits, as it judges after a start."""
    table = load(line, {}).camera["c"].model_copy(update=changed or {})
    assert table.calibration is not None
    calibration = CameraCalibration("c", table, read_calibration(table.calibration), lambda: identity(table))
    made = Inspector("s", "c", 1, table, ModelSettings(), SystemClock(), calibration=calibration)
    manifest = read_bundle(SHIPPED_BUNDLE).manifest.model_copy(update={"quality": limits})
    made.use(Setup(LoadedModel(OneSpot(), manifest), recipe))
    return made


def judge(made: Inspector, pixels: Pixels) -> Verdict:
    frame = Frame("c", 1, Capture(pixels, datetime.now(UTC), SystemClock().monotonic_s()))
    return made.inspect(made.correct(frame))


def test_limits_from_good_parts_take_the_place_of_the_bundles(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(line, "quality", good_parts(line.parent / "good")) == 0
    told = capsys.readouterr().out
    assert "quality limits from 12 good pictures" in told
    assert "no blur can be told" not in told
    assert all(f"  {measure} " in told for measure in ("mean", "contrast", "focus", "shift_x_px", "similarity"))
    file = read_file(line.parent / "calibration", QualityCalibration, CalibrationKind.QUALITY)
    assert file is not None
    assert file.framing is not None
    assert len(file.pictures) == file.measured["mean"].count == 12
    # None of the good parts, nor another one of their kind, would be judged by a bundle that wants a brighter picture.
    bright, none = QualityLimits(mean_min=250.0), QualityLimits()
    another = EYE.see(turned(part(), 0, 0.05, -0.05), seed=77)
    assert judge(inspector(line, bright), another).reasons == (Reason.DEFECT,)
    # And a bundle that takes anything would judge all of these.
    dim, glaring, unfocused = replace(EYE, light=120), replace(EYE, light=270), replace(EYE, blur_px=3.0)
    for eye, reason in ((dim, Reason.DARK), (glaring, Reason.BRIGHT), (unfocused, Reason.BLURRED)):
        seen = judge(inspector(line, none), eye.see(part(), seed=5))
        assert (seen.outcome, seen.reasons) == (Outcome.UNKNOWN, (reason,))
    (line.parent / "calibration" / "quality.json").rename(line.parent / "calibration" / "put-aside.json")
    assert judge(inspector(line, bright), another).reasons == (Reason.DARK,)
    assert judge(inspector(line, none), dim.see(part(), seed=5)).reasons == (Reason.DEFECT,)


@pytest.mark.parametrize(
    "scene",
    [
        turned(part(), 0, 1.4, 0),
        turned(part(), 0, 0, -1.2),
        turned(part(), np.pi, WIDTH * MM, HEIGHT * MM),
        part([*PART[1:], Spot(6, 13, 5, 3, 0.3), Spot(18, 12, 5, 4), Spot(3, 3, 4, 4)]),
    ],
    ids=["moved along", "moved up", "upside down", "another part"],
)
def test_a_part_that_is_not_in_its_place_is_misplaced(line: Path, scene: Scene) -> None:
    assert calibrate(line, "quality", good_parts(line.parent / "good")) == 0
    made = inspector(line, QualityLimits())
    seen = judge(made, EYE.see(scene, seed=3))
    assert (seen.outcome, seen.reasons, seen.defects) == (Outcome.UNKNOWN, (Reason.MISPLACED,), ())
    assert judge(made, EYE.see(part(), seed=4)).reasons == (Reason.DEFECT,)


def test_parts_that_lie_anywhere_are_not_held_to_a_place(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    for index in range(10):
        scene = turned(part(), rng.uniform(0, 6), rng.uniform(4, 16), rng.uniform(4, 12))
        write(line.parent / "good", **{f"{index}": EYE.see(scene, seed=index)})
    assert calibrate(line, "quality", line.parent / "good") == 0
    assert "no framing: " in capsys.readouterr().out
    file = read_file(line.parent / "calibration", QualityCalibration, CalibrationKind.QUALITY)
    assert file is not None
    assert file.framing is None


def test_parts_on_which_no_blur_can_be_told_are_said(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grainy = replace(EYE, read_noise=1.5, shot_noise=0.06)
    for index in range(6):
        write(line.parent / "good", **{f"{index}": grainy.see(surface(0.6, PART), seed=index)})
    assert calibrate(line, "quality", line.parent / "good") == 0
    assert "warning: no blur can be told: noise alone gives a focus of 1" in capsys.readouterr().out
    blurred = replace(grainy, blur_px=3.0).see(surface(0.6, PART), seed=9)
    assert judge(inspector(line, QualityLimits()), blurred).reasons == (Reason.DEFECT,)


def scaled(line: Path) -> Pixels:
    """Calibrate the scale; a picture with the spot that the model finds."""
    write(line.parent / "target", board=EYE.see(TARGET, seed=1))
    assert calibrate(line, "scale", line.parent / "target", *GEOMETRY) == 0
    return EYE.see(surface(0.7, [SPOT]), seed=8)


def test_a_defect_has_its_area_and_a_rule_in_mm2_lets_it_pass(line: Path) -> None:
    spot = scaled(line)
    for most, outcome in ((SPOT.area_mm2 * 1.1, Outcome.OK), (SPOT.area_mm2 * 0.9, Outcome.NG)):
        recipe = Recipe.model_validate({"product": "p", "allow": {"small": {"max_area_mm2": most}}})
        seen = judge(inspector(line, QualityLimits(), recipe), spot)
        assert seen.outcome is outcome
        (defect,) = (*seen.defects, *seen.allowed)
        assert defect.area_mm2 == pytest.approx(SPOT.area_mm2, rel=0.05)


@pytest.mark.parametrize(
    ("changed", "identity", "told"),
    [
        ({}, lambda _: "folder elsewhere", "scale: the camera was folder in, now it is folder elsewhere"),
        ({"rotate_degrees": 180}, identify, "scale: rotate_degrees was 0, now it is 180"),
    ],
    ids=["id", "rotation"],
)
@pytest.mark.parametrize("uncalibrated", ["judge", "unknown"])
def test_another_camera_than_the_calibrated_one_is_told_and_has_no_areas(
    line: Path, changed: dict[str, Any], identity: Callable[[CameraSettings], str | None], told: str, uncalibrated: str
) -> None:
    spot = scaled(line)
    made = inspector(line, QualityLimits(), changed={"uncalibrated": uncalibrated, **changed}, identity=identity)
    assert made.calibration_problem == f"{told}; defects have no area"
    assert not made.has_scale
    seen = judge(made, spot)
    if uncalibrated == "judge":
        assert [defect.area_mm2 for defect in seen.defects] == [None]
        assert (seen.outcome, seen.reasons) == (Outcome.NG, (Reason.DEFECT,))
    else:
        assert (seen.outcome, seen.reasons, seen.defects) == (Outcome.UNKNOWN, (Reason.UNCALIBRATED,), ())


def test_pictures_of_another_size_are_told_until_they_are_right_again(line: Path) -> None:
    spot = scaled(line)
    made = inspector(line, QualityLimits(), changed={"uncalibrated": "unknown"})
    first = judge(made, spot)
    assert first.outcome is Outcome.NG
    assert first.defects[0].area_mm2 is not None
    assert judge(made, spot[:-20]).reasons == (Reason.UNCALIBRATED,)
    told = f"pictures were {WIDTH}×{HEIGHT} px, now they are {WIDTH}×{HEIGHT - 20}"
    assert made.calibration_problem == f"scale: {told}; defects have no area"
    again = judge(made, spot)
    assert again.outcome is Outcome.NG
    assert again.defects[0].area_mm2 == first.defects[0].area_mm2


def test_a_product_with_other_controls_loses_what_they_change_and_no_more(tmp_path: Path) -> None:
    """The scale follows the focus only; limits and flat field follow the exposure as well."""
    device = tmp_path / "video0"
    device.touch()
    line = tmp_path / "station.toml"
    controls = "controls = { exposure = 100.0, focus = 30.0 }\n"
    table = f'[camera.c]\nkind = "v4l2"\ndevice = "{device}"\ncalibration = "calibration"\n{controls}'
    line.write_text(f"version = 1\n{table}", encoding="utf-8")
    white = {str(index): EYE.see(surface(0.9), seed=index) for index in range(8)}
    assert calibrate(line, "flat-field", write(tmp_path / "white", **white)) == 0
    spot = scaled(line)
    assert isinstance(load(line, {}).camera["c"], DeviceCamera)
    made = inspector(line, QualityLimits())
    loaded = LoadedModel(
        OneSpot(), read_bundle(SHIPPED_BUNDLE).manifest.model_copy(update={"quality": QualityLimits()})
    )
    uneven = "pictures are judged as they come"
    dimmed = f"flat-field: exposure was 100, now it is 50; {uneven}"
    moved = "focus was 30, now it is 31"
    for exposure, focus, problem, is_even, has_area in (
        (100.0, 30.0, None, True, True),
        (50.0, 30.0, dimmed, False, True),
        (100.0, 31.0, f"flat-field: {moved}; {uneven}; scale: {moved}; defects have no area", False, False),
        (100.0, 30.0, None, True, True),
    ):
        made.use(Setup(loaded, controls={"exposure": exposure, "focus": focus}))
        assert made.calibration_problem == problem
        seen = judge(made, spot)
        assert (seen.latency_ms.correction > 0, seen.defects[0].area_mm2 is not None) == (is_even, has_area)


def test_the_version_before_stays_and_can_be_put_back(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = line.parent / "calibration"
    scaled(line)
    first = (folder / "scale.json").read_bytes()
    closer = replace(EYE, to_mm=lambda x, y: (x * MM * 0.98, y * MM * 0.98))
    write(line.parent / "closer", board=closer.see(TARGET, seed=2))
    capsys.readouterr()
    assert calibrate(line, "scale", line.parent / "closer", *GEOMETRY) == 0
    told = capsys.readouterr().out
    (kept,) = folder.glob("scale.*Z.json")
    assert f"the version before is {kept.name}" in told
    assert kept.read_bytes() == first
    found = read_calibration(folder).scale
    assert found is not None
    assert found.mm_per_px_x == pytest.approx(MM * 0.98, rel=0.003)
    kept.replace(folder / "scale.json")
    found = read_calibration(folder).scale
    assert found is not None
    assert found.mm_per_px_x == pytest.approx(MM, rel=0.003)


def test_pictures_are_taken_through_the_camera_and_kept(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = line.parent
    simulated = 'kind = "simulated"\nrate_fps = 50.0\ncalibration = "calibration"\n'
    line.write_text(f"version = 1\n[camera.c]\n{simulated}", encoding="utf-8")
    assert main(["calibrate", "quality", "--config", str(line), "--frames", "5"]) == 0
    file = read_file(folder / "calibration", QualityCalibration, CalibrationKind.QUALITY)
    assert file is not None
    assert (file.setup.scan, file.setup.camera_id, file.framing) == ("line", "simulated line 1", None)
    kept = sorted(path for path in (folder / "calibration" / "pictures").rglob("*") if path.is_file())
    written = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    assert {one.name: one.sha256 for one in file.pictures} == written
    assert len(written) == 5
    take = ["calibrate", "pictures", "--config", str(line), "--frames", "1", "--out", str(folder / "taken")]
    assert main(take) == 0
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert main(take) == 8
    assert f"{folder / 'taken'}: cannot be written: " in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    # From what is kept, the same comes out again.
    assert calibrate(line, "quality", kept[0].parent) == 0
    again = read_file(folder / "calibration", QualityCalibration, CalibrationKind.QUALITY)
    assert again is not None
    assert (again.limits, again.pictures) == (file.limits, file.pictures)


def test_a_dry_run_shows_everything_and_writes_nothing(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(line.parent / "target", board=EYE.see(TARGET, seed=1))
    white = {str(index): EYE.see(surface(0.9), seed=index) for index in range(3)}
    write(line.parent / "white", **white)
    good_parts(line.parent / "good", 6)
    before = sorted(line.parent.rglob("*"))
    assert calibrate(line, "scale", line.parent / "target", *GEOMETRY, "--dry-run", "--json") == 0
    shown = ScaleCalibration.model_validate_json(capsys.readouterr().out)
    assert shown.mm_per_px_x == pytest.approx(MM, rel=0.003)
    for kind, pictures in (("flat-field", "white"), ("quality", "good")):
        assert calibrate(line, kind, line.parent / pictures, "--dry-run") == 0
        assert "nothing was written" in capsys.readouterr().out
    assert sorted(line.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("kind", "pictures", "more", "code", "told"),
    [
        ("scale", "wall", GEOMETRY, 8, "wall.png: the target (ChArUco 7×5"),
        ("scale", "target", ["--target", "circles"], 8, "board.png: the target (circles"),
        ("scale", "two", GEOMETRY, 8, "2 views of the target: one gives the scale, 3 or more"),
        ("scale", "target", [*GEOMETRY, "--mm-per-line", "0.1"], 78, "only a line-scan camera has lines"),
        ("scale", "target", [*GEOMETRY, "--bar-mm", "100", "10"], 78, "--bar-mm 100 10: more than a fifth apart"),
        ("scale", "nowhere", GEOMETRY, 8, "nowhere: No such file or directory"),
        ("scale", "in", GEOMETRY, 8, "in: there is no picture in this folder"),
        ("scale", "text", GEOMETRY, 8, "text/letter.png: "),
        ("quality", "target", [], 8, "1 good pictures; at least 5 are needed"),
        ("quality", "mixed", [], 8, "b.png: is 100×80 px, a.png is 240×180; all must be of one size"),
        ("flat-field", "sun", [], 8, "sun.png: 100.0% of its pixels are saturated"),
        ("flat-field", "sun", ["--as-judged"], 78, "a flat field needs pictures as they come"),
        ("flat-field", "sun", ["--camera", "d"], 78, "has no camera 'd'; it has c"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing_behind(
    line: Path, kind: str, pictures: str, more: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = line.parent
    noise = np.random.default_rng(0).integers(0, 255, (120, 160), np.uint8)
    write(folder / "wall", wall=noise)
    write(folder / "target", board=EYE.see(TARGET, seed=1))
    write(folder / "two", a=EYE.see(TARGET, seed=1), b=EYE.see(TARGET, seed=2))
    write(folder / "mixed", a=np.full((180, 240), 90, np.uint8), b=np.full((80, 100), 90, np.uint8))
    write(folder / "sun", sun=np.full((180, 240), 255, np.uint8))
    write(folder / "text")
    (folder / "text" / "letter.png").write_text("Dear customer", encoding="utf-8")
    assert calibrate(line, kind, folder / pictures, *more) == code
    shown = capsys.readouterr()
    assert told in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not (folder / "calibration").exists()


def with_rule(line: Path, calibration: str, more: str = "") -> None:
    rule = "[product.bolt.allow.small]\nmax_area_mm2 = 0.2\n"
    station = f'[station]\ndata_dir = "{line.parent / "data"}"\n'
    line.write_text(f"version = 1\n{station}{CAMERA}{calibration}{more}{rule}", encoding="utf-8")


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_rule_in_mm2_for_a_camera_without_calibration_is_an_error_of_the_configuration(
    line: Path, command: str
) -> None:
    with_rule(line, "")
    arguments = [sys.executable, "-m", "station", command, "--config", str(line)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    told = done.stderr
    assert f"{line}: " in told
    assert "product.bolt.allow.small.max_area_mm2 = 0.2: camera.c names no calibration" in told
    assert "name a folder in camera.c.calibration and let `station calibrate scale` write it" in told
    assert not (line.parent / "data").exists()


def test_a_camera_may_be_freed_of_the_rule(line: Path) -> None:
    with_rule(line, "", "[product.bolt.camera.c]\nallow = {}\n")
    assert load(line, {}).product["bolt"].of("c").allow == {}


def test_check_names_the_rule_that_a_calibration_without_scale_cannot_serve(
    line: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(line, "quality", good_parts(line.parent / "good", 6)) == 0
    with_rule(line, 'calibration = "calibration"\n')
    assert main(["check", "--offline", "--config", str(line)]) == 8
    told = capsys.readouterr().out
    assert "WRONG product bolt, camera c: product.bolt.allow.small.max_area_mm2 = 0.2: camera c has no scale" in told
    scaled(line)
    capsys.readouterr()
    assert main(["check", "--offline", "--config", str(line)]) == 0
    assert "WRONG" not in capsys.readouterr().out


def test_a_running_station_says_that_camera_and_calibration_do_not_fit(line: Path) -> None:
    spot = scaled(line)
    write(line.parent / "in", first=spot)
    camera = {
        "kind": "folder",
        "path": str(line.parent / "in"),
        "mode": "watch",
        "calibration": str(line.parent / "calibration"),
        "uncalibrated": "unknown",
        "rotate_degrees": 180,
    }
    document = {"camera": {"c": camera}, "product": {"bolt": {"allow": {"small": {"max_area_mm2": 0.2}}}}}
    with embedded(line.parent, document) as (_, listener):
        # The first picture was judged before anybody listened.
        write(line.parent / "in", second=spot)
        received = listener.wait_until(lambda got: bool(verdicts(got) and statuses(got)))
    seen = verdicts(received)[-1]
    assert seen.outcome is Outcome.UNKNOWN
    assert Reason.UNCALIBRATED in seen.reasons
    faults = {fault.what: fault.reason for fault in statuses(received)[-1].faults}
    assert faults["calibration c"] == "scale: rotate_degrees was 0, now it is 180; defects have no area"
    assert "product.bolt.allow.small.max_area_mm2 = 0.2: camera c has no scale" in faults["product rules c"]
    # With the camera as it was calibrated nothing is wrong any more.
    del camera["rotate_degrees"]
    with embedded(line.parent, document) as (_, listener):
        write(line.parent / "in", third=spot)
        received = listener.wait_until(lambda got: "third.png" in [one.source for one in verdicts(got)])
    seen = next(one for one in verdicts(received) if one.source == "third.png")
    assert Reason.UNCALIBRATED not in seen.reasons
    assert {"calibration c", "product rules c"}.isdisjoint(fault.what for fault in statuses(received)[-1].faults)
