"""What does `station-export train DIR` make of a folder of classes that nobody tuned it for?

    PYTHONPATH=. python tests/study_class_folders.py boards DEEPPCB OUT [--whole-layouts]
    PYTHONPATH=. python tests/study_class_folders.py cracks MAGNETIC_TILE OUT
    PYTHONPATH=. python tests/study_class_folders.py boards DEEPPCB OUT --share 0.1 -- --minutes 1 --no-plain

`boards` draws 1,400 crops of 128×128 px in seven classes of unequal size, each with one defect or none; `cracks` 399
pictures of tiles, 52 of them cracked. No picture's board or tile stands on two sides of the split: see board_crops.py
for what a board is, and for --whole-layouts. Then the command is run as a user would, without any option unless some
are given after `--`; a support vector machine on classical features (classical.py, which needs the extra `study`) is
fitted to the same training part and tested on the same test part; and one table shows both. Two classes have a
threshold as well, which is chosen on the same held-out pictures by the same rule.

OUT receives data, result (what the training wrote), svm.json and study.json. What is there is not made again: the
command can be stopped, and goes on. A training that is refused for what int8 costs is shown all the same.
"""

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from board_crops import write_class_crops
from classical import describe, fit
from cracked_tiles import write_tiles

from export.layouts.folders import find_good_label
from export.metrics import accuracy, average_precision, confusion_matrix, macro_f1
from export.pictures import read_pixels
from export.samples import SPLITS, DatasetError
from export.thresholds import Costs, choose, count_parts, probability
from station.whole_file import write_whole

BOARDS = {"good": 420, "open": 260, "short": 210, "mousebite": 170, "spur": 140, "copper": 120, "pin-hole": 80}
TILES = {"cracked": 52, "intact": 347}

Figures = Mapping[str, float | None]


def main() -> None:
    """Draw, train, fit and print what is missing."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s {boards,cracks} SOURCE OUT [--share S] [--whole-layouts] [-- OPTION ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["boards", "cracks"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of each class's pictures, to try the command")
    parser.add_argument("--whole-layouts", action="store_true", help="test boards of layouts that training never saw")
    # argparse takes an empty list of positionals as given before it comes to the options behind them.
    words = sys.argv[1:]
    own = words[: words.index("--")] if "--" in words else words
    asked = parser.parse_args(own, argparse.Namespace(options=words[len(own) + 1 :]))
    try:
        settle(asked)
        counts = {kind: round(asked.share * count) for kind, count in (BOARDS, TILES)[asked.what == "cracks"].items()}
        if asked.what == "boards":
            write_class_crops(asked.source, counts, asked.out / "data", whole_layouts=asked.whole_layouts)
        else:
            write_tiles(asked.source, counts, asked.out / "data")
    except DatasetError as exc:
        parser.error(str(exc))
    train(asked.out, asked.options)
    report(asked.out, classical(asked.out))


def settle(asked: argparse.Namespace) -> None:
    """Refuse a folder that holds another study: nothing in it would be made again.

    Raises:
        DatasetError: what was asked for then is not what is asked for now.
    """
    path = asked.out / "asked.json"
    now = {name: getattr(asked, name) for name in ("what", "share", "whole_layouts", "options")}
    if path.is_file() and (then := json.loads(path.read_text(encoding="utf-8"))) != now:
        raise DatasetError(f"{asked.out}: holds a study of {then}, not of {now}; give another folder")
    write_whole(path, json.dumps(now).encode())


def train(out: Path, options: Sequence[str]) -> None:
    """Run the command until its figures are there, and write down how long each run took."""
    if (out / "result" / "metrics.json").is_file():
        return
    path = out / "minutes.json"
    # A run that was killed leaves null: how long it took is not known.
    runs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    write_whole(path, json.dumps([*runs, None]).encode())
    command = [sys.executable, "-m", "export", "train", str(out / "data"), "--out", str(out / "result"), *options]
    began = time.monotonic()
    # Ctrl-C reaches the training as well, which ends by itself: leaving the block does not kill it.
    with subprocess.Popen(command) as training:
        code = training.wait()
    write_whole(path, json.dumps([*runs, (time.monotonic() - began) / 60]).encode())
    if not (out / "result" / "metrics.json").is_file():
        raise SystemExit(code or f"{out / 'result'}: has no metrics.json")


def classical(out: Path) -> dict[str, Any]:
    """Figures of the support vector machine on the training's own split, from `svm.json` if they are there."""
    table = (out / "result" / "split.csv").read_bytes()
    path, of = out / "svm.json", hashlib.sha256(table).hexdigest()
    if path.is_file() and (known := json.loads(path.read_text(encoding="utf-8")))["split_sha256"] == of:
        return dict(known)
    began = time.monotonic()
    rows = list(csv.DictReader(table.decode().splitlines()))
    named = sorted({row["file"].split("/")[0] for row in rows})
    good = find_good_label(named)
    # The good class is class 0, so that of two classes 1 is the one to find.
    labels = sorted(named, key=lambda name: (name != good, name))
    parts = {}
    for split in SPLITS:
        inside = [row for row in rows if row["split"] == split]
        features = np.array([describe(read_pixels(out / "data" / row["file"])) for row in inside])
        classes = np.array([labels.index(row["file"].split("/")[0]) for row in inside], np.int64)
        parts[split] = features, classes, [row["group"] for row in inside]
    machine = fit(*parts["train"])
    features, truth, _ = parts["test"]
    matrix = confusion_matrix(truth, machine.classes(features), len(labels))
    figures: dict[str, float | None] = {"accuracy": accuracy(matrix), "macro_f1": macro_f1(matrix)}
    if len(labels) == 2:
        scores, held_out = (
            np.array([probability(value) for value in machine.scores(parts[split][0])])
            for split in ("test", "validation")
        )
        bad = truth == 1
        _, classes, groups = parts["validation"]
        threshold = choose(held_out, classes == 1, Costs(), parts=groups).threshold
        counts = count_parts(bad, scores >= threshold)
        figures["ap"] = average_precision(bad, machine.scores(features))
        figures |= {"bad_missed": counts.missed, "bad": counts.bad}
        figures |= {"good_rejected": counts.rejected, "good": counts.good}
    record = {
        "split_sha256": of,
        "minutes": (time.monotonic() - began) / 60,
        "chosen": machine.chosen,
        "cross_validated": machine.cross_validated,
        "labels": labels,
        "confusion": matrix.tolist(),
        "figures": figures,
    }
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
    return record


def report(out: Path, svm: Mapping[str, Any]) -> None:
    """One table, printed, and `study.json`."""
    metrics = json.loads((out / "result" / "metrics.json").read_text(encoding="utf-8"))
    split = metrics["split"]
    runs = json.loads((out / "minutes.json").read_text(encoding="utf-8"))
    minutes = sum(run for run in runs if run is not None)
    rows: dict[str, Figures] = {
        "int8": metrics[f"{split}_int8"],
        "float": metrics[f"{split}_float"],
        **metrics.get("others", {}),
        "LBP + HOG + SVM": svm["figures"],
    }
    tested = int(metrics[f"{split}_int8"]["pictures"])
    print(f"\n{tested} {split} pictures of {', '.join(svm['labels'])}")
    print("| model | accuracy | macro-F1 | average precision | bad found at the threshold | good rejected |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        # scikit-learn gives several classes no score of "defective", and the plain networks have no threshold.
        shown = [_share(row, key) for key in ("accuracy", "macro_f1", "ap")]
        missed = row.get("bad_missed")
        found = None if missed is None else (row.get("bad") or 0) - missed
        counts = [_count(found, row.get("bad")), _count(row.get("good_rejected"), row.get("good"))]
        print(f"| {name} | {' | '.join([*shown, *counts])} |")
    more = " or more, a run was killed" if None in runs else ""
    flips, share = metrics["comparison"]["flips"], metrics["comparison"]["flip_share"]
    print(f"training: {minutes:.1f} minutes{more}; SVM: {svm['minutes']:.1f} minutes, {svm['chosen']}")
    print(f"verdicts changed by int8: {flips} of {tested} ({100 * share:.1f} %)")
    for text in metrics["warnings"]:
        print(f"warning: {text}")
    study = {
        "pictures": tested,
        "split": split,
        "minutes": minutes,
        "minutes_known": None not in runs,
        "flips": flips,
        "flip_share": share,
        "warnings": metrics["warnings"],
        "models": {name: {key: row[key] for key in FIGURES if key in row} for name, row in rows.items()},
        "svm": {key: svm[key] for key in ("minutes", "chosen", "cross_validated", "confusion", "labels")},
    }
    write_whole(out / "study.json", (json.dumps(study, indent=2) + "\n").encode())


FIGURES = ("accuracy", "macro_f1", "auroc", "ap", "bad_missed", "bad", "good_rejected", "good", "minutes")
"""Of each model, as far as it has them."""


def _share(row: Figures, key: str) -> str:
    value = row.get(key)
    return "–" if value is None else f"{value:.4f}"


def _count(hits: float | None, of: float | None) -> str:
    return "–" if hits is None or of is None else f"{hits:.0f} of {of:.0f}"


if __name__ == "__main__":
    main()
