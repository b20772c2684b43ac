"""`station inspect`: judge single pictures through the deployed path and write annotated ones."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2

from station.adapters.folder_camera import SUFFIXES
from station.adapters.litert_model import LitertModel, load_model
from station.adapters.system_clock import SystemClock
from station.annotate import annotate
from station.commands.exit_codes import ExitCode
from station.errors import ConfigurationError
from station.manifest import read_bundle
from station.messages import Capture, Frame, ModelRef, Pixels, Reason, Scores, Verdict
from station.picture import View, decode, read_reference
from station.pipeline import Inspector, LoadedModel, Setup
from station.settings import SHIPPED_BUNDLE, FolderCamera, ModelSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("image", nargs="+", type=Path, help="picture, or folder of pictures")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="model bundle")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE", help="picture of a good part, for a bundle that compares"
    )
    parser.add_argument("--threshold", type=float, help="judge with this threshold instead of the bundle's own")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write annotated pictures (heatmap, boxes) here")
    parser.add_argument("--json", action="store_true", help="one verdict a line, in the form that goes over MQTT")


def run(options: argparse.Namespace) -> ExitCode:
    """Judge each picture; one that cannot be read is `unknown` and makes the exit code that of a bad picture.

    Raises:
        BundleError, GoldenMismatch: the bundle cannot be used.
        ConfigurationError: the threshold, a picture's path or the folder for annotated pictures is wrong.
    """
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise ConfigurationError(f"--threshold {options.threshold}: allowed are numbers between 0 and 1")
    paths = list(_pictures(options.image))
    bundle = read_bundle(options.bundle)
    grey = bundle.manifest.preprocessing.channels == 1
    if bundle.manifest.compares != (options.reference is not None):
        needs = "compares pictures with one of a good part: give" if bundle.manifest.compares else "takes no"
        raise ConfigurationError(f"--bundle {options.bundle}: {needs} --reference FILE")
    view = View(colour="grey" if grey else "bgr")
    reference = read_reference(options.reference, view) if options.reference is not None else None
    model = _Remembering(load_model(bundle, heatmap=options.out is not None, reference=reference))
    clock = SystemClock()
    inspector = Inspector(
        "inspect",
        "pictures",
        0,
        FolderCamera(kind="folder", path=Path()),
        ModelSettings(bundle=options.bundle, threshold=options.threshold),
        clock,
    )
    inspector.use(Setup(LoadedModel(model, bundle.manifest)))
    names = _unique_names(paths)
    all_readable = True
    for sequence, path in enumerate(paths, start=1):
        model.last = None
        capture = _read(path, Capture(None, clock.now(), clock.monotonic_s(), source=str(path)), grey=grey)
        verdict = inspector.inspect(Frame("pictures", sequence, capture))
        all_readable &= capture.pixels is not None
        print(verdict.model_dump_json() if options.json else _line(verdict), flush=True)
        if options.out is not None and capture.pixels is not None:
            _write(options.out / f"{names[sequence - 1]}.{verdict.outcome}.png", capture.pixels, verdict, model)
    return ExitCode.OK if all_readable else ExitCode.PICTURE


class _Remembering:
    """A model whose last heatmap can be asked for, since a verdict holds none."""

    def __init__(self, model: LitertModel) -> None:
        self._model = model
        self.last: Scores | None = None

    @property
    def ref(self) -> ModelRef:
        return self._model.ref

    def infer(self, pixels: Pixels) -> Scores:
        self.last = self._model.infer(pixels)
        return self.last


def _pictures(given: Sequence[Path]) -> Iterator[Path]:
    for path in given:
        if path.is_dir():
            found = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES)
            if not found:
                raise ConfigurationError(f"{path}: no picture in this folder; known are {', '.join(SUFFIXES)}")
            yield from found
        else:
            yield path


def _read(path: Path, capture: Capture, *, grey: bool) -> Capture:
    try:
        return replace(capture, pixels=decode(path.read_bytes(), grey=grey))
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        return replace(capture, fault=Reason.UNREADABLE, source=f"{path}: {reason}")


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """File names for the annotated pictures; pictures of one name in two folders keep apart."""
    taken: dict[str, int] = {}
    names = []
    for path in paths:
        count = taken[path.stem] = taken.get(path.stem, 0) + 1
        names.append(path.stem if count == 1 else f"{path.stem}-{count}")
    return names


def _line(verdict: Verdict) -> str:
    found = ", ".join(
        f"{one.label} {one.score:.2f} at {one.box.x_px:.0f},{one.box.y_px:.0f} "
        f"{one.box.width_px:.0f}×{one.box.height_px:.0f} px"
        for one in verdict.defects
    )
    why = ", ".join(reason.value for reason in verdict.reasons if reason is not Reason.DEFECT)
    score = "" if verdict.score is None else f"score {verdict.score:.3f}, threshold {verdict.threshold:.3f}"
    return "  ".join(part for part in (f"{verdict.outcome.value:7}", verdict.source, score, found, why) if part)


def _write(path: Path, pixels: Pixels, verdict: Verdict, model: _Remembering) -> None:
    heatmap = model.last.heatmap if model.last is not None else None
    picture = annotate(pixels, verdict.defects, heatmap)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    except OSError as exc:
        raise ConfigurationError(f"--out: {path}: cannot be written: {exc.strerror}") from exc
