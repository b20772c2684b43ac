"""The classifier: EfficientNet-Lite0 to a sixteenth of the resolution, and a head that looks at every place.

The head joins the features of an eighth, a sixteenth and a thirty-second of the resolution on a grid of 8 px cells, as
a feature pyramid does (Lin et al., CVPR 2017), so that a small defect in a large picture is still some cells. Two
outputs come out of the same cells: a map with a logit for each kind of defect, trained with masks where there are any,
and the picture's logits, from the largest and the mean value of each feature. A small defect shows in the largest
values, an uneven surface in the means.

`trunk` is what stays as ImageNet made it at first, so its outputs can be computed once and kept; `tail` is what is
trained on them. Two plain networks as textbooks start from stand beside it for comparison.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

from export.efficientnet import STAGES, apply_stage, apply_stem, load_pretrained, read_weights
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

_FAR_BELOW = -30.0


@dataclass(frozen=True, slots=True)
class Widths:
    """Size of the head.

    Attributes:
        joined: channels in which the three resolutions meet.
        hidden: channels of the two 3×3 convolutions after that.
    """

    joined: int = 64
    hidden: int = 96


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and standard deviation of each channel of the trunk's outputs and of the deepest stage's."""

    means: tuple[npt.NDArray[np.float32], ...]
    deviations: tuple[npt.NDArray[np.float32], ...]


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


def build_tail(labels: int, defects: int, widths: Widths, dropout: float, statistics: Statistics) -> keras.Model:
    """The trained part, with pretrained deep stages.

    Args:
        labels: number of classes.
        defects: number of classes that are kinds of defects.
        widths: size of the head.
        dropout: share of features left out in training.
        statistics: by which the features are brought to one scale.

    Returns:
        A model from the trunk's two outputs and `[batch, rows, columns, 1]` (1 where the picture is, 0 where a batch
        is padded) to logits `[batch, labels]`, the map `[batch, rows, columns, defects]` and the map's maxima
        `[batch, defects]`.
    """
    fine = keras.Input((None, None, FINE_FILTERS), name="fine")
    coarse = keras.Input((None, None, COARSE_FILTERS), name="coarse")
    valid = keras.Input((None, None, 1), name="valid")
    tail = keras.Model(
        [fine, coarse, valid],
        _apply_tail(fine, coarse, valid, labels, defects, widths, dropout, statistics),
        name="tail",
    )
    load_pretrained(tail, read_weights())
    return tail


def measure_deep(coarse: Sequence[npt.NDArray[np.float16]]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and standard deviation of the deepest stage's channels, from the trunk's coarse outputs."""
    source = keras.Input((None, None, COARSE_FILTERS))
    network = keras.Model(source, _apply_deep(source))
    load_pretrained(network, read_weights())
    return channel_statistics([network.predict_on_batch(item[None].astype(np.float32))[0] for item in coarse])


def channel_statistics(
    maps: Sequence[npt.NDArray[np.float16] | npt.NDArray[np.float32]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and standard deviation of each channel over maps `[rows, columns, channels]`, each map counting the same."""
    means = np.stack([item.astype(np.float32).mean(axis=(0, 1)) for item in maps])
    squares = np.stack([np.square(item.astype(np.float32)).mean(axis=(0, 1)) for item in maps])
    mean = means.mean(axis=0)
    deviation = np.sqrt(np.maximum(squares.mean(axis=0) - mean * mean, 0)) + 1e-3
    return np.asarray(mean, np.float32), np.asarray(deviation, np.float32)


def join(trunk: keras.Model, tail: keras.Model, channels: int) -> keras.Model:
    """Trunk and tail as one network to train from pictures on: same weights, not copies."""
    picture = keras.Input((None, None, channels), name="picture")
    valid = keras.Input((None, None, 1), name="valid")
    fine, coarse = trunk(picture)
    return keras.Model([picture, valid], tail([fine, coarse, valid]), name="whole")


def for_serving(
    trunk: keras.Model,
    tail: keras.Model,
    channels: int,
    labels: int,
    defects: int,
    widths: Widths,
    statistics: Statistics,
) -> keras.Model:
    """The same weights as one network from a picture to logits and map, with the scaling of features folded in."""
    picture = keras.Input((None, None, channels), name="picture")
    logits, activation, _ = _apply_tail(*_apply_trunk(picture), None, labels, defects, widths, 0.0, None)
    network = keras.Model(picture, [logits, activation], name="classifier")
    trained = {layer.name: layer for model in (trunk, tail) for layer in model.layers if layer.weights}
    for layer in network.layers:
        if layer.weights:
            layer.set_weights(trained[layer.name].get_weights())
    for name, mean, deviation in zip(_LATERALS, statistics.means, statistics.deviations, strict=True):
        layer = network.get_layer(name)
        kernel, bias = layer.get_weights()
        kernel = kernel / deviation[:, None]
        layer.set_weights([kernel, bias - np.einsum("c,hwco->o", mean, kernel)])
    return network


_LATERALS = ("fine_lateral", "coarse_lateral", "deep_lateral")


def _apply_trunk(picture: Any) -> tuple[Any, Any]:
    policy = keras.DTypePolicy("float32")
    x = apply_stem(picture, policy)
    taps = []
    for number in range(COARSE_STAGE + 1):
        x = apply_stage(x, number, policy)
        taps.append(x)
    return taps[FINE_STAGE], taps[COARSE_STAGE]


def _apply_deep(coarse: Any) -> Any:
    policy = keras.DTypePolicy("float32")
    for number in range(COARSE_STAGE + 1, len(STAGES)):
        coarse = apply_stage(coarse, number, policy)
    return coarse


def _apply_tail(
    fine: Any,
    coarse: Any,
    valid: Any | None,
    labels: int,
    defects: int,
    widths: Widths,
    dropout: float,
    statistics: Statistics | None,
) -> tuple[Any, Any, Any]:
    joined = None
    sources = (fine, coarse, _apply_deep(coarse))
    for number, (name, x) in enumerate(zip(_LATERALS, sources, strict=True)):
        if statistics is not None:
            x = (x - statistics.means[number]) / statistics.deviations[number]  # noqa: PLW2901
        ratio = 2**number
        x = layers.Conv2D(widths.joined * ratio * ratio, 1, name=name)(x)  # noqa: PLW2901
        x = ops.depth_to_space(x, ratio) if ratio > 1 else x  # noqa: PLW2901
        joined = x if joined is None else layers.Add()([joined, x])
    x = layers.ReLU(6.0)(joined)
    x = layers.Conv2D(widths.hidden, 3, padding="same", activation="relu", name="hidden0")(x)
    x = layers.SpatialDropout2D(dropout)(x) if dropout else x
    x = layers.Conv2D(widths.hidden, 3, padding="same", activation="relu", name="hidden1")(x)
    return _heads(x, valid, labels, defects, dropout)


def _heads(x: Any, valid: Any | None, labels: int, defects: int, dropout: float) -> tuple[Any, Any, Any]:
    activation = layers.Conv2D(defects, 1, bias_initializer=keras.initializers.Constant(PRIOR_LOGIT), name="map")(x)
    if valid is None:
        largest, mean = layers.GlobalMaxPooling2D()(x), layers.GlobalAveragePooling2D()(x)
        highest = layers.GlobalMaxPooling2D()(activation)
    else:
        area = ops.maximum(ops.sum(valid, axis=(1, 2)), 1.0)
        largest, mean = ops.max(x * valid, axis=(1, 2)), ops.sum(x * valid, axis=(1, 2)) / area
        highest = ops.max(ops.where(valid > 0, activation, _FAR_BELOW), axis=(1, 2))
    if dropout:
        largest, mean = layers.Dropout(dropout)(largest), layers.Dropout(dropout)(mean)
    # Two dense layers and not one over both: joined, the small means would share the int8 range of the large maxima.
    logits = layers.Add()(
        [layers.Dense(labels, name="logits_largest")(largest), layers.Dense(labels, name="logits_mean")(mean)]
    )
    return logits, activation, highest


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
            of the cell, 0 in padding and in pictures without a mask.
        activation: logits `[batch, rows, columns, defects]`.
    """
    wanted, weight = target[..., :-1], target[..., -1:]
    found = ops.sigmoid(activation)
    entropy = ops.maximum(activation, 0.0) - activation * wanted + ops.softplus(-ops.abs(activation))
    error = ops.square(wanted - found) * entropy * weight
    known = ops.max(weight, axis=(1, 2, 3))
    # A hundredth of the cells besides: a batch of good pictures alone must not weigh a thousand times as much.
    focal = ops.sum(error) / (ops.sum(wanted * weight) + 0.01 * ops.sum(weight) + 1.0)
    both = ops.sum(wanted * found * weight, axis=(1, 2, 3))
    either = ops.sum((wanted + ops.square(found)) * weight, axis=(1, 2, 3))
    dice = known * (1.0 - (2.0 * both + 1.0) / (either + 1.0))
    return 0.5 * focal + 0.5 * ops.mean(dice)


def highest_loss(target: Any, highest: Any) -> Any:
    """Cross-entropy of the map's maxima, for pictures without a mask: some cell shows the defect, or none does.

    Args:
        target: `[batch, defects + 1]`: 1 for the picture's kind of defect; last the sample's weight, 0 with a mask.
        highest: logits `[batch, defects]`.
    """
    wanted, weight = target[:, :-1], target[:, -1]
    entropy = ops.maximum(highest, 0.0) - highest * wanted + ops.softplus(-ops.abs(highest))
    return 0.3 * ops.mean(weight * ops.sum(entropy, axis=-1))


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
