"""Train the dense detector on a labelled folder.

    station-export train --task detect --data DIR --out DIR --steps 20000 --seed 0

The learning rate rises over the first part and falls to zero along a cosine over the rest (Smith & Topin 2019), so the
last weights need no averaging. With `--steps` the run is the same for the same seed on the same machine; with
`--minutes` the schedule follows the clock. What was done is saved every minute and taken up again by the same command.
Each step's crops depend only on the seed and the step's number, so a resumed run sees what an unbroken one would have.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import Queue

import keras
import numpy as np
import numpy.typing as npt

from export.augment import Augmentation, erase_defects, grid_targets, random_crop
from export.cnn import STRIDE_PX, DetectorWidths, box_loss, build_detector, heatmap_loss
from export.dataset import DatasetError, Sample, read_reference, read_sample
from station.errors import StationError
from station.messages import Pixels

CHECKPOINT = "checkpoint.npz"
KNOBS = "knobs.json"
BATCHES_AHEAD = 4
SAY_EVERY_S = 10.0
SAVE_EVERY_S = 60.0

Batch = tuple[tuple[Pixels, ...], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""Pictures `[batch, crop, crop, channels]`, then their references where there are any; targets of the two outputs."""


class TrainingError(StationError):
    """The training did not work out."""


@dataclass(frozen=True, slots=True)
class TrainingKnobs:
    """Everything that decides the result.

    Attributes:
        steps: length of the run; None when `minutes` says it.
        minutes: time budget of the training itself; None when `steps` says it.
        batch: crops per step.
        peak_rate: largest learning rate of AdamW.
        warm_up: part of the run in which the rate rises.
        weight_decay: of AdamW.
        precision: Keras dtype policy of the body; bfloat16 took two thirds of float32's time on a CPU with AVX512-BF16.
        channels: 1 grey, 3 BGR.
        reference: the detector compares each picture with its reference.
        seed: of weights and crops.
    """

    steps: int | None = 20000
    minutes: float | None = None
    batch: int = 8
    peak_rate: float = 2e-3
    warm_up: float = 0.05
    weight_decay: float = 0.02
    precision: str = "mixed_bfloat16"
    channels: int = 1
    reference: bool = False
    seed: int = 0
    widths: DetectorWidths = field(default_factory=DetectorWidths)
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedSample:
    """A sample with its pixels in memory."""

    sample: Sample
    pixels: Pixels
    reference: Pixels | None


def train_detector(
    samples: Sequence[Sample],
    labels: int,
    knobs: TrainingKnobs,
    folder: Path,
    say: Callable[[str], None] = print,
) -> keras.Model:
    """Train, or go on with the run whose checkpoint stands in `folder`.

    Args:
        samples: the training split.
        labels: number of classes.
        knobs: see there.
        folder: receives `checkpoint.npz` and `knobs.json`.
        say: takes the progress lines.

    Returns:
        The float32 network with open input size.

    Raises:
        DatasetError: there is nothing to train on, or a picture cannot be read.
        TrainingError: the loss is not finite any more.
    """
    if not samples:
        raise DatasetError("the training split is empty")
    if knobs.reference and (without := next((one for one in samples if one.reference is None), None)):
        raise DatasetError(f"{without.picture}: has no reference picture, which a detector that compares needs")
    _settle_knobs(folder, knobs)
    keras.utils.set_random_seed(knobs.seed)
    loaded = _load(samples, knobs.channels)
    crop_px = knobs.augmentation.crop_px
    model = build_detector(
        crop_px,
        crop_px,
        knobs.channels,
        labels,
        knobs.widths,
        reference=knobs.reference,
        precision=knobs.precision,
    )
    optimizer = keras.optimizers.AdamW(knobs.peak_rate, weight_decay=knobs.weight_decay, global_clipnorm=5.0)
    # On a CPU Keras leaves XLA out with TensorFlow: it was slower there than oneDNN's own kernels.
    model.compile(optimizer=optimizer, loss=[heatmap_loss, box_loss])
    optimizer.build(model.trainable_variables)
    step, spent_s = _restore(folder / CHECKPOINT, model)
    if step:
        say(f"going on after step {step}, {spent_s / 60:.1f} min")
    last = said = saved = time.monotonic()
    first, said_step, loss = step, step, float("nan")
    with _BatchesAhead(loaded, labels, knobs, step) as batches:
        try:
            while (done := _part_done(knobs, step, spent_s)) < 1:
                pictures, targets = next(batches)
                model.optimizer.learning_rate.assign(_rate(done, knobs))
                inputs = [keras.ops.cast(one, "float32") / 255.0 for one in pictures]
                loss = float(model.train_on_batch(inputs if knobs.reference else inputs[0], targets)[0])
                if not np.isfinite(loss):
                    raise TrainingError(f"the loss is not finite at step {step}; try a smaller --peak-rate")
                step += 1
                now = time.monotonic()
                spent_s += now - last
                last = now
                if now - said >= SAY_EVERY_S:
                    step_s = (now - said) / (step - said_step)
                    left_s = step_s * (knobs.steps - step) if knobs.steps else 60 * (knobs.minutes or 0) - spent_s
                    say(f"step {step}: loss {loss:.4f}, {1e3 * step_s:.0f} ms a step, {left_s / 60:.1f} min left")
                    said, said_step = now, step
                    # Keras averages the loss since the last reset: each line tells of its own ten seconds.
                    model.reset_metrics()
                if now - saved >= SAVE_EVERY_S:
                    saved = now
                    _save(folder / CHECKPOINT, model, step, spent_s)
        except KeyboardInterrupt:
            _save(folder / CHECKPOINT, model, step, spent_s)
            say(f"interrupted after step {step}; the same command goes on from there")
            raise
    if step > first:
        _save(folder / CHECKPOINT, model, step, spent_s)
        say(f"trained {step} steps in {spent_s / 60:.1f} min, loss {loss:.4f}")
    return for_serving(model, labels, knobs)


def load_knobs(folder: Path) -> TrainingKnobs:
    """The knobs of the training in a folder.

    Raises:
        DatasetError: they are missing or not those of this version.
    """
    path = folder / KNOBS
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["widths"] = DetectorWidths(**stored["widths"])
        stored["augmentation"] = Augmentation(**stored["augmentation"])
        return TrainingKnobs(**stored)
    except FileNotFoundError as exc:
        raise DatasetError(f"{path}: is missing; train first") from exc
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise DatasetError(f"{path}: cannot be read: {exc}") from exc


def _settle_knobs(folder: Path, knobs: TrainingKnobs) -> None:
    """Write the knobs down, unless the folder holds a training with other ones: the length alone may change."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / CHECKPOINT).is_file():
        before = replace(load_knobs(folder), steps=knobs.steps, minutes=knobs.minutes)
        if before != knobs:
            raise DatasetError(
                f"{folder}: holds a training with other knobs; give the same ones, or another folder for --out"
            )
    (folder / KNOBS).write_text(json.dumps(asdict(knobs), indent=2) + "\n", encoding="utf-8")


def for_serving(model: keras.Model, labels: int, knobs: TrainingKnobs) -> keras.Model:
    """The same weights in a float32 network with open input size."""
    network = build_detector(None, None, knobs.channels, labels, knobs.widths, reference=knobs.reference)
    network.set_weights(model.get_weights())
    return network


def load_checkpoint(folder: Path, labels: int, knobs: TrainingKnobs) -> keras.Model:
    """The network as the last checkpoint has it, for serving.

    Raises:
        DatasetError: there is no checkpoint.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise DatasetError(f"{path}: is missing; train first")
    network = build_detector(None, None, knobs.channels, labels, knobs.widths, reference=knobs.reference)
    with np.load(path, allow_pickle=False) as stored:
        network.set_weights([stored[f"weight_{index}"] for index in range(len(network.weights))])
    return network


def _part_done(knobs: TrainingKnobs, step: int, spent_s: float) -> float:
    if knobs.steps is not None:
        return step / knobs.steps
    return spent_s / (60 * knobs.minutes) if knobs.minutes else 1.0


def _rate(done: float, knobs: TrainingKnobs) -> float:
    if done < knobs.warm_up:
        return knobs.peak_rate * (0.05 + 0.95 * done / knobs.warm_up)
    fall = (done - knobs.warm_up) / (1 - knobs.warm_up)
    return knobs.peak_rate * (0.002 + 0.998 * 0.5 * (1 + float(np.cos(np.pi * fall))))


def _load(samples: Sequence[Sample], channels: int) -> list[LoadedSample]:
    loaded = []
    for sample in samples:
        pixels = read_sample(sample, channels)
        reference = read_reference(sample, channels) if sample.reference else None
        if reference is not None and reference.shape != pixels.shape:
            raise DatasetError(f"{sample.reference}: is not of the same size as {sample.picture}")
        loaded.append(LoadedSample(sample, pixels, reference))
    return loaded


def make_batch(loaded: Sequence[LoadedSample], labels: int, knobs: TrainingKnobs, step: int) -> Batch:
    """The crops of one step and their targets; depends on the seed and the step only."""
    rng = np.random.default_rng((knobs.seed, step))
    pictures, references, heatmaps, boxes = [], [], [], []
    for choice in rng.integers(len(loaded), size=knobs.batch):
        item = loaded[choice]
        pixels, boxes_px, classes = item.pixels, item.sample.boxes_px, item.sample.classes
        beside = item.reference if knobs.reference else None
        if item.reference is not None and rng.random() < knobs.augmentation.erase_share:
            chosen = rng.random(len(boxes_px)) < knobs.augmentation.erase_each
            pixels, kept = erase_defects(pixels, item.reference, boxes_px, chosen)
            # The crop still aims at every labelled place: an undone defect is the best negative there is.
            crop = random_crop(pixels, boxes_px, np.where(kept, classes, -1), knobs.augmentation, rng, beside)
            present = crop.classes >= 0
            crop = replace(
                crop, boxes_px=crop.boxes_px[present], classes=crop.classes[present], whole=crop.whole[present]
            )
        else:
            crop = random_crop(pixels, boxes_px, classes, knobs.augmentation, rng, beside)
        heatmap, box = grid_targets(crop, labels, STRIDE_PX)
        shape = (*crop.pixels.shape[:2], knobs.channels)
        pictures.append(crop.pixels.reshape(shape))
        if crop.reference is not None:
            references.append(crop.reference.reshape(shape))
        heatmaps.append(heatmap)
        boxes.append(box)
    inputs = (np.stack(pictures), np.stack(references)) if references else (np.stack(pictures),)
    return inputs, (np.stack(heatmaps), np.stack(boxes))


class _BatchesAhead:
    """Batches made by a thread while the step before computes; at most `BATCHES_AHEAD` wait."""

    def __init__(self, loaded: Sequence[LoadedSample], labels: int, knobs: TrainingKnobs, first: int) -> None:
        self._queue: Queue[Batch | BaseException] = Queue(BATCHES_AHEAD)
        self._over = threading.Event()
        self._loaded, self._labels, self._knobs = loaded, labels, knobs
        self._first = first
        self._thread = threading.Thread(target=self._fill, name="training-crops", daemon=True)

    def __enter__(self) -> Iterator[Batch]:
        self._thread.start()
        return self._take()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        while self._thread.is_alive():
            # Room in the queue lets a thread that waits there see that it is over.
            if not self._queue.empty():
                self._queue.get()
            self._thread.join(0.01)

    def _fill(self) -> None:
        step = self._first
        while not self._over.is_set():
            try:
                self._queue.put(make_batch(self._loaded, self._labels, self._knobs, step))
            except Exception as exc:  # noqa: BLE001 (raised again in the training thread)
                self._queue.put(exc)
                return
            step += 1

    def _take(self) -> Iterator[Batch]:
        while True:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item


def _save(path: Path, model: keras.Model, step: int, spent_s: float) -> None:
    arrays = {f"weight_{index}": weight for index, weight in enumerate(model.get_weights())}
    for index, variable in enumerate(model.optimizer.variables):
        arrays[f"optimizer_{index}"] = keras.ops.convert_to_numpy(variable)
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("wb") as stream:
        np.savez(stream, step=np.int64(step), spent_s=np.float64(spent_s), **arrays)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _restore(path: Path, model: keras.Model) -> tuple[int, float]:
    if not path.is_file():
        return 0, 0.0
    with np.load(path, allow_pickle=False) as stored:
        model.set_weights([stored[f"weight_{index}"] for index in range(len(model.weights))])
        for index, variable in enumerate(model.optimizer.variables):
            variable.assign(stored[f"optimizer_{index}"])
        return int(stored["step"]), float(stored["spent_s"])
