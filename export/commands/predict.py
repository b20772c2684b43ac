"""Judge pictures with a bundle, through the deployed path; one line a picture.

    station-export predict BUNDLE PICTURE… --json
    station-export predict BUNDLE FOLDER --annotate MARKED > predictions.jsonl

With --json each line is an object: file, outcome (ok, ng or unknown), score and threshold that decided, the score of
each class, the boxes at or above their threshold, and the milliseconds from decoded picture to scores. A file that
cannot be judged gets a line with its error, the others go on, and the exit code is 1. Folders are searched for
pictures, subfolders included. The quality gate of the station does not apply here.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from export.dataset import DatasetError, read_pixels
from export.option_types import count_from
from export.pictures import is_picture
from export.process_arguments import add_log_arguments
from export.process_commands import run_prediction
from export.progress import ProgressLine
from station.adapters.litert_model import LitertModel, load_model
from station.annotate import annotate
from station.errors import InferenceError
from station.judge import Judgement, above_threshold, judge
from station.manifest import Manifest, read_bundle
from station.messages import Pixels, Scores
from station.process_bundle import is_process_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle file")
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="picture, folder of pictures, or one sensor log"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--annotate", type=Path, metavar="DIR", help="write each picture with its map and boxes into this folder"
    )
    parser.add_argument(
        "--reference", type=Path, metavar="FILE", help="picture of a good part, for a bundle that compares"
    )
    parser.add_argument(
        "--threads", type=count_from(1), metavar="N", default=1, help="of the runtime (default: %(default)s)"
    )
    add_log_arguments(
        parser.add_argument_group("logs", "how a sensor log is written, for a bundle that watches a process"),
        labelled=False,
    )


def run(arguments: argparse.Namespace) -> int:
    """Judge each; returns 1 when one could not be."""
    if is_process_bundle(arguments.bundle):
        return run_prediction(arguments)
    bundle = read_bundle(arguments.bundle)
    files = list_pictures(arguments.files)
    reference = _reference(arguments.reference, bundle.manifest)
    model = load_model(bundle, arguments.threads, heatmap=arguments.annotate is not None, reference=reference)
    if arguments.annotate is not None:
        arguments.annotate.mkdir(parents=True, exist_ok=True)
    progress = ProgressLine("judging")
    failed = 0
    taken: set[Path] = set()
    for number, path in enumerate(files, start=1):
        try:
            record = _judge(model, path, arguments.annotate, taken)
        except (DatasetError, InferenceError) as exc:
            failed += 1
            record = {"file": str(path), "error": str(exc)}
        print(json.dumps(record) if arguments.json else _line(record), flush=True)
        progress(number, len(files))
    if failed:
        sys.stderr.write(f"station-export: {failed} of {len(files)} files could not be judged\n")
    return 1 if failed else 0


def list_pictures(given: Sequence[Path]) -> list[Path]:
    """Files as given, folders by the pictures in them, in the order of their names.

    Raises:
        DatasetError: a folder holds no pictures.
    """
    files: list[Path] = []
    for path in given:
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(one for one in path.rglob("*") if one.is_file() and is_picture(one))
        if not found:
            raise DatasetError(f"{path}: holds no pictures")
        files += found
    return files


def _reference(path: Path | None, manifest: Manifest) -> Pixels | None:
    if manifest.compares != (path is not None):
        needs = (
            "compares each picture with one of a good part: give"
            if manifest.compares
            else "compares nothing: leave out"
        )
        raise DatasetError(f"the bundle {manifest.name} {needs} --reference FILE")
    return None if path is None else read_pixels(path, manifest.preprocessing.channels)


def _judge(model: LitertModel, path: Path, annotated: Path | None, taken: set[Path]) -> dict[str, Any]:
    manifest = model.bundle.manifest
    pixels = read_pixels(path, manifest.preprocessing.channels)
    began = time.perf_counter()
    scores = model.infer(pixels)
    spent_ms = 1e3 * (time.perf_counter() - began)
    judgement = judge(scores, above_threshold(scores, manifest.thresholds), manifest.thresholds, ())
    if annotated is not None:
        picture = annotate(pixels, judgement.defects, scores.heatmap)
        target = _free_name(annotated, path.stem, judgement.outcome.value, taken)
        done, encoded = cv2.imencode(".png", picture)
        if not done:
            raise DatasetError(f"{path}: OpenCV could not write the annotated picture")
        target.write_bytes(encoded.tobytes())
    return _record(path, manifest, scores, judgement, spent_ms)


def _record(path: Path, manifest: Manifest, scores: Scores, judgement: Judgement, spent_ms: float) -> dict[str, Any]:
    record: dict[str, Any] = {
        "file": str(path),
        "outcome": judgement.outcome.value,
        "score": judgement.score,
        "threshold": judgement.threshold,
    }
    if manifest.task == "classify":
        classes = dict(zip(manifest.labels, scores.class_scores, strict=True))
        record |= {"class": max(classes, key=lambda label: classes[label]), "classes": classes}
    record["boxes"] = [
        {
            "label": one.label,
            "score": one.score,
            "x_px": one.box.x_px,
            "y_px": one.box.y_px,
            "width_px": one.box.width_px,
            "height_px": one.box.height_px,
        }
        for one in judgement.defects
    ]
    record["ms"] = round(spent_ms, 3)
    return record


def _line(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"error    {record['error']}"
    parts = [f"{record['outcome']:7}", record["file"], f"score {record['score']:.3f} of {record['threshold']:.3f}"]
    if "class" in record:
        parts.append(f"{record['class']} {record['classes'][record['class']]:.2f}")
    parts += [
        f"{one['label']} {one['score']:.2f} at {one['x_px']:.0f},{one['y_px']:.0f} "
        f"{one['width_px']:.0f}×{one['height_px']:.0f} px"
        for one in record["boxes"]
    ]
    return "  ".join(parts)


def _free_name(folder: Path, stem: str, outcome: str, taken: set[Path]) -> Path:
    """Pictures of one name in two folders keep apart."""
    path, count = folder / f"{stem}.{outcome}.png", 1
    while path in taken:
        count += 1
        path = folder / f"{stem}-{count}.{outcome}.png"
    taken.add(path)
    return path
