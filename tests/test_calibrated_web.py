"""A rendered line-scan web with known light, column gains, scale and defects, from `station calibrate` to the verdict.

``python tests/test_calibrated_web.py`` prints the figures as a table; with a folder behind it, it writes the
pictures of `calibration/web` there.
"""

import io
import json
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest
from rendered_scene import Camera, Spot, board, surface, turned

from station.__main__ import main
from station.adapters.camera_identity import identify
from station.adapters.system_clock import SystemClock
from station.calibrated import CameraCalibration, read_calibration, with_areas
from station.calibration import ScaleCalibration
from station.flat_field import FlatField
from station.manifest import read_bundle
from station.messages import Box, Capture, Defect, Frame, ModelRef, Pixels, Reason, Scores, Verdict
from station.pipeline import Inspector, LoadedModel, Setup
from station.settings import SHIPPED_BUNDLE, FolderCamera, ModelSettings

ACROSS_MM, ALONG_MM = 0.05, 0.0625
WIDTH, LINES = 640, 480
EXAMPLE = Path(__file__).parent.parent / "calibration" / "web"
TURN = 0.015
"""The target lies turned by 0.9 degrees on the web."""
SEEDS = {"white": 40, "dark": 20, "target": 99, "defects": 7}
PICTURES = 12
"""Of the same defects, for the printed figures."""


def web() -> Camera:
    """Light that falls to 72 % at the margins, columns that differ by 1 %, oblong pixels."""
    x = np.linspace(-1, 1, WIDTH)
    gains = 1 + np.random.default_rng(5).normal(0, 0.01, WIDTH)
    light = (1 - 0.28 * x**2 + 0.03 * x) * gains * 200
    return Camera(WIDTH, LINES, lambda x, y: (x * ACROSS_MM, y * ALONG_MM), light=light, blur_px=0.8)


def spots() -> list[Spot]:
    """Dark and bright defects from 8 to 60 px, round, oblong and turned, over all of the web."""
    sizes = [(0.45, 0.5), (0.6, 0.6), (0.9, 0.6), (1.2, 1.2), (1.8, 0.7), (2.4, 2.0), (3.0, 1.0), (0.55, 0.55)]
    found = []
    for index, (wide, tall) in enumerate(sizes * 2):
        u, v = 2.6 + 3.7 * (index % 8), 5.0 + 12.0 * (index // 8) + 4.0 * (index % 2)
        darkness = (0.2, 0.75, 0.3)[index % 3]
        found.append(Spot(u, v, wide, tall, turn=0.4 * index, reflectance=darkness, is_round=index < 8))
    return found


class Finder:
    """A model that knows where the defects are, as roughly as a detector does: boxes are off by up to 2 px."""

    def __init__(self, found: list[Spot]) -> None:
        rng = np.random.default_rng(3)
        self._candidates = tuple(self._candidate(spot, rng.uniform(-2, 2, 4)) for spot in found)

    @property
    def ref(self) -> ModelRef:
        return ModelRef(name="finder", version="1", sha256="0" * 64)

    def infer(self, pixels: Pixels) -> Scores:
        assert pixels.shape == (LINES, WIDTH)
        return Scores(self._candidates, 0.9)

    @staticmethod
    def _candidate(spot: Spot, off: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Defect:
        reach_u, reach_v = spot.reach_mm
        x, y = (spot.u - reach_u) / ACROSS_MM, (spot.v - reach_v) / ALONG_MM
        box = Box(
            x_px=x + off[0],
            y_px=y + off[1],
            width_px=max(1.0, 2 * reach_u / ACROSS_MM + off[2]),
            height_px=max(1.0, 2 * reach_v / ALONG_MM + off[3]),
        )
        return Defect(label="spot", score=0.9, box=box)


@dataclass(frozen=True)
class Figures:
    """What was reached, as shares."""

    flat_before: float
    flat_after: float
    across: float
    along: float
    areas: list[tuple[Spot, list[float]]]
    verdicts: list[Verdict]

    @property
    def worst_area(self) -> float:
        return max(abs(error) for _, errors in self.areas for error in errors)


def render(folder: Path, white: int, dark: int) -> None:
    """Render what an engineer would take, with the truth beside it."""
    camera, found = web(), spots()
    for name, scene, count in (("white", surface(0.9), white), ("dark", surface(0.0), dark)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            cv2.imwrite(str(folder / name / f"{index}.png"), camera.see(scene, seed=SEEDS[name] + index))
    target = turned(board(8, 7, 3.5, 2.5), TURN, 1.5, 2.5)
    cv2.imwrite(str(folder / "target.png"), camera.see(target, seed=SEEDS["target"]))
    (folder / "in").mkdir()
    cv2.imwrite(str(folder / "in" / "defects.png"), camera.see(surface(0.5, found), seed=SEEDS["defects"]))
    (folder / "station.toml").write_text(
        'version = 1\n[camera.web]\nkind = "folder"\npath = "in"\ncalibration = "calibration"\n', encoding="utf-8"
    )
    truth = {
        "renderer": "tests/rendered_scene.py",
        "mm_per_px_across": ACROSS_MM,
        "mm_per_line": ALONG_MM,
        "target_turned_radians": TURN,
        "seeds": SEEDS,
        "defects": [
            {"x_px": spot.u / ACROSS_MM, "y_px": spot.v / ALONG_MM, "area_mm2": round(spot.area_mm2, 6)}
            for spot in found
        ],
    }
    (folder / "provenance.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def calibrate(folder: Path, *more: str) -> None:
    """Give the commands that an engineer would give."""
    common = ["--config", str(folder / "station.toml"), "--scan", "line", *more]
    white = ["--pictures", str(folder / "white"), "--dark", str(folder / "dark")]
    geometry = ["--columns", "8", "--rows", "7", "--pitch-mm", "3.5", "--dot-mm", "2.5"]
    assert main(["calibrate", "flat-field", *common, *white]) == 0
    assert main(["calibrate", "scale", *common, "--pictures", str(folder / "target.png"), *geometry]) == 0


def measure(folder: Path, pictures: int) -> Figures:
    """Calibrate, and judge the same defects in so many pictures, each with noise of its own."""
    render(folder, white=4, dark=2)
    calibrate(folder)
    table = FolderCamera(kind="folder", path=folder / "in", calibration=folder / "calibration")
    camera, read = web(), read_calibration(folder / "calibration")
    calibration = CameraCalibration("web", table, read, lambda: identify(table))
    assert calibration.problem is None
    assert read.corrector is not None
    # A surface of half the brightness of the one that the flat field was made from.
    grey = [camera.see(surface(0.45), seed=500 + index) for index in range(4)]
    raw = np.concatenate(grey).mean(axis=0) - camera.black
    even = np.concatenate([read.corrector.correct(pixels).copy() for pixels in grey]).mean(axis=0)
    found = spots()
    bundle = read_bundle(SHIPPED_BUNDLE)
    clock = SystemClock()
    inspector = Inspector("s", "web", 1, table, ModelSettings(), clock, calibration=calibration)
    manifest = bundle.manifest.model_copy(update={"quality": bundle.manifest.quality.__class__()})
    inspector.use(Setup(LoadedModel(Finder(found), manifest)))
    verdicts = []
    for number in range(pictures):
        seen = camera.see(surface(0.5, found), seed=SEEDS["defects"] + number)
        capture = Capture(seen, datetime.now(UTC), clock.monotonic_s())
        verdicts.append(inspector.inspect(inspector.correct(Frame("web", number + 1, capture))))
    assert read.scale is not None
    return Figures(
        flat_before=float(np.abs(raw / raw.mean() - 1).max()),
        flat_after=float(np.abs(even / even.mean() - 1).max()),
        across=read.scale.mm_per_px_x / ACROSS_MM - 1,
        along=read.scale.mm_per_px_y / ALONG_MM - 1,
        areas=[
            (spot, [(defect.area_mm2 or np.nan) / spot.area_mm2 - 1 for defect in defects])
            for spot, defects in zip(found, zip(*(one.defects for one in verdicts), strict=True), strict=True)
        ],
        verdicts=verdicts,
    )


def test_flat_field_scale_and_areas_come_out_as_rendered(tmp_path: Path) -> None:
    figures = measure(tmp_path, 3)
    assert figures.flat_before > 0.15
    assert figures.flat_after < 0.01
    assert abs(figures.across) < 0.005
    assert abs(figures.along) < 0.005
    assert figures.worst_area < 0.05
    for verdict in figures.verdicts:
        assert {defect.area_from for defect in verdict.defects} == {"outline"}
        assert verdict.reasons == (Reason.DEFECT,)
        assert verdict.latency_ms.correction > 0


def test_the_example_that_travels_with_the_project_gives_what_its_provenance_says(tmp_path: Path) -> None:
    truth = json.loads((EXAMPLE / "provenance.json").read_text(encoding="utf-8"))
    shipped = read_calibration(EXAMPLE / "calibration")
    calibrate(EXAMPLE, "--out", str(tmp_path / "again"))
    again = read_calibration(tmp_path / "again")
    for read in (shipped, again):
        assert read.unreadable == ()
        assert read.scale is not None
        assert read.scale.mm_per_px_x == pytest.approx(truth["mm_per_px_across"], rel=0.005)
        assert read.scale.mm_per_px_y == pytest.approx(truth["mm_per_line"], rel=0.005)
        assert read.flat_field is not None
        assert read.flat_field.flatness_before > 0.15
        assert read.flat_field.flatness_after < 0.01
    assert shipped.scale is not None
    assert again.scale is not None
    assert again.scale.pictures == shipped.scale.pictures
    assert again.scale.setup == shipped.scale.setup
    pixels = cv2.imread(str(EXAMPLE / "in" / "defects.png"), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    assert shipped.corrector is not None
    even = shipped.corrector.correct(np.asarray(pixels, np.uint8))
    candidates = Finder(spots()).infer(even).candidates
    for defect, true in zip(with_areas(even, candidates, shipped.scale.map, None), truth["defects"], strict=True):
        assert defect.area_mm2 == pytest.approx(true["area_mm2"], rel=0.05)


def along(folder: Path, *told: str) -> tuple[int, ScaleCalibration | None]:
    """Calibrate the example's scale with what an encoder or a line rate tells: exit code, and what was written."""
    geometry = ["--columns", "8", "--rows", "7", "--pitch-mm", "3.5", "--dot-mm", "2.5"]
    where = ["--config", str(EXAMPLE / "station.toml"), "--pictures", str(EXAMPLE / "target.png"), "--out", str(folder)]
    code = main(["calibrate", "scale", "--scan", "line", *where, *geometry, *told])
    return code, read_calibration(folder).scale


def test_encoder_and_line_rate_tell_the_length_of_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, told in (
        ("encoder", ["--mm-per-line", "0.063"]),
        ("rate", ["--line-rate-hz", "1e3", "--speed-mm-s", "63"]),
    ):
        code, scale = along(tmp_path / name, *told)
        assert code == 0
        assert scale is not None
        assert scale.along_from == "encoder"
        assert scale.mm_per_px_y == pytest.approx(0.063)
        assert scale.mm_per_px_x == pytest.approx(ACROSS_MM, rel=0.005)
    capsys.readouterr()
    for told, wanted in (
        (["--mm-per-line", "0.2"], (8, "a line is 0.06249 mm by the target and 0.20000 mm by the encoder")),
        (["--line-rate-hz", "1000"], (78, "--line-rate-hz and --speed-mm-s: both are needed")),
        (["--mm-per-line", "0"], (78, "--mm-per-line")),
    ):
        code, scale = along(tmp_path / "wrong", *told)
        shown = capsys.readouterr().err
        assert (code, scale, len(shown.splitlines())) == (wanted[0], None, 1)
        assert wanted[1] in shown
    assert not (tmp_path / "wrong").exists()


def correction_ms(side_px: int, *, dark: bool) -> tuple[float, float]:
    """What the correction of a picture takes, with one gain a pixel: median and least of many."""
    rng = np.random.default_rng(0)
    gain, level, pixels = (rng.integers(0, 255, (side_px, side_px), np.uint8) for _ in range(3))
    corrector = FlatField(gain, 0.002, level if dark else None)
    spent = []
    for _ in range(50):
        began = time.perf_counter()
        corrector.correct(pixels)
        spent.append(time.perf_counter() - began)
    return float(np.median(spent)) * 1e3, min(spent) * 1e3


def report() -> None:
    """Print the figures."""
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        figures = measure(Path(folder), PICTURES)
    print(f"flat field   within {figures.flat_before:.2%} of the mean before, {figures.flat_after:.2%} after")
    print(f"scale        across {figures.across:+.3%}, along {figures.along:+.3%}")
    for spot, errors in figures.areas:
        form = "ellipse  " if spot.is_round else "rectangle"
        size = f"{spot.wide / ACROSS_MM:5.1f} × {spot.tall / ACROSS_MM:5.1f} px"
        print(f"area         {form} {size}, {spot.area_mm2:.4f} mm²: {min(errors):+.2%} to {max(errors):+.2%}")
    every = np.array([errors for _, errors in figures.areas])
    rms = float(np.sqrt((every**2).mean()))
    print(f"areas        {rms:.2%} off (rms), {figures.worst_area:.2%} at most, of {every.size} in {PICTURES} pictures")
    cv2.setNumThreads(1)
    for side_px in (640, 2048):
        for dark, words in ((False, "without a dark level"), (True, "with a dark level")):
            usual, least = correction_ms(side_px, dark=dark)
            print(f"correction   {side_px}×{side_px} {words}: {usual:.2f} ms (median), {least:.2f} ms (least)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        render(Path(sys.argv[1]), white=2, dark=1)
    else:
        report()
