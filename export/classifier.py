"""The classifier: EfficientNet-Lite0 to a sixteenth of the resolution, and a head that looks at every place.

The head is linear in the features of an eighth, a sixteenth and a thirty-second of the resolution. They meet on a grid
of 8 px cells, so that a small defect in a large picture is still some cells: a map with a logit for each kind of
defect, taught by masks where there are any. The picture's logits are read from the largest, the least and the mean
value of each feature, and from those of the map. A small defect shows in the extremes, an uneven surface in the means.

Two plain networks as textbooks start from stand beside it for comparison.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

from export.efficientnet import STAGES, apply_stage, apply_stem, load_pretrained, read_weights
from export.pruning import widths_of
from station.classification import decode_classes
from station.detections import Grid
from station.manifest import ClassDecoding, Preprocessing
from station.messages import Pixels, Scores
from station.preprocess import input_size, write_input

Preset = Literal["lite0", "plain-a", "plain-b"]
PRESETS: tuple[Preset, ...] = ("lite0", "plain-a", "plain-b")

STRIDE_PX = {"lite0": 8, "plain-a": 4, "plain-b": 4}
"""Edge of a cell of the map."""

MULTIPLE_PX = 32
FINE_STAGE = 2
COARSE_STAGE = 4
FINE_FILTERS = STAGES[FINE_STAGE].filters
COARSE_FILTERS = STAGES[COARSE_STAGE].filters
DEEP_FILTERS = STAGES[-1].filters

PLAIN_SIDE_PX = {"plain-a": 64, "plain-b": 28}
"""Side of the square that the plain networks take; the textbooks' 28 for the second."""

PRIOR_LOGIT = -4.0
"""Initial bias of the map: most cells show no defect."""

FALSE_SHARE = 0.05
"""Of a picture's cells: where so many are false alarms the loss is that of a missed defect."""

MAP_WEIGHT = 0.3
"""Of the map's losses beside that of the logits."""

MAP_CELLS = 3
"""The map is a mean over so many cells, so that one odd cell is no peak; `anomaly` reads it without, see `MAP_MEAN`."""

MAP_MEAN = "map_around"
"""Name of the layer that takes the mean: what goes into it is the map of single cells, but for its scale."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and standard deviation of each channel of the trunk's outputs and of the deepest stage's."""

    means: tuple[npt.NDArray[np.float32], ...]
    deviations: tuple[npt.NDArray[np.float32], ...]

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """As they are stored."""
        named = {"mean": self.means, "deviation": self.deviations}
        return {f"{name}_{number}": array for name, arrays in named.items() for number, array in enumerate(arrays)}

    @classmethod
    def of_arrays(cls, stored: Mapping[str, npt.NDArray[np.float32]]) -> "Statistics":
        """From what `arrays` gave."""
        count = len(stored) // 2
        means, deviations = (
            tuple(stored[f"{name}_{number}"] for number in range(count)) for name in ("mean", "deviation")
        )
        return cls(means, deviations)


def build_trunk(channels: int) -> keras.Model:
    """The pretrained network up to a sixteenth of the resolution.

    Returns:
        A model from `[batch, height, width, channels]`, (pixel − 127) / 128, to `[batch, height / 8, width / 8, 40]`
        and `[batch, height / 16, width / 16, 112]`.

    Raises:
        DatasetError: the pretrained weights are missing or not the known ones.
    """
    picture = keras.Input((None, None, channels), name="picture")
    network = keras.Model(picture, _apply_trunk(picture), name="trunk")
    load_pretrained(network, read_weights())
    return network


def build_features(channels: int) -> keras.Model:
    """The pretrained network with an output at each resolution that the head looks at.

    Returns:
        A model from a picture, as the trunk takes it, to the trunk's two outputs and the deepest stage's
        `[batch, height / 32, width / 32, 320]`.
    """
    picture = keras.Input((None, None, channels), name="picture")
    fine, coarse = _apply_trunk(picture)
    network = keras.Model(picture, [fine, coarse, _apply_deep(coarse)], name="features")
    load_pretrained(network, read_weights())
    return network


def build_classifier(
    channels: int,
    labels: int,
    defects: int,
    dropout: float,
    statistics: Statistics | None,
    widths: Mapping[str, int] | None = None,
) -> keras.Model:
    """The pretrained network with a head that knows nothing yet.

    Args:
        channels: 1 grey, 3 BGR.
        labels: number of classes.
        defects: number of classes that are kinds of defects.
        dropout: share of features left out in training.
        statistics: by which the features are brought to one scale; None: `LATERALS` do it, see `for_serving`.
        widths: of blocks that have fewer channels inside than the pretrained ones, see `apply_stage`. With any, the
            features' weights are not the pretrained ones but still to be given, see `export.pruning`.

    Returns:
        A model from `[batch, height, width, channels]`, (pixel − 127) / 128, to logits `[batch, labels]`, the map
        `[batch, rows, columns, defects]` in cells of 8 px and the map's maxima `[batch, defects]`.
    """
    picture = keras.Input((None, None, channels), name="picture")
    fine, coarse = _apply_trunk(picture, widths)
    features, activation = _apply_map((fine, coarse, _apply_deep(coarse, widths)), defects, statistics)
    network = keras.Model(picture, _heads(features, activation, labels, dropout), name="classifier")
    if not widths:
        load_pretrained(network, read_weights())
    for name in (*LATERALS, "map"):
        layer = network.get_layer(name)
        kernel, bias = layer.get_weights()
        layer.set_weights([np.eye(kernel.shape[-1], dtype=np.float32)[None, None], bias])
    return network


def channel_statistics(
    maps: Sequence[npt.NDArray[np.float16] | npt.NDArray[np.float32]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and standard deviation of each channel over maps `[rows, columns, channels]`, each map counting the same."""
    means = np.stack([item.astype(np.float32).mean(axis=(0, 1)) for item in maps])
    squares = np.stack([np.square(item.astype(np.float32)).mean(axis=(0, 1)) for item in maps])
    mean = means.mean(axis=0)
    deviation = np.sqrt(np.maximum(squares.mean(axis=0) - mean * mean, 0)) + 1e-3
    return np.asarray(mean, np.float32), np.asarray(deviation, np.float32)


def for_serving(trained: keras.Model, channels: int, labels: int, defects: int, statistics: Statistics) -> keras.Model:
    """The same weights as a network from a picture to logits and map, with the scaling of features folded in."""
    network = build_classifier(channels, labels, defects, 0.0, None, widths_of(trained))
    for layer in network.layers:
        if layer.weights:
            layer.set_weights(trained.get_layer(layer.name).get_weights())
    for name, mean, deviation in zip(LATERALS, statistics.means, statistics.deviations, strict=True):
        layer = network.get_layer(name)
        kernel, bias = layer.get_weights()
        kernel = kernel / deviation[:, None]
        layer.set_weights([kernel, bias - np.einsum("c,hwco->o", mean, kernel)])
    return keras.Model(network.input, network.output[:2], name="classifier")


LATERALS = ("fine_lateral", "coarse_lateral", "deep_lateral")
"""1×1 convolutions that bring each resolution's features to one scale; training may turn them into others."""

MAPS = ("fine_map", "coarse_map", "deep_map")
"""What each resolution adds to the map."""

POOLS = ("largest", "least", "mean")
"""What is taken of each channel of each resolution."""


def readings() -> list[str]:
    """What the logits are read from, in the order in which a fitted head has them; each has a layer `logits_…`."""
    return [*(f"{pool}{number}" for pool in POOLS for number in range(len(LATERALS))), "map_largest", "map_mean"]


def _apply_trunk(picture: Any, widths: Mapping[str, int] | None = None) -> tuple[Any, Any]:
    policy = keras.DTypePolicy("float32")
    x = apply_stem(picture, policy)
    taps = []
    for number in range(COARSE_STAGE + 1):
        x = apply_stage(x, number, policy, widths)
        taps.append(x)
    return taps[FINE_STAGE], taps[COARSE_STAGE]


def _apply_deep(coarse: Any, widths: Mapping[str, int] | None = None) -> Any:
    policy = keras.DTypePolicy("float32")
    for number in range(COARSE_STAGE + 1, len(STAGES)):
        coarse = apply_stage(coarse, number, policy, widths)
    return coarse


def _apply_map(resolutions: Sequence[Any], defects: int, statistics: Statistics | None) -> tuple[list[Any], Any]:
    features, parts = [], []
    for number, x in enumerate(resolutions):
        if statistics is not None:
            x = (x - statistics.means[number]) / statistics.deviations[number]  # noqa: PLW2901
        x = layers.Conv2D(x.shape[-1], 1, name=LATERALS[number])(x)  # noqa: PLW2901
        features.append(x)
        ratio = 2**number
        part = layers.Conv2D(defects * ratio * ratio, 1, name=MAPS[number])(x)
        parts.append(ops.depth_to_space(part, ratio) if ratio > 1 else part)
    x = layers.AveragePooling2D(MAP_CELLS, 1, "same", name=MAP_MEAN)(layers.Add()(parts))
    # XNNPACK does not take an average pooling, and an output must come from XNNPACK.
    return features, layers.Conv2D(defects, 1, bias_initializer=keras.initializers.Constant(PRIOR_LOGIT), name="map")(x)


def _heads(features: Sequence[Any], activation: Any, labels: int, dropout: float) -> list[Any]:
    pooled: dict[str, Any] = {}
    for number, x in enumerate(features):
        pooled |= {f"{name}{number}": value for name, value in zip(POOLS, _pool(x), strict=True)}
    highest, _, mean = _pool(activation)
    pooled |= {"map_largest": highest, "map_mean": mean}
    # A dense layer for each, and none over several that are joined: an int8 tensor has one range, that of the joined
    # maxima would be forced upon the features that they are taken from, and would cut off all that lies below.
    parts = []
    for name in readings():
        x = layers.Dropout(dropout)(pooled[name]) if dropout else pooled[name]
        parts.append(layers.Dense(labels, name=f"logits_{name}")(x))
    return [layers.Add()(parts), activation, highest]


def _pool(x: Any) -> tuple[Any, Any, Any]:
    """Largest, least and mean value of each channel."""
    return ops.max(x, axis=(1, 2)), ops.min(x, axis=(1, 2)), layers.GlobalAveragePooling2D()(x)


def build_plain(preset: Preset, channels: int, labels: int, defects: int, dropout: float) -> keras.Model:
    """A network as textbooks start from.

    `plain-a`: a 3×3 and a 5×5 convolution of 32 and 64 filters, stride 1, ReLU, each with 2×2 max pooling, then dense.
    `plain-b`: 3×3 convolutions of 32, 64 and 64 filters, 2×2 max pooling after the first two, dense 64, dense. The map
    is a 1×1 convolution beside that, which learns from the features and does not change them.

    Returns:
        A model from `[batch, side, side, channels]` in 0..1 to logits, map and the map's maxima.
    """
    side_px = PLAIN_SIDE_PX[preset]
    picture = keras.Input((side_px, side_px, channels), name="picture")
    x = picture
    kernels = (3, 5) if preset == "plain-a" else (3, 3, 3)
    for number, (kernel, filters) in enumerate(zip(kernels, (32, 64, 64), strict=False)):
        x = layers.Conv2D(filters, kernel, padding="same", activation="relu", name=f"convolution{number}")(x)
        if number < 2:  # noqa: PLR2004
            x = layers.MaxPooling2D(2)(x)
    activation = layers.Conv2D(defects, 1, bias_initializer=keras.initializers.Constant(PRIOR_LOGIT), name="map")(
        ops.stop_gradient(x)
    )
    flat = layers.Flatten()(x)
    flat = layers.Dropout(dropout)(flat) if dropout else flat
    if preset == "plain-b":
        flat = layers.Dense(64, activation="relu", name="dense")(flat)
    logits = layers.Dense(labels, name="logits")(flat)
    return keras.Model(picture, [logits, activation, layers.GlobalMaxPooling2D()(activation)], name="plain")


def logits_loss(smoothing: float) -> Callable[[Any, Any], Any]:
    """Cross-entropy with label smoothing (Szegedy et al., CVPR 2016), weighted by sample.

    The target is `[batch, labels + 1]`: one-hot, and the sample's weight.
    """

    def loss(target: Any, logits: Any) -> Any:
        wanted, weight = target[:, :-1], target[:, -1]
        wanted = wanted * (1.0 - smoothing) + smoothing / wanted.shape[-1]
        return ops.mean(weight * ops.sum(-wanted * ops.log_softmax(logits), axis=-1))

    return loss


def map_loss(target: Any, activation: Any) -> Any:
    """Focal cross-entropy (Lin et al., ICCV 2017, γ = 2) plus Dice (Milletari et al., 3DV 2016) where masks are known.

    Args:
        target: `[batch, rows, columns, defects + 1]`: 1 in cells that show the defect; in the last channel the weight
            of the cell, 0 in pictures whose defects nobody has shown.
        activation: logits `[batch, rows, columns, defects]`.
    """
    wanted, weight = target[..., :-1], target[..., -1:]
    found = ops.sigmoid(activation)
    entropy = ops.maximum(activation, 0.0) - activation * wanted + ops.softplus(-ops.abs(activation))
    error = ops.square(wanted - found) * entropy * weight
    # Each picture by itself, by the size of its defect and a share of its cells: a small defect weighs as much as a
    # large one, and many false alarms in a good picture weigh more than a few.
    size = ops.sum(wanted * weight, axis=(1, 2, 3))
    focal = ops.sum(error, axis=(1, 2, 3)) / (size + FALSE_SHARE * ops.sum(weight, axis=(1, 2, 3)) + 1.0)
    both = ops.sum(wanted * found * weight, axis=(1, 2, 3))
    either = ops.sum((wanted + ops.square(found)) * weight, axis=(1, 2, 3))
    dice = ops.where(size > 0, 1.0 - (2.0 * both + 1.0) / (either + 1.0), 0.0)
    return MAP_WEIGHT * ops.mean(focal + dice)


def highest_loss(target: Any, highest: Any) -> Any:
    """Cross-entropy of the map's maxima, for pictures without a mask: some cell shows the defect, or none does.

    Args:
        target: `[batch, defects + 1]`: 1 for the picture's kind of defect; last the sample's weight, 0 with a mask.
        highest: logits `[batch, defects]`.
    """
    wanted, weight = target[:, :-1], target[:, -1]
    entropy = ops.maximum(highest, 0.0) - highest * wanted + ops.softplus(-ops.abs(highest))
    return MAP_WEIGHT * ops.mean(weight * ops.sum(entropy, axis=-1))


class FloatClassifier:
    """The float network before quantization, with the same preprocessing and decoding as the deployed model."""

    def __init__(
        self,
        network: keras.Model,
        labels: tuple[str, ...],
        good_label: str | None,
        preprocessing: Preprocessing,
        decoding: ClassDecoding,
        to_real: tuple[float, int],
    ) -> None:
        """Wrap a network.

        Args:
            network: of `for_serving` or `build_plain`.
            labels, good_label: of the data set.
            preprocessing: of the bundle.
            decoding: temperature.
            to_real: scale and zero point from a pixel to the network's input.
        """
        self._network = network
        self._labels = labels
        self._good_label = good_label
        self._preprocessing = preprocessing
        self._decoding = decoding
        self._to_real = to_real

    def infer(self, pixels: Pixels, reference: Pixels | None = None) -> Scores:  # noqa: ARG002 (it does not compare)
        """Score one picture."""
        preprocessing = self._preprocessing
        side = self._network.input_shape[1] or 0
        tensor = np.empty((*input_size(pixels, preprocessing, (side, side)), preprocessing.channels), np.uint8)
        placement = write_input(pixels, tensor, preprocessing)
        scale, zero_point = self._to_real
        real = (tensor[None].astype(np.float32) - zero_point) * np.float32(scale)
        logits, activation = self._network.predict_on_batch(real)
        return decode_classes(
            Grid(np.asarray(logits[0], np.float32)),
            Grid(np.asarray(activation[0], np.float32)),
            labels=self._labels,
            good_label=self._good_label,
            decoding=self._decoding,
            stride_px=preprocessing.stride_px,
            placement=placement,
            heatmap=True,
        )
