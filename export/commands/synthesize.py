"""Make pictures of defects that are too rare to be photographed, as a folder that trains like real data.

    station-export synthesize --data parts --class scratch --count 200 --out more-scratches

It learns from the training pictures alone, those that `station-export train` would train on, never from the ones that
choose the threshold or test. Masks (or boxes) say where the real defects are; good pictures are what the new ones are
put on. Each file is marked as synthetic in its name and inside, and the export never validates, calibrates or tests
with one.

  --method cut-and-paste   real defects on other places; quick, the default; it does not help everywhere
  --method procedural      scratches and blobs; needs no real defect
  --method classical       the real pictures turned, mirrored, brighter
  --method gan             experimental: a network learns to paint them

OUT receives the pictures with their masks (or COCO boxes), synthesis.json (how they were made and what they are worth),
sheet.png (look at it: real defects above, synthetic ones below) and nearest.png (the synthetic defects that are most
like a real one, and that one). Whether they help shows in a training: station-export train parts --synthesize auto.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.dataset import DatasetError, read_dataset
from export.gan import GAN_PRESETS
from export.option_types import count_from, positive
from export.progress import ProgressLine
from export.samples import Dataset
from export.summary import counted
from export.synthesis import marks, sheet
from export.synthesis.copies import COPY_FROM, Copied, compare
from export.synthesis.make import MAX_PICTURES, RECORD, Made, Material, Order, gather, make, write
from export.synthesis.methods import METHODS
from export.synthesis.patches import Floats, Marked, cut_patches
from export.synthesis.quality import Eye, Quality, measure
from export.teller import Teller
from export.train_gan import GanKnobs
from station.whole_file import write_whole

LOOKED_AT = 96
UNBENT = 24
BY_HEART = 0.25
"""Share of copies among defects painted in unbent shapes from which on a network is said to have learnt by heart: of
pasted defects 70 to 95 % are copies, of a network's that has learnt 35 parts for 300 steps 3 to 6 %."""

SPLIT_SEED = 0
"""As in `station-export train`: what it validates and tests with is not learnt from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of labelled pictures")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        metavar="NAME",
        help="which defects; give it again for more classes, which are then learnt together (default: all)",
    )
    parser.add_argument(
        "--count", type=count_from(1), default=100, metavar="N", help="pictures of each class (default: 100)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="receives the pictures; must be empty")
    parser.add_argument("--method", choices=list(METHODS), default="cut-and-paste", help="how (default: %(default)s)")
    parser.add_argument("--good", metavar="NAME", help="the class without defects (default: found by its name)")
    parser.add_argument(
        "--seed", type=count_from(0), metavar="N", default=0, help="of everything that is drawn (default: %(default)s)"
    )
    gan = parser.add_argument_group("gan")
    gan.add_argument("--preset", choices=GAN_PRESETS, default="default", help="which networks (default: %(default)s)")
    gan.add_argument("--minutes", type=positive, default=25.0, metavar="M", help="time to learn (default: %(default)s)")
    gan.add_argument(
        "--steps", type=count_from(1), default=GanKnobs().steps, metavar="N", help="at most (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Read, learn, draw, write, and say what it is worth."""
    out: Path = arguments.out
    _refuse(arguments)
    dataset = read_dataset(
        arguments.data, good_label=arguments.good, seed=SPLIT_SEED, progress=ProgressLine("looking at the pictures")
    )
    wrong = sum(problem.severity == "error" for problem in dataset.problems)
    if wrong:
        folder = shlex.quote(str(arguments.data))
        print(f"{counted(wrong, 'file')} cannot be used: station-export data {folder} lists them", flush=True)
    classes = _classes(dataset, arguments.classes)
    order = Order(
        classes=classes,
        count=arguments.count,
        method=arguments.method,
        gan=GanKnobs(preset=arguments.preset, minutes=arguments.minutes, steps=arguments.steps, seed=arguments.seed),
        seed=arguments.seed,
    )
    material = gather(dataset, classes, order.seed)
    for label in classes:
        parts = {one.sample.group for one in material.marked if one.label == label}
        windows = sum(patch.label == label for patch in material.patches)
        pictures = sum(one.label == label for one in material.marked)
        print(f"{dataset.labels[label]}: {pictures} pictures of {len(parts)} parts, {windows} pieces", flush=True)
        if not all(one.drawn for one in material.marked if one.label == label):
            print("  their masks are found by contrast within the boxes; masks that were drawn are better", flush=True)
    tell = Teller(60 * arguments.minutes if order.method == "gan" else None)
    work = out.with_name(f"{out.name}.work")
    learnt = sorted({dataset.facts[patch.sample.name].sha256 for patch in material.patches})

    def look(step: int, drawn: Floats) -> None:
        rows = _rows(f"step {step}", drawn)
        write_whole(
            work / f"step-{step:06}.png", marks.encode(sheet.draw_pairs(rows), order.stands_for, learnt, sheet=True)
        )

    try:
        made = make(dataset, material, order, folder=work, say=tell, look=look)
        unbent = _unbent(dataset, material, order, work)
    except KeyboardInterrupt:
        tell.close()
        if order.method == "gan":
            sys.stderr.write("stopped; the same command goes on from here\n")
        raise
    tell.close()
    write(out, dataset, order, made)
    _judge(dataset, material, order, (made, unbent), out)
    print(f"\ndone: {len(made)} pictures in {out}\nlook at: {out / 'sheet.png'}")
    return 0


def _refuse(arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    if arguments.count > MAX_PICTURES:
        raise DatasetError(f"--count {arguments.count}: expected 1 to {MAX_PICTURES}")
    if out.resolve().is_relative_to(arguments.data.resolve()):
        raise DatasetError(
            f"--out {out}: lies inside of {arguments.data}; look at the pictures first, then copy them there"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"--out {out}: is not an empty folder; give another one, or delete this one")


def _classes(dataset: Dataset, wanted: list[str] | None) -> list[int]:
    defects = [label for label in dataset.labels if label != dataset.good_label]
    for name in wanted or ():
        if name not in defects:
            raise DatasetError(f"--class {name}: there are {', '.join(defects) or 'none'}")
    return sorted({dataset.labels.index(name) for name in wanted or defects})


def _judge(
    dataset: Dataset, material: Material, order: Order, painted: tuple[list[Made], list[Made]], out: Path
) -> None:
    """Measure, draw the sheets, and say what should not be used; `painted` is what was made, and unbent ones."""
    made, unbent = painted
    eye = Eye(material.channels)
    figures: dict[str, Any] = {}
    beside: list[tuple[str, Floats]] = []
    twins: list[tuple[str, Floats]] = []
    for label in order.classes:
        name = dataset.labels[label]
        real = _stack([patch.pixels for patch in material.patches if patch.label == label])
        drawn = _cut_again(dataset, made, label, order.seed)
        beside += [(f"{name}: real", real)] if len(real) else []
        beside.append((f"{name}: {order.method}", drawn))
        if len(real) < 2 or len(drawn) < 2:  # noqa: PLR2004
            print(f"{name}: too few defects to say what the synthetic ones are worth")
            continue
        quality = measure(eye, real, drawn, order.seed)
        figures[name] = asdict(quality)
        _tell(name, quality)
        copied = _compare(dataset, material, made, label, order.seed)
        if copied is None:
            continue
        remembered = _compare(dataset, material, unbent, label, order.seed) if unbent else None
        figures[name] |= {
            "likeness": copied.likeness,
            "copies": copied.copies,
            "real_ones_alike": copied.real_ones_alike,
        }
        if remembered is not None:
            figures[name] |= {"likeness_unbent": remembered.likeness, "copies_unbent": remembered.copies}
        _tell_copies(name, copied, order)
        _tell_remembered(name, copied, remembered)
        twins += [
            (f"{name}: {order.method}, most like a real one", copied.made[: sheet.COLUMNS]),
            (f"{name}: the real ones that they are like", copied.real[: sheet.COLUMNS]),
        ]
    digests = sorted({digest for one in made for digest in one.learnt_from})
    # Marked as the pictures are: copied into a data set a sheet must not test either.
    for file, rows in (("sheet.png", beside), ("nearest.png", twins)):
        if rows:
            write_whole(out / file, marks.encode(sheet.draw_pairs(rows), order.stands_for, digests, sheet=True))
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    write_whole(out / RECORD, (json.dumps({**record, "quality": figures}, indent=2) + "\n").encode())


def _unbent(dataset: Dataset, material: Material, order: Order, work: Path) -> list[Made]:
    """What a network paints in the shapes as they are; bent, no defect is a copy, even if it is known by heart."""
    if order.method != "gan" or order.gan.preset != "default":
        return []
    straight = replace(order.variation, bend_px=0.0)
    wanted = replace(order, count=min(order.count, UNBENT), variation=straight)
    try:
        return make(dataset, material, wanted, folder=work, say=lambda _: None)
    except DatasetError:
        # Nothing of it can be seen on good parts.
        return []


def _compare(dataset: Dataset, material: Material, made: list[Made], label: int, seed: int) -> Copied | None:
    real = [one for one in material.marked if one.label == label]
    own = [one for one in made if one.label == label]
    drawn = [(Marked(dataset.samples[0], one.pixels, one.mask, label, True), one.ground) for one in own]
    return compare(real, drawn, seed)


def _tell(name: str, quality: Quality) -> None:
    if quality.kid is None:
        print(f"{name}: too few defects to say how far they are from real ones")
    else:
        real = "" if quality.kid_of_real is None else f" (two halves of the real ones: {quality.kid_of_real:.3f})"
        print(f"{name}: KID {quality.kid:.3f}{real}, diversity {quality.diversity:.2f} of the real ones'")
    if quality.collapsed:
        print(f"  warning: {name}: nearly all of them are the same; do not train with these")


def _tell_copies(name: str, copied: Copied, order: Order) -> None:
    if order.method != "classical":
        print(
            f"  copies: {100 * copied.copies:.0f} % change a picture as a real defect does, from a likeness of "
            f"{COPY_FROM:g} on (median {copied.likeness:.2f}; real defects of different parts: "
            f"{100 * copied.real_ones_alike:.0f} %)"
        )
    if order.method == "gan" and copied.copies > max(0.05, copied.real_ones_alike):
        print(f"  warning: {name}: some are copies of real ones: the network learnt them by heart; see nearest.png")


def _tell_remembered(name: str, copied: Copied, remembered: Copied | None) -> None:
    if remembered is None:
        return
    print(
        f"  painted in the real shapes as they are, not bent: {100 * remembered.copies:.0f} % copies (median "
        f"{remembered.likeness:.2f})"
    )
    if remembered.copies > max(BY_HEART, copied.real_ones_alike):
        print(
            f"  warning: {name}: the network has learnt them by heart, and paints real defects in bent shapes; give it "
            "more parts, or fewer --steps"
        )


def _cut_again(dataset: Dataset, made: list[Made], label: int, seed: int) -> Floats:
    """The synthetic defects cut out of their pictures as the real ones were."""
    chosen = [one for one in made if one.label == label][:LOOKED_AT]
    any_sample = dataset.samples[0]
    marked = [Marked(any_sample, one.pixels, one.mask, label, True) for one in chosen]
    patches = cut_patches(marked, seed)
    rng = np.random.default_rng(seed)
    picked = sorted(rng.permutation(len(patches))[:LOOKED_AT].tolist())
    return _stack([patches[index].pixels for index in picked])


def _stack(patches: list[Floats]) -> Floats:
    return np.stack(patches) if patches else np.zeros((0, 1, 1, 1), np.float32)


def _rows(title: str, drawn: Floats) -> list[tuple[str, Floats]]:
    return [(title, drawn[start : start + sheet.COLUMNS]) for start in range(0, len(drawn), sheet.COLUMNS)]
