"""Train the classifier on a labelled folder.

    station-export train DIR --task classify --minutes 30

The pretrained network is trained in two stages. At first all of it stays as it is: its outputs are computed once for a
few views of each picture and kept, and the best linear head on them is found (`export.linear_head`). From there on
fine-tuning bends the features and does not tear them (Kumar et al., ICLR 2022, "LP-FT"): all but the first blocks are
trained from pictures on, on views that are new each time. That ends after its epochs, or when its share of the time is
spent, and is undone if held-out pictures are certainly told apart worse than before. It may be done several times from
the same beginning, and the weights averaged. The plain networks have one stage.

With `--prune` a smaller network is made of the trained one, without the least used inner channels of the blocks
(`export.pruning`). The whole network, in float, then teaches the small one on new views (Hinton, Vinyals & Dean, 2015,
"Distilling the knowledge in a neural network"; Lopez-Paz et al., ICLR 2016, for the mix with the labels).

What was done is saved after each epoch and taken up again by the same command.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from export.calibration_set import calibration_set
from export.checkpoint import read_arrays, restore, save, save_arrays
from export.classifier import (
    MULTIPLE_PX,
    PLAIN_SIDE_PX,
    STRIDE_PX,
    Preset,
    Statistics,
    build_classifier,
    build_features,
    build_plain,
    channel_statistics,
    for_serving,
    highest_loss,
    logits_loss,
    map_loss,
)
from export.dataset import DatasetError, Sample, read_mask, read_sample
from export.efficientnet import INPUT_SCALE, INPUT_ZERO_POINT, STAGES
from export.linear_head import Seen, fit_head, put_head
from export.logistic import calibrated_loss
from export.metrics import auroc, confusion_matrix, macro_f1
from export.pace import EarlyStopping, Length, StageClock, rate_at
from export.pruning import inner_widths, prune
from export.taps import TapStore
from export.train_cnn import TrainingError
from export.views import Mask, ViewKnobs, cell_cover, random_view
from station.manifest import Preprocessing
from station.messages import Pixels
from station.preprocess import input_size, write_input

SMALL_SIDE_PX = 192
"""Smaller pictures are enlarged to this: ImageNet's features were learned on 224 px."""

LARGEST_AREA_PX = 1_500_000
"""Larger pictures are shrunk to this unless a size is asked for; training on them would take hours."""

STATISTICS_PICTURES = 64
PRUNING_PICTURES = 64
"""So many, drawn from all classes in turn, say which channels are used."""

LEAST_BATCH = 4
BATCH_AREA_PX = 16 * 512 * 512
"""Larger pictures come in smaller batches: with this area the gradients of the whole network take some 2 GB."""

CHECKPOINT = "checkpoint.npz"
BEFORE = "before.npz"
"""The weights that a stage began with."""

STATISTICS = "statistics.npz"
"""Of the features: with another backend's, which are a little different, the weights would not be what was trained."""

DRAWS = 200
CERTAIN = 0.9
"""Share of the draws of held-out parts in which a stage has to be worse to be undone."""

CLASSIFIER_LENGTH = Length(2.6e9, 8, 40)
"""Half an hour on two cores."""

FINE_SHARE = 0.75
"""Of the minutes, for fine-tuning; views and the head take a few of the others."""

TAUGHT_EPOCHS = 0.6
"""Of fine-tuning's epochs, for a pruned network: it begins with what the whole one knows."""

TAUGHT_SHARE = 0.7
"""Of the target, which the whole network's probabilities make; the rest is the label."""

FROZEN_BLOCKS = sum(stage.blocks for stage in STAGES[:2])
"""The stem and the first stages, at a quarter of the resolution, are never trained: edges are edges everywhere."""


@dataclass(frozen=True, slots=True)
class ClassifierKnobs:
    """Everything that decides the result.

    Attributes:
        preset: `lite0`, or one of the plain networks.
        minutes: time budget of the training; None: the epochs alone say how long.
        side_px: pictures are scaled so that the square root of their median area is this; None: see `working_scale`.
        views: how many views of each picture are kept for the head.
        epochs: of fine-tuning; 0 leaves it out; None: by the number and size of the pictures.
        plain_epochs: of a plain network.
        batch: pictures a step.
        rate, plain_rate: largest learning rates.
        optimizer: `adam` (with decoupled weight decay), or `sgd` with momentum 0.9.
        weight_decay: of the optimizer.
        dropout: share of features left out.
        smoothing: of the labels.
        balance: a class of n pictures weighs n to the power of −balance; 0 counts pictures, 1 counts classes.
        fine_tunings: how many there are from the same beginning, on other views in another order; they share the time,
            each is undone by itself if it has made things worse, and the network gets the mean of their weights.
        prune: share of the inner channels that is taken out of each block that fine-tuning trains; 0: none.
        patience: epochs without a better validation loss after which a stage ends, at its best weights; 0: never.
        looks: at each picture, over which the finished network takes the mean, see `export.mirrored`.
        memory_mb: for the kept views; fewer views are kept when they would take more.
        seed: of weights and views.
        channels: 1 grey, 3 BGR.
    """

    preset: Preset = "lite0"
    minutes: float | None = 30.0
    side_px: int | None = None
    views: int = 2
    epochs: int | None = None
    plain_epochs: int = 40
    batch: int = 16
    rate: float = 2.5e-4
    plain_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0.05
    dropout: float = 0.2
    smoothing: float = 0.05
    balance: float = 0.5
    fine_tunings: int = 1
    prune: float = 0.0
    patience: int = 0
    looks: int = 4
    memory_mb: int = 3000
    seed: int = 0
    channels: Literal[1, 3] = 1
    view: ViewKnobs = field(default_factory=ViewKnobs)

    def __post_init__(self) -> None:
        """Refuse what does not go together.

        Raises:
            ValueError: several fine-tunings of a network that is pruned or not fine-tuned.
        """
        if self.fine_tunings > 1 and (self.prune or self.epochs == 0):
            raise ValueError(f"{self.fine_tunings} fine-tunings with prune {self.prune:g} and epochs {self.epochs}")


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Stored knobs with those that an earlier version did not know, at the values by which it trained."""
    return {"prune": 0.0, "fine_tunings": 1, **stored}


@dataclass(frozen=True, slots=True)
class TrainedClassifier:
    """A float network ready for quantization.

    Attributes:
        network: from a picture to logits and map.
        preprocessing: of the bundle.
        to_real: scale and zero point from a pixel to the network's input.
    """

    network: keras.Model
    preprocessing: Preprocessing
    to_real: tuple[float, int]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedPicture:
    """A sample with its pixels and mask in memory."""

    sample: Sample
    label: int
    pixels: Pixels
    mask: Mask | None


Batch = tuple[npt.NDArray[np.float32], list[Any]]
Source = Callable[[Sequence[int], np.random.Generator], Batch]
Say = Callable[[str], None]
Redraw = Callable[[LoadedPicture, np.random.Generator], LoadedPicture]


@dataclass(frozen=True, slots=True)
class _Stage:
    name: str
    model: keras.Model
    source: Source
    whole: Callable[[LoadedPicture], npt.NDArray[np.float32]]
    epochs: int
    rate: float
    share: float
    trains: Callable[[str], bool]
    doubtful: bool = True
    """Whether what was before might be better."""
    prepare: Callable[[], None] | None = None
    """Gives the model its first weights, once the stages before are over."""


def load_pictures(samples: Sequence[Sample], channels: int) -> list[LoadedPicture]:
    """Read pictures and masks.

    Raises:
        DatasetError: a picture has no class, or a file cannot be read.
    """
    loaded = []
    for sample in samples:
        if sample.label is None:
            raise DatasetError(f"{sample.picture}: has no class; the task classify needs a folder for each class")
        mask = read_mask(sample.mask) if sample.mask else None
        loaded.append(LoadedPicture(sample, sample.label, read_sample(sample, channels), mask))
    return loaded


def working_scale(pictures: Sequence[Pixels], side_px: int | None) -> float:
    """By what all pictures are scaled: 1 unless they are small, very large, or another size is asked for."""
    sides = np.sqrt([float(item.shape[0] * item.shape[1]) for item in pictures])
    side = float(np.median(sides))
    if side_px is not None:
        return float(np.clip(side_px / side, 0.05, 8.0))
    if side < SMALL_SIDE_PX:
        return min(SMALL_SIDE_PX / side, 4.0)
    return min(1.0, math.sqrt(LARGEST_AREA_PX) / side)


def classifier_preprocessing(pictures: Sequence[Pixels], knobs: ClassifierKnobs) -> Preprocessing:
    """How the network wants its pictures."""
    stride_px = STRIDE_PX[knobs.preset]
    if knobs.preset != "lite0":
        return Preprocessing(
            channels=knobs.channels, geometry="resize", stride_px=stride_px, multiple_px=stride_px, pad_value=0
        )
    return Preprocessing(
        channels=knobs.channels,
        geometry="fitted",
        scale=working_scale(pictures, knobs.side_px),
        stride_px=stride_px,
        multiple_px=MULTIPLE_PX,
    )


class ClassifierTraining:
    """One training; `train` does all of it."""

    def __init__(
        self,
        train: Sequence[LoadedPicture],
        validation: Sequence[LoadedPicture],
        labels: tuple[str, ...],
        good: int | None,
        knobs: ClassifierKnobs,
        *,
        store: TapStore | None = None,
        folder: Path | None = None,
        say: Say = print,
        redraw: Redraw | None = None,
        length: Length = CLASSIFIER_LENGTH,
    ) -> None:
        """Prepare a training.

        Args:
            train, validation: the splits; the second may be empty.
            labels: class names.
            good: index of the class without defects.
            knobs: see there.
            store: kept views to share between trainings on parts of the same data; None makes one.
            folder: receives the checkpoint; None: nothing is saved.
            say: takes the progress lines.
            redraw: what a picture becomes each time that fine-tuning shows it, before it is made a view; None: itself.
            length: of fine-tuning.

        Raises:
            DatasetError: there is nothing to train on, or one class only.
        """
        if len({item.label for item in train}) < 2:  # noqa: PLR2004
            raise DatasetError(
                "the training split holds fewer than two classes; a classifier needs two, "
                "good parts alone are for --task anomaly"
            )
        self._pictures = train
        self._validation = validation
        self._labels = labels
        self._defects = [index for index in range(len(labels)) if index != good]
        self._knobs = knobs
        self._store = store
        self._folder = folder
        self._say = say
        self._redraw = redraw or _as_it_is
        self._length = length
        self.head_loss = math.nan
        """Cross-entropy of the fitted head on training parts that were left out in turn, in nats."""
        self.reached: float | None = None
        """Mean of macro-F1 and AUROC on the held-out pictures, once fine-tuning is over."""
        counts = np.bincount([item.label for item in train], minlength=len(labels)).astype(np.float64)
        weights = np.maximum(counts, 1) ** -knobs.balance
        self._weights = np.asarray(weights / (weights * counts).sum() * counts.sum(), np.float32)
        self.preprocessing = classifier_preprocessing([item.pixels for item in train], knobs)
        self._batch = _batch_of([item.pixels for item in train], self.preprocessing, knobs)

    def train(self) -> TrainedClassifier:
        """Train, or go on where the checkpoint in the folder stands.

        Raises:
            TrainingError: the loss is not finite any more.
        """
        keras.utils.set_random_seed(self._knobs.seed)
        if self._knobs.preset != "lite0":
            return self._train_plain()
        return self._train_pretrained()

    def _train_plain(self) -> TrainedClassifier:
        knobs = self._knobs
        labels, defects = len(self._labels), len(self._defects)
        model = build_plain(knobs.preset, knobs.channels, labels, defects, knobs.dropout)
        stage = _Stage(
            "network",
            model,
            self._from_plain_pictures,
            self._as_plain,
            knobs.plain_epochs,
            knobs.plain_rate,
            1.0,
            lambda _: True,
            doubtful=False,
        )
        self._run([stage], [model], resumed=self._is_begun())
        network = build_plain(knobs.preset, knobs.channels, labels, defects, 0.0)
        network.set_weights(model.get_weights())
        serving = keras.Model(network.input, network.output[:2])
        return TrainedClassifier(serving, self.preprocessing, (1 / 255, 0))

    def _train_pretrained(self) -> TrainedClassifier:
        knobs = self._knobs
        begun = self._is_begun()
        statistics = self._stored_statistics() if begun else None
        store: TapStore | None = None
        if statistics is None:
            store = self._store or TapStore(build_features(knobs.channels), self.preprocessing, knobs.view, knobs.seed)
            # The head needs the views, what comes after it the statistics alone.
            self._keep_views(store, 1 if begun else knobs.views)
            statistics = self._measure(store)
        labels, defects = len(self._labels), len(self._defects)
        network = build_classifier(knobs.channels, labels, defects, knobs.dropout, statistics)
        epochs = knobs.epochs
        if epochs is None:
            area_px = sum(item.pixels.shape[0] * item.pixels.shape[1] for item in self._pictures)
            epochs = self._length.epochs(area_px * self.preprocessing.scale**2)
        share = FINE_SHARE / (1 + TAUGHT_EPOCHS) if knobs.prune else FINE_SHARE / knobs.fine_tunings
        fine = _Stage("fine-tuning", network, self._from_pictures, self._as_served, epochs, knobs.rate, share, _is_late)
        stages = [fine] if epochs else []
        others = [
            build_classifier(knobs.channels, labels, defects, knobs.dropout, statistics)
            for _ in range(1, knobs.fine_tunings)
        ]
        if others:
            stages = [
                replace(fine, name=f"fine-tuning {number} of {knobs.fine_tunings}", model=model)
                for number, model in enumerate([network, *others], 1)
            ]
        if knobs.prune:
            # The widths follow from the share alone: what goes on from a checkpoint has the same.
            widths = inner_widths(knobs.prune, FROZEN_BLOCKS)
            small = build_classifier(knobs.channels, labels, defects, knobs.dropout, statistics, widths)
            stages.append(self._taught(fine, small))
        if store is not None and not begun:
            self._fit_head(store, statistics, network)
            for model in others:
                model.set_weights(network.get_weights())
        models = [stage.model for stage in stages] or [network]
        if self._folder is not None and not begun:
            save(self._folder / CHECKPOINT, models, 0, 0, 0.0)
        self._run(stages, models, resumed=begun)
        trained = stages[-1].model if stages else network
        if others:
            _average([network, *others], into=trained)
            self._say(f"the network has the mean weights of {knobs.fine_tunings} fine-tunings")
        serving = for_serving(trained, knobs.channels, labels, defects, statistics)
        return TrainedClassifier(serving, self.preprocessing, (INPUT_SCALE, INPUT_ZERO_POINT))

    def _fit_head(self, store: TapStore, statistics: Statistics, network: keras.Model) -> None:
        began = time.monotonic()
        pictures = [
            Seen(item.label, item.sample.group, [store.view(item, view) for view in range(self._views)])
            for item in self._pictures
        ]
        weights = [float(weight) for weight in self._weights]
        good = next((label for label in range(len(self._labels)) if label not in self._defects), None)
        head = fit_head(pictures, len(self._labels), good, weights, statistics, self._knobs.seed, self._say)
        put_head(network, head)
        self.head_loss = head.loss
        self._say(
            f"head: penalty {head.penalty:g}, loss {head.loss:.3f} on parts left out in turn, "
            f"{(time.monotonic() - began) / 60:.1f} min"
        )

    def _taught(self, fine: _Stage, small: keras.Model) -> _Stage:
        """The stage in which the network of another stage teaches a smaller one."""
        teacher = keras.Model(fine.model.input, fine.model.output[0])

        def source(chosen: Sequence[int], rng: np.random.Generator) -> Batch:
            inputs, (logits, *maps) = fine.source(chosen, rng)
            said = np.asarray(teacher.predict_on_batch(inputs), np.float64)
            powers = np.exp(said - said.max(axis=1, keepdims=True))
            taught = TAUGHT_SHARE * powers / powers.sum(axis=1, keepdims=True)
            # The last column is the picture's weight.
            logits[:, :-1] = taught + (1 - TAUGHT_SHARE) * logits[:, :-1]
            return inputs, [logits, *maps]

        return replace(
            fine,
            name="teaching the pruned network",
            model=small,
            source=source,
            epochs=max(1, round(TAUGHT_EPOCHS * fine.epochs)),
            share=TAUGHT_EPOCHS * fine.share,
            prepare=lambda: self._prune(fine.model, small),
        )

    def _prune(self, whole: keras.Model, small: keras.Model) -> None:
        """Give the narrower network the other one's weights, as far as it has room for them."""
        began = time.monotonic()
        by_name = {item.sample.name: item for item in self._pictures}
        samples = [item.sample for item in self._pictures]
        drawn = calibration_set(samples, len(self._labels), PRUNING_PICTURES, self._knobs.seed)
        prune(whole, small, [self._as_served(by_name[sample.name]) for sample in drawn])
        before, after = (
            sum(layer.count_params() for layer in model.layers if layer.name.startswith("block")) / 1e6
            for model in (whole, small)
        )
        self._say(
            f"pruning: {after:.2f} of {before:.2f} million weights of the blocks stay, "
            f"{(time.monotonic() - began) / 60:.1f} min"
        )

    def _keep_views(self, store: TapStore, views: int) -> None:
        """Compute the features of so many views, as far as time and memory allow."""
        knobs = self._knobs
        limit_s = 0.2 * 60 * knobs.minutes if knobs.minutes else math.inf
        began = time.monotonic()
        for view in range(views):
            if view and not store.holds(self._pictures, view):
                spent_s = time.monotonic() - began
                if spent_s + spent_s / view > limit_s:
                    break
                if store.megabytes + store.megabytes_of(self._pictures, 0) > knobs.memory_mb:
                    break
            store.keep(self._pictures, view, self._say)
            self._views = view + 1
        self._say(
            f"kept {self._views} views of {len(self._pictures)} pictures, {store.megabytes:.0f} MB, "
            f"{(time.monotonic() - began) / 60:.1f} min"
        )

    def _measure(self, store: TapStore) -> Statistics:
        """The statistics of the kept features."""
        rng = np.random.default_rng((self._knobs.seed, 7))
        chosen = rng.permutation(len(self._pictures))[:STATISTICS_PICTURES]
        taps = [store.view(self._pictures[index], 0) for index in chosen]
        fine = channel_statistics([item.fine for item in taps])
        coarse = channel_statistics([item.coarse for item in taps])
        deep = channel_statistics([item.deep for item in taps if item.deep is not None])
        statistics = Statistics((fine[0], coarse[0], deep[0]), (fine[1], coarse[1], deep[1]))
        if self._folder is not None:
            save_arrays(self._folder / STATISTICS, statistics.arrays())
        return statistics

    def _stored_statistics(self) -> Statistics | None:
        """Those that the training in the folder began with; None: it is from before they were stored."""
        assert self._folder is not None
        path = self._folder / STATISTICS
        stored = read_arrays(path)
        try:
            return Statistics.of_arrays(stored) if stored else None
        except KeyError as exc:
            raise DatasetError(f"{path}: holds no {exc.args[0]}; remove it to start anew") from exc

    def _from_pictures(self, chosen: Sequence[int], rng: np.random.Generator) -> Batch:
        pictures = [self._redraw(self._pictures[index], rng) for index in chosen]
        # One size for the batch: that of the picture in the middle; the others are stretched a little more or less.
        size = input_size(pictures[len(pictures) // 2].pixels, self.preprocessing, (0, 0))
        inputs, covers = self._views_of(pictures, size, rng)
        real = (inputs.astype(np.float32) - INPUT_ZERO_POINT) * np.float32(INPUT_SCALE)
        return real, self._targets(pictures, covers, size)

    def _from_plain_pictures(self, chosen: Sequence[int], rng: np.random.Generator) -> Batch:
        pictures = [self._pictures[index] for index in chosen]
        side_px = PLAIN_SIDE_PX[self._knobs.preset]
        inputs, covers = self._views_of(pictures, (side_px, side_px), rng)
        return inputs.astype(np.float32) / np.float32(255), self._targets(pictures, covers, (side_px, side_px))

    def _views_of(
        self, pictures: Sequence[LoadedPicture], size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Pixels, list[npt.NDArray[np.uint8] | None]]:
        inputs = np.empty((len(pictures), *size, self._knobs.channels), np.uint8)
        covers: list[npt.NDArray[np.uint8] | None] = []
        stride_px = self.preprocessing.stride_px
        for index, item in enumerate(pictures):
            pixels, mask = random_view(item.pixels, item.mask, size, self._knobs.view, rng)
            inputs[index] = pixels.reshape(*size, self._knobs.channels)
            cells = size[0] // stride_px, size[1] // stride_px
            covers.append(None if mask is None else cell_cover(mask, cells, stride_px))
        return inputs, covers

    def _targets(
        self,
        pictures: Sequence[LoadedPicture],
        covers: Sequence[npt.NDArray[np.uint8] | None],
        size: tuple[int, int],
    ) -> list[Any]:
        count, (rows, columns) = len(pictures), (edge // self.preprocessing.stride_px for edge in size)
        logits = np.zeros((count, len(self._labels) + 1), np.float32)
        cells = np.zeros((count, rows, columns, len(self._defects) + 1), np.float32)
        highest = np.zeros((count, len(self._defects) + 1), np.float32)
        for index, (item, cover) in enumerate(zip(pictures, covers, strict=True)):
            weight = self._weights[item.label]
            logits[index, item.label], logits[index, -1] = 1, weight
            kind = self._defects.index(item.label) if item.label in self._defects else None
            good = kind is None
            if kind is not None:
                highest[index, kind] = 1
            if good or cover is not None:
                # Every cell of a good picture is known to be good, mask or not.
                cells[index, ..., -1] = 1
            if kind is not None and cover is not None:
                cells[index, : cover.shape[0], : cover.shape[1], kind] = cover
            highest[index, -1] = 0 if cover is not None else weight
        return [logits, cells, highest]

    def _is_begun(self) -> bool:
        return self._folder is not None and (self._folder / CHECKPOINT).is_file()

    def _run(self, stages: Sequence[_Stage], models: Sequence[keras.Model], *, resumed: bool) -> None:
        path = self._folder / CHECKPOINT if self._folder else None
        first, epoch, spent_s = restore(path, models) if path else (0, 0, 0.0)
        if resumed:
            self._say(f"going on with the stage {stages[first].name if first < len(stages) else 'of quantization'}")
        for number in range(first, len(stages)):
            prepare = stages[number].prepare
            if prepare is not None and not (epoch or spent_s):
                prepare()
            self._run_stage(stages, number, epoch, spent_s, path)
            epoch, spent_s = 0, 0.0

    def _run_stage(
        self, stages: Sequence[_Stage], number: int, first_epoch: int, spent_s: float, path: Path | None
    ) -> None:
        stage, knobs = stages[number], self._knobs
        for layer in stage.model.layers:
            layer.trainable = stage.trains(layer.name)
        stage.model.compile(
            optimizer=self._optimizer(stage.rate),
            loss=[logits_loss(knobs.smoothing), map_loss, highest_loss],
        )
        self._make_variables(stage)
        before = self._before(stage, number, path, resumed=bool(first_epoch or spent_s))
        clock = StageClock(spent_s, stage.share * 60 * knobs.minutes if knobs.minutes else math.inf)
        best = EarlyStopping(knobs.patience if self._validation else 0)
        epoch, loss = first_epoch, math.nan
        while epoch < stage.epochs and not clock.over and not best.settled:
            loss = self._run_epoch(stage, number, epoch, clock, f"{stage.name}, stage {number + 1} of {len(stages)}")
            epoch += 1
            if best.patience:
                best.look(self._validation_loss(stage), stage.model)
            if path:
                save(path, [item.model for item in stages], number, epoch, clock.spent_s)
        best.put_back(stage.model)
        reached = "" if math.isnan(loss) else f"loss {loss:.3f}, "
        self._say(f"{stage.name}: {epoch} epochs, {reached}{clock.spent_s / 60:.1f} min")
        if stage.doubtful and self._validation:
            self._keep_unless_worse(stage, before)
        if path:
            save(path, [item.model for item in stages], number + 1, 0, 0.0)

    def _make_variables(self, stage: _Stage) -> None:
        """Let optimizer and losses have their variables before the first step.

        A step that makes variables is traced twice by TensorFlow, which takes as long as many steps.
        """
        stage.model.optimizer.build(stage.model.trainable_variables)
        inputs, targets = stage.source([0], np.random.default_rng(0))
        stage.model.compute_loss(inputs, targets, stage.model(inputs, training=False))

    def _run_epoch(self, stage: _Stage, number: int, epoch: int, clock: StageClock, name: str) -> float:
        """Returns the mean loss; ends early when the time is over."""
        losses = []
        batches = math.ceil(len(self._pictures) / self._batch)
        for step, (inputs, targets) in enumerate(self._prepared(stage, number, epoch)):
            done = max((epoch + step / batches) / stage.epochs, clock.share)
            if done >= 1:
                break
            stage.model.optimizer.learning_rate.assign(rate_at(stage.rate, done))
            loss = float(stage.model.train_on_batch(inputs, targets)[0])
            # Keras averages the loss since the last reset.
            stage.model.reset_metrics()
            if not np.isfinite(loss):
                raise TrainingError(f"the loss is not finite in the stage {stage.name}; try a smaller rate")
            losses.append(loss)
            if done > 0 and clock.due():
                left_s = max(0.0, min(clock.spent_s * (1 / done - 1), clock.limit_s - clock.spent_s))
                self._say(
                    f"{name}, epoch {epoch + 1} of {stage.epochs}: loss {np.mean(losses):.3f}, "
                    f"{left_s / 60:.1f} min left in this stage"
                )
        return float(np.mean(losses)) if losses else math.nan

    def _prepared(self, stage: _Stage, number: int, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, each made while the one before is learnt from."""

        def make(step: int, chosen: Sequence[int]) -> Batch:
            return stage.source(chosen, np.random.default_rng((self._knobs.seed, number, epoch, step)))

        with ThreadPoolExecutor(1) as maker:
            ready: Future[Batch] | None = None
            for step, chosen in enumerate(self._batches(number, epoch)):
                coming = maker.submit(make, step, chosen)
                if ready is not None:
                    yield ready.result()
                ready = coming
            if ready is not None:
                yield ready.result()

    def _validation_logits(self, stage: _Stage) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Logits of unchanged held-out pictures, and their classes."""
        found = [stage.model.predict_on_batch(stage.whole(item))[0][0] for item in self._validation]
        return np.asarray(found, np.float64), np.array([item.label for item in self._validation], np.int64)

    def _validation_loss(self, stage: _Stage) -> float:
        """Cross-entropy, classes weighted, at the temperature that suits the logits best."""
        logits, truth = self._validation_logits(stage)
        return calibrated_loss(logits, truth, self._weights[truth])

    def _order(self, logits: npt.NDArray[np.float64], truth: npt.NDArray[np.int64]) -> float:
        """How well pictures are told apart: the mean of macro-F1 and the AUROC of good against the rest.

        Cross-entropy is no judge of that: a few parts that are wrong for certain outweigh all that got better.
        """
        figures = [macro_f1(confusion_matrix(truth, logits.argmax(axis=1), len(self._labels)))]
        good = set(range(len(self._labels))) - set(self._defects)
        if good:
            bad = np.logaddexp.reduce(logits[:, self._defects], axis=1) - logits[:, good.pop()]
            figures += [area for area in [auroc(np.isin(truth, self._defects), bad)] if area is not None]
        return float(np.mean(figures))

    def _keep_unless_worse(self, stage: _Stage, before: Sequence[Any]) -> None:
        """Put the weights from before the stage back if held-out parts say for certain that it has made things worse.

        Training usually helps, and a few held-out parts are no proof that it did not: it is undone only if things are
        worse in nearly all of the draws of parts with replacement.
        """
        trained = stage.model.get_weights()
        after, truth = self._validation_logits(stage)
        stage.model.set_weights(before)
        earlier, _ = self._validation_logits(stage)
        _, parts = np.unique([item.sample.group for item in self._validation], return_inverse=True)
        members = [np.flatnonzero(parts == part) for part in range(parts.max() + 1)]
        rng = np.random.default_rng((self._knobs.seed, 29))
        worse = 0
        for _ in range(DRAWS):
            drawn = np.concatenate([members[index] for index in rng.integers(len(members), size=len(members))])
            worse += self._order(after[drawn], truth[drawn]) < self._order(earlier[drawn], truth[drawn])
        kept = worse < CERTAIN * DRAWS
        if kept:
            stage.model.set_weights(trained)
        before_order, after_order = self._order(earlier, truth), self._order(after, truth)
        self.reached = after_order if kept else before_order
        self._say(
            f"{stage.name}: mean of macro-F1 and AUROC on held-out pictures {before_order:.3f} before, "
            f"{after_order:.3f} after: {'kept' if kept else 'not kept'}"
        )

    def _before(self, stage: _Stage, number: int, path: Path | None, *, resumed: bool) -> list[Any]:
        """The weights that the stage began with, also after an interruption."""
        stored = path.with_name(BEFORE) if path else None
        now: list[Any] = stage.model.get_weights()
        if stored is None or not (resumed and stored.is_file()):
            if stored is not None:
                save(stored, [stage.model], number, 0, 0.0)
            return now
        restore(stored, [stage.model])
        before: list[Any] = stage.model.get_weights()
        stage.model.set_weights(now)
        return before

    def _as_served(self, item: LoadedPicture) -> npt.NDArray[np.float32]:
        size = input_size(item.pixels, self.preprocessing, (0, 0))
        return (self._written(item, size).astype(np.float32) - INPUT_ZERO_POINT) * np.float32(INPUT_SCALE)

    def _as_plain(self, item: LoadedPicture) -> npt.NDArray[np.float32]:
        side_px = PLAIN_SIDE_PX[self._knobs.preset]
        return self._written(item, (side_px, side_px)).astype(np.float32) / np.float32(255)

    def _written(self, item: LoadedPicture, size: tuple[int, int]) -> Pixels:
        tensor = np.empty((1, *size, self._knobs.channels), np.uint8)
        write_input(item.pixels, tensor[0], self.preprocessing)
        return tensor

    def _batches(self, stage: int, epoch: int) -> Iterator[list[int]]:
        """Batches of pictures of about the same size, in another order each epoch."""
        rng = np.random.default_rng((self._knobs.seed, stage, epoch))
        sizes = np.array([item.pixels.shape[:2] for item in self._pictures], np.float64)
        key = np.log(sizes[:, 1]) + 0.15 * rng.standard_normal(len(sizes))
        if (sizes == sizes[0]).all():
            key = rng.random(len(sizes))
        order = np.argsort(key)
        batch = self._batch
        # The last one is filled up from its neighbours: a batch of another size would be compiled anew.
        batches = [order[min(start, len(order) - batch) :][:batch] for start in range(0, len(order), batch)]
        for index in rng.permutation(len(batches)):
            yield [int(one) for one in batches[index]]

    def _optimizer(self, rate: float) -> keras.optimizers.Optimizer:
        decay = self._knobs.weight_decay
        if self._knobs.optimizer == "sgd":
            return keras.optimizers.SGD(rate, momentum=0.9, weight_decay=decay * rate, global_clipnorm=1.0)
        return keras.optimizers.AdamW(rate, weight_decay=decay, global_clipnorm=1.0)


def _average(models: Sequence[keras.Model], into: keras.Model) -> None:
    """Give a network the mean weights of several that began alike (Wortsman et al., ICML 2022, "Model soups")."""
    weights = zip(*(model.get_weights() for model in models), strict=True)
    into.set_weights([np.mean(of_all, axis=0, dtype=np.float64) for of_all in weights])


def _as_it_is(item: LoadedPicture, _: np.random.Generator) -> LoadedPicture:
    return item


def _batch_of(pictures: Sequence[Pixels], preprocessing: Preprocessing, knobs: ClassifierKnobs) -> int:
    batch = knobs.batch
    if preprocessing.geometry != "resize":
        area_px = float(np.median([item.shape[0] * item.shape[1] for item in pictures])) * preprocessing.scale**2
        batch = min(batch, max(LEAST_BATCH, int(BATCH_AREA_PX / area_px)))
    return min(batch, len(pictures))


def _is_late(name: str) -> bool:
    block = name.split("_", 1)[0].removeprefix("block")
    return not name.startswith("stem") and not (block.isdecimal() and int(block) < FROZEN_BLOCKS)
