"""Train an anomaly model on good parts only.

    station-export train DIR --task anomaly

The network learns to find defects that are drawn on good pictures, anew each time that a picture is shown. Then two
opinions of each patch are added. The first is how far its features lie from those of good parts: a Gaussian over
whitened features of an eighth, a sixteenth and a thirty-second of the resolution (Defard et al., ICPR 2021, "PaDiM",
with one Gaussian for all places, since parts need not lie alike). The whitening stands in the graph, so that only a
Euclidean distance is left to do outside of it. The second is the map that has learned to find drawn defects. Both are
brought to one scale on good pictures that were held out.
"""

import io
import math
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import cv2
import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

from export.classifier import COARSE_STAGE, FINE_STAGE, MAP_MEAN
from export.dataset import DatasetError
from export.efficientnet import INPUT_SCALE, INPUT_ZERO_POINT, STAGES
from export.mirrored import with_looks
from export.pace import Length
from export.synthetic import draw_defects
from export.train_classifier import ClassifierKnobs, ClassifierTraining, LoadedPicture, Say, TrainedClassifier
from station.anomaly import ANOMALY_LABEL, FloatMap, anomaly_logits, decode_anomaly, opinions
from station.detections import Grid, Placement
from station.manifest import AnomalyDecoding, Preprocessing, SizeScale
from station.messages import Pixels, Scores
from station.preprocess import input_size, write_input
from station.regions import cells_inside

FEATURES = 240
"""Principal components of the patches' 472 features that are kept, those with the largest variance."""

GOOD, DRAWN = 0, 1
LENGTH = Length(0.7e9, 3, 20)
"""In each epoch every good picture is shown once as it is and once with defects.

Few epochs are enough for many pictures, and too few for a small set: on a development fold of MagneticTile 3 and 10 of
650 pictures reach an AUROC of .940 and .922 (the distance alone .937 and .925, the map alone .905 and .909), 3 and 20
of 80 pictures .865 and .869 (.805 and .877, .747 and .849)."""

FINE_TUNINGS = 2
"""Whose weights are averaged: what one learns from drawn defects depends on which it saw. On two development folds of
MagneticTile the AUROC is .933, of the first alone .913 and of the second .926."""

SHRINKAGE = 0.01
"""Added to the eigenvalues of the features' correlation: with few pictures the smallest ones are noise."""

PATCHES = 60_000
SMOOTH_CELLS = 2.0
"""Standard deviation of the Gaussian that smooths the map of distances. On two development folds of MagneticTile the
peak lies on 217 of 257 masks, with 1.5 on 213; of the two single fine-tunings on 208 instead of 206 and 221 instead of
218."""

CLEARANCE = 1.5
"""A score of one half stands this many standard deviations above the mean of good pictures, for each opinion."""

SPREADS_A_UNIT = 2.0
"""Standard deviations that make one unit of a score's logit; with fewer, all strong anomalies would score 1.0."""

MAP_SPREADS_A_UNIT = 4.0
"""The same of the map: it knows drawn defects only, and has half the weight of the distance. On a development fold of
MagneticTile the AUROC is .907 at the same weight, .916 at half of it and .923 without the map."""

LARGEST_FEATURE = 80.0
"""Standard deviations of good parts beyond which no drawn defect may take the int8 range of the whitened features: what
lies so far off is an anomaly by any limit. The ranges of MagneticTile's folds reach 35 to 66."""

FEW_MAPS = 10
"""The error of a line through fewer is itself not known well enough."""

LEAST_STRENGTH = 1 / 64
_LEAST_SPREAD = 0.25


@dataclass(frozen=True, slots=True)
class TrainedAnomaly:
    """A float network ready for quantization.

    Attributes:
        network: from a picture to features and map.
        preprocessing: of the bundle.
        to_real: scale and zero point from a pixel to the network's input.
    """

    network: keras.Model
    preprocessing: Preprocessing
    to_real: tuple[float, int]


def anomaly_knobs(knobs: ClassifierKnobs) -> ClassifierKnobs:
    """The classifier's knobs as an anomaly model takes them."""
    return replace(knobs, views=1, balance=0.0, fine_tunings=1 if knobs.epochs == 0 else FINE_TUNINGS)


def train_on_drawn(
    good: Sequence[LoadedPicture],
    knobs: ClassifierKnobs,
    *,
    folder: Any = None,
    say: Say = print,
) -> TrainedClassifier:
    """Train on pictures of good parts, as they are and with drawn defects.

    Args:
        good: the training split's good pictures.
        knobs: of `anomaly_knobs`.
        folder: receives the checkpoint; None: nothing is saved.
        say: takes the progress lines.

    Raises:
        DatasetError: there are too few pictures.
        TrainingError: the loss is not finite any more.
    """
    if len(good) < 2:  # noqa: PLR2004
        raise DatasetError(
            "an anomaly model needs at least two pictures of good parts to train on; some dozens are usual"
        )
    clean = [LoadedPicture(item.sample, GOOD, item.pixels, None) for item in good]
    bases = {f"{item.sample.name} (drawn)": item for item in clean}
    drawn = [
        _drawn(item, name, clean, np.random.default_rng((knobs.seed, 11, number)))
        for number, (name, item) in enumerate(bases.items())
    ]

    def redraw(item: LoadedPicture, rng: np.random.Generator) -> LoadedPicture:
        name = item.sample.name
        return item if item.label == GOOD else _drawn(bases[name], name, clean, rng)

    training = ClassifierTraining(
        [*clean, *drawn],
        [],
        ("good", ANOMALY_LABEL),
        GOOD,
        knobs,
        folder=folder,
        say=say,
        redraw=redraw,
        length=LENGTH,
    )
    return training.train()


def with_distance(trained: TrainedClassifier, pictures: Sequence[Pixels], seed: int, looks: int) -> TrainedAnomaly:
    """Add the features that say how far a patch lies from those of good parts.

    Args:
        trained: by `train_on_drawn`.
        pictures: of good parts, that it was trained on.
        seed: of the patches that are drawn.
        looks: at a picture, whose mean the features will be, see `export.mirrored`.
    """
    network = _whiten(trained.network, pictures, trained.preprocessing, seed, looks)
    return TrainedAnomaly(network, trained.preprocessing, trained.to_real)


def with_drawn(pictures: Sequence[Pixels], seed: int) -> list[Pixels]:
    """Every second one of some pictures of good parts with drawn defects, for the quantization of a model.

    Ranges that good parts alone set cut off just that by which a defect differs from them: on the third fold of
    MagneticTile int8 told the logit of a defect's score .69 too low (standard deviation .87), with these .09 (.15).

    Args:
        pictures: with as many channels.
        seed: of the defects.
    """
    rng = np.random.default_rng((seed, 31))
    return [
        draw_defects(pixels, pictures[int(rng.integers(len(pictures)))], rng)[0] if number % 2 else pixels
        for number, pixels in enumerate(pictures)
    ]


def within_reach(trained: TrainedAnomaly, drawn: Sequence[Pixels], good: Sequence[Pixels], looks: int) -> list[Pixels]:
    """Pictures of `with_drawn`, whose defects are made fainter where they lie beyond `LARGEST_FEATURE`.

    On 22 clean parts the defects lay up to 1,400 standard deviations off, one step of int8 was 11 of them, and all good
    parts were equally far from each other. (With these it is 7, by the ramp that sets the input's scale.)

    Args:
        trained: the network.
        drawn: with defects or without.
        good: the same pictures as they were.
        looks: at each picture, see `export.mirrored`.
    """
    network = with_looks(trained.network, looks)
    found = []
    for pixels, base in zip(drawn, good, strict=True):
        strength, shown = 1.0, pixels
        while shown is not base:
            features, _ = _run(network, shown, trained.preprocessing, trained.to_real)[0]
            if np.abs(features).max() <= LARGEST_FEATURE:
                break
            strength /= 2
            blended = cv2.addWeighted(pixels, strength, base, 1 - strength, 0)
            shown = base if strength < LEAST_STRENGTH else np.asarray(blended, np.uint8)
        found.append(shown)
    return found


def fit_scale(
    seen: Iterable[tuple[Sequence[Grid], Placement]],
    decoding: AnomalyDecoding,
    bank: npt.NDArray[np.int8],
    stride_px: int,
) -> AnomalyDecoding:
    """Bring both opinions to one scale, and pictures of all sizes, from good ones that were held out.

    Args:
        seen: the outputs `(features, map)` for each of them, and where it lies on the input; of each, two
            values a cell are kept.
        decoding: how distances are measured.
        bank: of good patches.
        stride_px: edge of a cell.
    """
    maps = [
        opinions(features, activation, bank, decoding=decoding, stride_px=stride_px, placement=placement)
        for (features, activation), placement in seen
    ]
    farthest = [float(distance.max()) for distance, _ in maps]
    strongest = [float(opinion.max()) for _, opinion in maps]
    spread = max(float(np.std(farthest)), 0.02 * float(np.mean(farthest)), 1e-3)
    map_spread = max(float(np.std(strongest)), _LEAST_SPREAD)
    scaled = decoding.model_copy(
        update={
            "offset": float(np.mean(farthest)) + CLEARANCE * spread,
            "width": SPREADS_A_UNIT * spread,
            "map_offset": float(np.mean(strongest)) + CLEARANCE * map_spread,
            "map_width": MAP_SPREADS_A_UNIT * map_spread,
            "sizes": None,
        }
    )
    return scaled.model_copy(
        update={"sizes": fit_sizes([anomaly_logits(distance, opinion, scaled) for distance, opinion in maps])}
    )


def fit_sizes(maps: Sequence[FloatMap]) -> SizeScale | None:
    """By how much the largest value of a good picture's map is larger where it has more cells.

    The largest of n values with an exponential tail grows with ln n, so that of two good pictures the larger one would
    be rejected more often. Whole pictures beside their own quarters show by how much, and more steadily than pictures
    beside others, of which there are few of each size. But something that stands in every picture, whatever its size,
    makes quarters differ from the whole and pictures not from each other: so it is no more than what the pictures
    beside each other allow, the slope of a line through them and two standard errors.

    Args:
        maps: of good pictures, `[rows, columns]` each.

    Returns:
        None where they have one size, so that nothing is known of others, or are too few for such a line.
    """
    sizes = np.log([each.size for each in maps])
    if len(maps) < FEW_MAPS or np.ptp(sizes) == 0:
        return None
    (slope, _), covariance = np.polyfit(sizes, [float(each.max()) for each in maps], 1, cov=True)
    allowed = float(slope + 2 * np.sqrt(covariance[0, 0]))
    rises, steps = 0.0, 0.0
    for each in maps:
        quarters = [
            part
            for half in np.array_split(each, min(2, each.shape[0]), axis=0)
            for part in np.array_split(half, min(2, each.shape[1]), axis=1)
        ]
        rises += float(each.max()) - float(np.mean([part.max() for part in quarters]))
        steps += math.log(each.size) - float(np.mean([math.log(part.size) for part in quarters]))
    return SizeScale(
        growth=max(min(rises / steps, allowed), 0.0),
        usual_cells=math.exp(float(np.mean(sizes))),
        least_cells=min(each.size for each in maps),
        most_cells=max(each.size for each in maps),
    )


def mean_bank(zero_point: int) -> npt.NDArray[np.int8]:
    """The mean of whitened features, which is zero, in the features' quantization."""
    return np.full((1, FEATURES), zero_point, np.int8)


def bank_bytes(bank: npt.NDArray[np.int8]) -> bytes:
    """A bank as the bundle keeps it."""
    stream = io.BytesIO()
    np.save(stream, bank, allow_pickle=False)
    return stream.getvalue()


class FloatAnomaly:
    """The float network before quantization, with the same preprocessing as the deployed model.

    Args:
        trained: the network.
        decoding: of the deployed model; `scaled_on` gives another scale.
        bank: of good patches.
        looks: at each picture, see `export.mirrored`.
    """

    def __init__(
        self, trained: TrainedAnomaly, decoding: AnomalyDecoding, bank: npt.NDArray[np.int8], looks: int
    ) -> None:
        self._network = with_looks(trained.network, looks)
        self._trained = trained
        self._decoding = decoding
        self._bank = bank

    def scaled_on(self, pictures: Iterable[Pixels]) -> "FloatAnomaly":
        """The same with a scale of its own, fitted as the deployed model's is, on the same pictures.

        The rounding of int8 makes small distances larger, and what it cuts off makes large ones smaller. The scale of
        either is part of it, as the biases are.
        """
        scaled = copy(self)
        scaled._decoding = fit_scale(
            map(self._outputs, pictures), self._decoding, self._bank, self._trained.preprocessing.stride_px
        )
        return scaled

    def infer(self, pixels: Pixels, reference: Pixels | None = None) -> Scores:  # noqa: ARG002 (it does not compare)
        """Score one picture."""
        (features, activation), placement = self._outputs(pixels)
        return decode_anomaly(
            features,
            activation,
            self._bank,
            decoding=self._decoding,
            stride_px=self._trained.preprocessing.stride_px,
            placement=placement,
            heatmap=True,
        )

    def _outputs(self, pixels: Pixels) -> tuple[tuple[Grid, Grid], Placement]:
        (features, activation), placement = _run(
            self._network, pixels, self._trained.preprocessing, self._trained.to_real
        )
        return (Grid(features), Grid(activation)), placement


def _run(
    network: keras.Model, pixels: Pixels, preprocessing: Preprocessing, to_real: tuple[float, int]
) -> tuple[list[npt.NDArray[np.float32]], Placement]:
    """The network's outputs `[rows, columns, values]` for a picture, and where it lies on the input."""
    tensor = np.empty((*input_size(pixels, preprocessing, (0, 0)), preprocessing.channels), np.uint8)
    placement = write_input(pixels, tensor, preprocessing)
    scale, zero_point = to_real
    real = (tensor[None].astype(np.float32) - zero_point) * np.float32(scale)
    return [np.asarray(output[0], np.float32) for output in network.predict_on_batch(real)], placement


def _drawn(base: LoadedPicture, name: str, clean: Sequence[LoadedPicture], rng: np.random.Generator) -> LoadedPicture:
    pixels, mask = draw_defects(base.pixels, clean[int(rng.integers(len(clean)))].pixels, rng)
    return LoadedPicture(replace(base.sample, name=name, label=DRAWN, mask=None), DRAWN, pixels, mask)


def _whiten(
    network: keras.Model, pictures: Sequence[Pixels], preprocessing: Preprocessing, seed: int, looks: int
) -> keras.Model:
    """Add the output `features`: whitened with the statistics of good pictures, so that their mean is zero.

    The statistics are those of the mean over the looks, which varies less than one look; whitening is linear, so that
    the mean of whitened looks is the whitened mean.
    """
    taps = [
        network.get_layer(f"block{sum(stage.blocks for stage in STAGES[: number + 1]) - 1}_{end}").output
        for number, end in ((FINE_STAGE, "add"), (COARSE_STAGE, "add"), (len(STAGES) - 1, "project_convolution"))
    ]
    # Single odd cells are smoothed away; at a thirty-second of the resolution a cell is large as it is.
    taps = [*(layers.AveragePooling2D(3, 1, "same")(tap) for tap in taps[:2]), taps[2]]
    patches = _patches(with_looks(keras.Model(network.input, taps), looks), pictures, preprocessing, seed)
    mean, deviation = patches.mean(axis=0), patches.std(axis=0) + 1e-3
    values, vectors = np.linalg.eigh(np.cov(((patches - mean) / deviation).T))
    values, vectors = values[-FEATURES:], vectors[:, -FEATURES:]
    # ZCA or PCA, the distance is the same; PCA's axes share the int8 range evenly.
    linear = (vectors / np.sqrt(np.maximum(values, 0) + SHRINKAGE)) / deviation[:, None]
    linear = np.asarray(linear, np.float32)
    bias = np.asarray(-mean @ linear, np.float32)
    parts, start = [], 0
    for number, tap in enumerate(taps):
        stop = start + tap.shape[-1]
        layer = layers.Conv2D(FEATURES, 1, name=f"whiten{number}")
        part = layer(tap)
        # Depth to space of equal copies is enlargement, without a resize whose size would be fixed; by two at a time,
        # since XNNPACK joins five tensors at most.
        for _ in range(number):
            part = ops.depth_to_space(ops.concatenate([part] * 4, axis=-1), 2)
        parts.append(part)
        kernel = linear[start:stop]
        layer.set_weights([kernel[None, None], bias if number == 0 else np.zeros(FEATURES, np.float32)])
        start = stop
    # The distances are smooth, so the map finds the place: it is learnt as a mean over the cells around, and read as it
    # is. On two development folds of MagneticTile the peak lies on 223 of 257 masks then, with the mean on 217.
    sharp = network.get_layer("map")(network.get_layer(MAP_MEAN).input)
    return keras.Model(network.input, [layers.Add()(parts), sharp], name="anomaly")


def _patches(
    taps: keras.Model, pictures: Sequence[Pixels], preprocessing: Preprocessing, seed: int
) -> npt.NDArray[np.float64]:
    """Features of patches drawn at random from good pictures, `[patches, features of all resolutions]`."""
    rng = np.random.default_rng((seed, 13))
    each = max(4, PATCHES // len(pictures))
    drawn = []
    for pixels in pictures:
        found, placement = _run(taps, pixels, preprocessing, (INPUT_SCALE, INPUT_ZERO_POINT))
        enlarged = [part.repeat(2**number, axis=0).repeat(2**number, axis=1) for number, part in enumerate(found)]
        joined = np.concatenate(enlarged, axis=2)
        rows, columns = cells_inside(joined.shape, preprocessing.stride_px, placement)
        cells = joined[:rows, :columns].reshape(-1, joined.shape[2])
        drawn.append(cells[rng.permutation(len(cells))[:each]])
    return np.concatenate(drawn).astype(np.float64)
