"""Do synthetic defects find more real ones? A few-shot study on MagneticTile.

    PYTHONPATH=. python tests/study_synthesis.py MAGNETIC_TILE OUT [--parts 5] [--seeds 5] [--gan-steps 500]

One question, fixed before anything was looked at: of the pictures of Fray, Crack and Break that are held out, what
share is found at the limit that rejects at most 5 % of a calibration part of good tiles, when 5 parts (groups, not
pictures) of each class are there to learn from? Each way of synthesis gives 40 pictures of each class beside the real
ones; the detector is the same for all (frozen features, two small layers).
Each cell (way, seed) is kept in OUT: the command can be stopped and goes on. A network is trained for a number of
steps, not of minutes: its result does not hang on what else the machine does. The interval is a bootstrap over parts,
since the pictures of one tile agree.

A second table is of a detector that came later, chosen on other seeds: each picture with a defect weighs the same in
it, however large its defect is.

    PYTHONPATH=. python tests/study_synthesis.py DEEPPCB OUT --board-defect copper

The same for one kind of defect of circuit boards, on crops that are cut once (see board_crops.py).
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from board_crops import write_crops
from matplotlib import pyplot as plt

from export.dataset import read_dataset
from export.gan import GanPreset
from export.layouts.deeppcb import BOARD_LABELS
from export.samples import Dataset, DatasetError, Sample
from export.synthesis.make import Made, Material, Order, gather, make
from export.synthesis.methods import Method
from export.synthesis.pick import Seen, look_at, synthetic
from export.synthesis.probe import Probe, limit_for
from export.train_gan import GanKnobs
from station.whole_file import write_whole

RARE = ("MT_Break", "MT_Crack", "MT_Fray")
FALSE_REJECTS = 0.05
EACH = 40
"""Synthetic pictures of each class, whatever the way."""

GOODS_LEARNT = 150
DRAWS = 4000
ARMS: dict[str, Sequence[tuple[Method, GanPreset]]] = {
    "none": (),
    "classical": (("classical", "default"),),
    "cut-and-paste": (("cut-and-paste", "default"),),
    "procedural": (("procedural", "default"),),
    "GAN textbook": (("gan", "textbook"),),
    "GAN default": (("gan", "default"),),
    "mix": (("classical", "default"), ("cut-and-paste", "default"), ("gan", "default")),
}
"""Name → the ways that share its pictures in equal parts. The mix was chosen before any was measured."""

BASE = "classical"
DETECTORS = {"": False, "-alike": True}
"""Suffix of the cells → whether each picture weighs the same; the first is the one that was fixed in advance."""


def main() -> None:
    """Fill the cells that are missing, then print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", type=int, default=5, help="parts of each class to learn from")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--gan-steps", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=0, help="others than the reported ones, to try something")
    parser.add_argument("--board-defect", choices=BOARD_LABELS, help="of DeepPCB, instead of tiles")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--report-only", action="store_true")
    asked = parser.parse_args()
    if not asked.report_only:
        study = Study(asked)
        for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
            study.run(seed, asked.arms)
    rare = (asked.board_defect,) if asked.board_defect else RARE
    for detector in DETECTORS:
        report(asked.out, f"{_table(asked)}{detector}", range(asked.first_seed, asked.first_seed + asked.seeds), rare)


class Study:
    """The data set, and the cells that are filled."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        defect = asked.board_defect
        data = write_crops(asked.data, defect, asked.out / f"crops-{defect}") if defect else asked.data
        self._dataset = read_dataset(data)
        self._classes = [self._dataset.labels.index(name) for name in ((defect,) if defect else RARE)]
        self._seen: dict[str, Seen] = {}
        self._probe: Probe | None = None

    def run(self, seed: int, arms: Sequence[str]) -> None:
        """Every missing cell of one seed."""
        missing = {arm: [name for name in DETECTORS if not self._cell(name, arm, seed).is_file()] for arm in arms}
        if not any(missing.values()):
            return
        learn, calibration, good_test, rare_test = self._deal(seed)
        part = replace(self._dataset, splits={"train": learn, "validation": [], "test": []})
        material = gather(part, self._classes, seed)
        probe, real = self._look([*learn, *calibration, *good_test, *rare_test])
        for arm, detectors in missing.items():
            if not detectors:
                continue
            try:
                extra = self._extra(part, material, arm, seed)
            except DatasetError as exc:
                for detector in detectors:
                    write_whole(self._cell(detector, arm, seed), json.dumps({"failed": str(exc)}).encode())
                print(f"seed {seed}, {arm}: {exc}", flush=True)
                continue
            probe.keep(extra)
            for detector in detectors:
                learnt = [*(real[sample.name] for sample in learn), *extra]
                head = probe.fit(learnt, seed, alike=DETECTORS[detector])

                def scored(samples: Sequence[Sample]) -> list[list[Any]]:
                    values = probe.scores(head, [real[sample.name] for sample in samples])  # noqa: B023
                    return [
                        [self._dataset.labels[sample.label or 0], sample.group, float(value)]
                        for sample, value in zip(samples, values, strict=True)
                    ]

                figures = {"calibration": scored(calibration), "good": scored(good_test), "rare": scored(rare_test)}
                write_whole(self._cell(detector, arm, seed), json.dumps(figures).encode())
                recall, rejected = outcome(figures)
                told = f"seed {seed}, {arm}{detector}: finds {recall:.3f}, rejects {rejected:.3f} of other good ones"
                print(told, flush=True)

    def _cell(self, detector: str, arm: str, seed: int) -> Path:
        return cell(self._asked.out, f"{_table(self._asked)}{detector}", arm, seed)

    def _deal(self, seed: int) -> tuple[list[Sample], list[Sample], list[Sample], list[Sample]]:
        rng = np.random.default_rng((seed, 23))
        good = _by_part(self._dataset, self._dataset.good)
        order = [str(name) for name in rng.permutation(sorted(good))]
        cuts = round(0.4 * len(order)), round(0.6 * len(order))
        learnt = [sample for name in order[: cuts[0]] for sample in good[name]]
        learn = [learnt[index] for index in rng.permutation(len(learnt))[:GOODS_LEARNT]]
        calibration = [sample for name in order[cuts[0] : cuts[1]] for sample in good[name]]
        good_test = [sample for name in order[cuts[1] :] for sample in good[name]]
        rare_test: list[Sample] = []
        for label in self._classes:
            parts = _by_part(self._dataset, label)
            names = [str(name) for name in rng.permutation(sorted(parts))]
            learn += [sample for name in names[: self._asked.parts] for sample in parts[name]]
            rare_test += [sample for name in names[self._asked.parts :] for sample in parts[name]]
        # A tile with two kinds of defects is in two classes: what is learnt from is not tested.
        known = {sample.group for sample in learn}

        def others(some: list[Sample]) -> list[Sample]:
            return [one for one in some if one.group not in known]

        return learn, others(calibration), others(good_test), others(rare_test)

    def _look(self, samples: Sequence[Sample]) -> tuple[Probe, dict[str, Seen]]:
        for sample in samples:
            if sample.name not in self._seen:
                self._seen[sample.name] = look_at(self._dataset, sample)
        if self._probe is None:
            self._probe = Probe([one.pixels for one in self._seen.values()], self._dataset.channels, 0)
        self._probe.keep([self._seen[sample.name] for sample in samples])
        return self._probe, self._seen

    def _extra(self, part: Dataset, material: Material, arm: str, seed: int) -> list[Seen]:
        ways = ARMS[arm]
        seen: list[Seen] = []
        for method, preset in ways:
            count = EACH // len(ways) + (method == "gan") * (EACH % len(ways))
            knobs = GanKnobs(preset=preset, minutes=math.inf, steps=self._asked.gan_steps, seed=seed)
            # The mix goes on from the network of the default GAN: the same checkpoint, nothing is trained twice.
            folder = self._asked.out / f"gan-{preset}-{_table(self._asked)}-{seed}" if method == "gan" else None
            order = Order(self._classes, count, method, knobs, seed=seed)
            made: list[Made] = make(part, material, order, folder=folder, say=_quiet)
            prefix = f"{arm}-{method}-{self._asked.parts}-{seed}"
            seen += [synthetic(self._dataset, one, f"{prefix}-{index}") for index, one in enumerate(made)]
        return seen


def _quiet(line: str) -> None:
    if "diversity" in line:
        print(f"  {line}", flush=True)


def _table(asked: argparse.Namespace) -> str:
    """Cells of another number of parts, or of boards, are another table."""
    return f"{asked.board_defect}-{asked.parts}" if asked.board_defect else str(asked.parts)


def _by_part(dataset: Dataset, label: int | None) -> dict[str, list[Sample]]:
    parts: dict[str, list[Sample]] = {}
    for sample in dataset.samples:
        if sample.label == label:
            parts.setdefault(sample.group, []).append(sample)
    return parts


def cell(out: Path, table: str, arm: str, seed: int) -> Path:
    """Where one result stands."""
    return out / f"cells-{table}" / f"{arm.replace(' ', '-').lower()}-{seed}.json"


def outcome(figures: dict[str, Any]) -> tuple[float, float]:
    """Share of the rare defects that are found, and of held-out good tiles that are rejected, at the limit."""
    limit = limit_for(np.array([row[2] for row in figures["calibration"]], np.float32), FALSE_REJECTS)
    found = np.mean([row[2] > limit for row in figures["rare"]])
    rejected = np.mean([row[2] > limit for row in figures["good"]])
    return float(found), float(rejected)


def report(out: Path, table: str, seeds: Sequence[int], rare: Sequence[str]) -> None:
    """Table, figures and plot of the cells that are there; ways without all seeds are named."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for arm in ARMS:
        paths = [cell(out, table, arm, seed) for seed in seeds]
        read = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
        failed = sum("failed" in one for one in read)
        if failed:
            print(f"{arm}: {failed} of {len(read)} networks collapsed, or drew nothing that can be seen")
        if len(read) == len(seeds) and not failed:
            tables[arm] = read
        else:
            print(f"{arm}: {len(read)} of {len(seeds)} seeds are there; left out")
    if BASE not in tables:
        return
    rng = np.random.default_rng(7)
    draws = [list(_draw(tables, rng)) for _ in range(DRAWS)]
    rows: list[dict[str, Any]] = []
    for index, (arm, cells) in enumerate(tables.items()):
        recalls, rejects = zip(*(outcome(one) for one in cells), strict=True)
        mine = np.array([draw[index] for draw in draws])
        base = np.array([draw[list(tables).index(BASE)] for draw in draws])
        gain = float(np.mean(recalls) - np.mean([outcome(one)[0] for one in tables[BASE]]))
        by_class = {name: float(np.mean([_of_class(one, name) for one in cells])) for name in rare}
        rows.append(
            {
                "way": arm,
                "recall": float(np.mean(recalls)),
                "interval": [float(value) for value in np.quantile(mine, (0.025, 0.975))],
                "gain": gain,
                "gain_interval": [float(value) for value in np.quantile(mine - base, (0.025, 0.975))],
                "false_rejects": float(np.mean(rejects)),
                "by_class": by_class,
            }
        )
    print(f"\ncells-{table}, {len(seeds)} seeds; 95 % intervals over {DRAWS} draws of parts")
    print(f"| way | found | 95 % | gain over classical | 95 % | good rejected | {' | '.join(rare)} |")
    print("|---|---|---|---|---|---|" + "---|" * len(rare))
    for row in rows:
        low, high = row["interval"]
        gain_low, gain_high = row["gain_interval"]
        classes = " | ".join(f"{row['by_class'][name]:.2f}" for name in rare)
        print(
            f"| {row['way']} | {row['recall']:.3f} | {low:.3f} to {high:.3f} | {100 * row['gain']:+.1f} | "
            f"{100 * gain_low:+.1f} to {100 * gain_high:+.1f} | {row['false_rejects']:.3f} | {classes} |"
        )
    write_whole(out / f"study-{table}.json", (json.dumps(rows, indent=2) + "\n").encode())
    _plot(rows, rare, out / f"study-{table}.png")


def _of_class(figures: dict[str, Any], name: str) -> float:
    limit = limit_for(np.array([row[2] for row in figures["calibration"]], np.float32), FALSE_REJECTS)
    return float(np.mean([row[2] > limit for row in figures["rare"] if row[0] == name]))


def _draw(tables: dict[str, list[dict[str, Any]]], rng: np.random.Generator) -> Iterator[float]:
    """One bootstrap draw: parts drawn with replacement, the same for every seed, which share them, and every way."""
    parts = sorted({row[1] for figures in next(iter(tables.values())) for row in figures["rare"]})
    weights = dict(zip(parts, rng.multinomial(len(parts), [1 / len(parts)] * len(parts)), strict=True))
    for cells in tables.values():
        means = []
        for figures in cells:
            limit = limit_for(np.array([row[2] for row in figures["calibration"]], np.float32), FALSE_REJECTS)
            times = np.array([weights[row[1]] for row in figures["rare"]])
            found = np.array([row[2] > limit for row in figures["rare"]])
            means.append((times * found).sum() / max(times.sum(), 1))
        yield float(np.mean(means))


def _plot(rows: Sequence[dict[str, Any]], rare: Sequence[str], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.4))
    for index, row in enumerate(rows):
        low, high = row["interval"]
        axes.plot([low, high], [index, index], color="0.5", linewidth=3, solid_capstyle="butt")
        axes.plot(row["recall"], index, "o", color="black")
    axes.set_yticks(range(len(rows)), [row["way"] for row in rows])
    axes.invert_yaxis()
    named = ", ".join(name.removeprefix("MT_") for name in rare)
    axes.set_xlabel(f"share of held-out {named} found at 5 % false rejects, 95 % interval")
    axes.grid(axis="x", color="0.9")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
