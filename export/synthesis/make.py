"""Make synthetic pictures of some classes, and write them as a folder that trains like real data."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from export.dataset import DatasetError, read_sample
from export.gan import GanPreset
from export.samples import Dataset, Sample, no_boxes
from export.synthesis import marks
from export.synthesis.blending import Draw, Paint, Variation, put_defects, put_pieces
from export.synthesis.methods import Method
from export.synthesis.patches import (
    Floats,
    Marked,
    Mask,
    Patch,
    Piece,
    cut_patches,
    cut_pieces,
    need_patches,
    read_marked,
)
from export.synthesis.plain import procedural
from export.train_gan import GanKnobs, GanTraining, Look, drawing, painting
from export.views import ViewKnobs, random_view
from station.messages import Pixels
from station.whole_file import write_whole

RECORD = "synthesis.json"
COCO_FILE = "annotations.json"
LEAST_GOOD = 3
"""Good pictures to put defects on, at least."""

MAX_PICTURES = 20_000
GOOD_PATCHES = 400
"""Good pictures that are kept in memory to draw on."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made.

    Attributes:
        classes: indices into the data set's labels.
        count: pictures of each class.
        method: how.
        gan: knobs of the network, for the method `gan`.
        variation: of size, strength and number.
        seed: of everything that is drawn.
    """

    classes: Sequence[int]
    count: int
    method: Method = "gan"
    gan: GanKnobs = field(default_factory=GanKnobs)
    variation: Variation = field(default_factory=Variation)
    seed: int = 0

    @property
    def stands_for(self) -> dict[str, Any]:
        """Plain values that say how the pictures were made."""
        facts: dict[str, Any] = {"method": self.method, "seed": self.seed}
        if self.method == "gan":
            preset: GanPreset = self.gan.preset
            facts["preset"] = preset
        return facts


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """One synthetic picture.

    Attributes:
        pixels: `[height, width]` or `[height, width, 3]`.
        mask: `[height, width]`, not empty.
        label: its class.
        learnt_from: sha256 of the pictures that it was learnt from, the good one that it stands on among them.
        ground: the good picture that it stands on; None: it is a view of a real defect's picture.
    """

    pixels: Pixels
    mask: Mask
    label: int
    learnt_from: tuple[str, ...]
    ground: Pixels | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What synthesis learns from: the training split alone, and no synthetic picture.

    Attributes:
        marked: pictures with defects of the classes, with masks.
        patches: their defects in squares of one size.
        pieces: their defects whole.
        goods: good pictures with their samples.
        channels: 1 or 3.
    """

    marked: Sequence[Marked]
    patches: Sequence[Patch]
    pieces: Sequence[Piece]
    goods: Sequence[tuple[Sample, Pixels]]
    channels: int


def gather(dataset: Dataset, classes: Sequence[int], seed: int) -> Material:
    """Read the training pictures of some classes and the good ones.

    Raises:
        DatasetError: a class has too few defects or none whose place is labelled, or there is nothing good to put
            them on.
    """
    train = [sample for sample in dataset.splits["train"] if sample.synthetic is None]
    marked = read_marked(train, classes, dataset.channels)
    good = [
        sample
        for sample in train
        if (sample.label == dataset.good if sample.label is not None else not len(sample.classes))
    ]
    if len(good) < LEAST_GOOD:
        raise DatasetError(
            f"{dataset.root}: {len(good)} good pictures in the training split; at least {LEAST_GOOD} are needed to put "
            "defects on. Where the class without defects has another name than usual, name it: --good NAME"
        )
    rng = np.random.default_rng((seed, 11))
    chosen = [good[index] for index in rng.permutation(len(good))[:GOOD_PATCHES]]
    goods = [(sample, read_sample(sample, dataset.channels)) for sample in chosen]
    return Material(marked, cut_patches(marked, seed), cut_pieces(marked), goods, dataset.channels)


def make(
    dataset: Dataset,
    material: Material,
    order: Order,
    *,
    folder: Path | None = None,
    say: Say = print,
    look: Look | None = None,
) -> list[Made]:
    """Make the pictures.

    Args:
        dataset: names and digests.
        material: what to learn from.
        order: what to make.
        folder: keeps the network's checkpoint; None: nothing is kept.
        say: takes lines for people.
        look: is shown what the network draws while it learns; None: nobody is.

    Raises:
        DatasetError: a class cannot be learnt, or the network collapsed.
    """
    made: list[Made] = []
    puts = {} if order.method == "classical" else _puts(dataset, material, order, folder, say, look)
    for label in order.classes:
        rng = np.random.default_rng((order.seed, label, 13))
        if order.method == "classical":
            made += _views(dataset, material, label, order.count, rng)
        else:
            made += _on_good(dataset, material, label, puts[label], order, rng)
    return made


def write(folder: Path, dataset: Dataset, order: Order, made: Sequence[Made]) -> list[Sample]:
    """Write pictures, masks and boxes; the folder is one that `station-export train` reads.

    A data set with a class for each picture gives a folder for each class with masks beside the pictures; one with
    boxes gives COCO.

    Returns:
        The pictures as samples of the data set that they were made for.
    """
    boxed = all(sample.label is None for sample in dataset.samples)
    numbers: dict[int, int] = {}
    samples = []
    for one in made:
        numbers[one.label] = number = numbers.get(one.label, 0) + 1
        name = dataset.labels[one.label]
        stem = f"{marks.PREFIX}{order.method}-{number:05}"
        place = folder / ("images" if boxed else name)
        if boxed:
            stem += f"-{name}"
        facts = {**order.stands_for, "class": name}
        write_whole(place / f"{stem}.png", marks.encode(one.pixels, facts, one.learnt_from))
        masks = folder / "masks" if boxed else place
        mask_file = masks / f"{stem}_mask.png"
        write_whole(mask_file, cv2.imencode(".png", one.mask.astype(np.uint8) * 255)[1].tobytes())
        boxes_px = boxes_of(one.mask) if boxed else no_boxes()[0]
        samples.append(
            Sample(
                name=(place / f"{stem}.png").as_posix(),
                picture=place / f"{stem}.png",
                boxes_px=boxes_px,
                classes=np.full(len(boxes_px), one.label, np.int64),
                group=f"{marks.PREFIX}{order.method}-{number}-{name}",
                label=None if boxed else one.label,
                mask=None if boxed else mask_file,
                synthetic=tuple(digest[: marks.DIGITS] for digest in one.learnt_from),
            )
        )
    if boxed:
        write_whole(folder / COCO_FILE, json.dumps(_coco(dataset, samples, made)).encode())
    record = {
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "order": {**asdict(order), "classes": [dataset.labels[label] for label in order.classes]},
        "pictures": len(made),
    }
    write_whole(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())
    return samples


def with_synthetic(dataset: Dataset, samples: Sequence[Sample]) -> Dataset:
    """The data set with synthetic samples in its training split, where alone they may stand."""
    if any(sample.synthetic is None for sample in samples):
        raise ValueError("a real sample stands among the synthetic ones")
    return replace(dataset, splits={**dataset.splits, "train": [*dataset.splits["train"], *samples]})


def boxes_of(mask: Mask) -> Floats:
    """The box of each piece of a mask: float32 `[n, 4]`, left, top, right, bottom."""
    joined = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
    count, pieces = cv2.connectedComponents(joined)
    boxes = []
    for number in range(1, count):
        rows, columns = np.nonzero((pieces == number) & mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return np.asarray(boxes, np.float32).reshape(-1, 4)


Put = Callable[[Pixels, np.random.Generator], tuple[Pixels, Mask] | None]
"""Puts defects of one class into a good picture; None when they cannot be seen."""


def _puts(
    dataset: Dataset,
    material: Material,
    order: Order,
    folder: Path | None,
    say: Say,
    look: Look | None,
) -> dict[int, Put]:
    patches = {label: [one for one in material.patches if one.label == label] for label in order.classes}
    pieces = {label: [one for one in material.pieces if one.label == label] for label in order.classes}
    varied = order.variation

    def squares(label: int, draw: Draw) -> Put:
        sides = [patch.side_px for patch in patches[label]] or list(SIDES_WITHOUT_DEFECTS_PX)
        return lambda pixels, rng: put_defects(pixels, draw, sides, varied, rng)

    def wholes(label: int, paint: Paint | None) -> Put:
        return lambda pixels, rng: put_pieces(pixels, pieces[label], paint, varied, rng)

    if order.method == "procedural":
        return {label: squares(label, procedural(patches[label], material.channels)) for label in order.classes}
    own = {label: need_patches(material.patches, label, dataset) for label in order.classes}
    if order.method == "cut-and-paste":
        return {label: wholes(label, None) for label in order.classes}
    training = GanTraining(
        [patch for patches in own.values() for patch in patches],
        material.marked,
        list(order.classes),
        [pixels for _, pixels in material.goods],
        material.channels,
        replace(order.gan, seed=order.seed),
        folder=folder,
        say=say,
        look=look,
    )
    generator = training.train()
    if order.gan.preset == "textbook":
        return {label: squares(label, drawing(generator, at, len(own))) for at, label in enumerate(order.classes)}
    return {label: wholes(label, painting(generator, at, len(own))) for at, label in enumerate(order.classes)}


SIDES_WITHOUT_DEFECTS_PX = (24.0, 48.0, 96.0)
"""Edges of drawn defects where no real one says how large they are."""


def _on_good(
    dataset: Dataset, material: Material, label: int, put: Put, order: Order, rng: np.random.Generator
) -> list[Made]:
    own = [patch for patch in material.patches if patch.label == label]
    # Drawn scratches and blobs learn no more of a real defect than its strength and size; that is still from it.
    digests = tuple(sorted({dataset.facts[patch.sample.name].sha256 for patch in own}))
    made: list[Made] = []
    failed = 0
    while len(made) < order.count:
        sample, pixels = material.goods[int(rng.integers(len(material.goods)))]
        done = put(pixels, rng)
        if done is None:
            failed += 1
            if failed > 20 + order.count:
                raise DatasetError(
                    f"{dataset.root}: of {failed + len(made)} tries with {order.method} {failed} gave no defect of "
                    f"{dataset.labels[label]} that can be seen on a good picture; look at the masks, or train longer"
                )
            continue
        made.append(Made(*done, label, (*digests, dataset.facts[sample.name].sha256), pixels))
    return made


def _views(dataset: Dataset, material: Material, label: int, count: int, rng: np.random.Generator) -> list[Made]:
    own = [picture for picture in material.marked if picture.label == label]
    if not own:
        raise DatasetError(
            f"{dataset.root}: no training picture of {dataset.labels[label]} has a mask or a box, and a view has to "
            "say where its defect is; draw masks (NAME_mask.png beside NAME.jpg, white where the defect is), or take "
            "the method procedural, which needs none"
        )
    made: list[Made] = []
    for _ in range(count):
        picture = own[int(rng.integers(len(own)))]
        pixels, mask = random_view(picture.pixels, picture.mask, picture.mask.shape, ViewKnobs(), rng)
        assert mask is not None
        made.append(Made(pixels, mask, label, (dataset.facts[picture.sample.name].sha256,)))
    return made


def _coco(dataset: Dataset, samples: Sequence[Sample], made: Sequence[Made]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for index, sample in enumerate(samples):
        for (left, top, right, bottom), label in zip(sample.boxes_px.tolist(), sample.classes.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    return {
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(dataset.labels)],
        "images": [
            {
                "id": index + 1,
                "file_name": sample.picture.name,
                "height": one.pixels.shape[0],
                "width": one.pixels.shape[1],
            }
            for index, (sample, one) in enumerate(zip(samples, made, strict=True))
        ],
        "annotations": annotations,
    }
