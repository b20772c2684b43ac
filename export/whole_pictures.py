"""What classifiers and anomaly models share on their way to a bundle: quantization of whole pictures, temperature."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import keras
import numpy as np
import numpy.typing as npt

from export.bias_correction import correct_means
from export.calibration_set import CALIBRATION_PICTURES, calibration_set
from export.comparison import LayerError
from export.dataset import DatasetError, Sample, read_sample
from export.evaluate import Scored
from export.layer_errors import LAYER_PICTURES, layer_errors
from export.mirrored import with_looks
from export.quantize import INPUT_NAMES, convert
from export.rebase import lent, rebase
from export.request import Request
from export.rounding import round_weights
from station.manifest import Preprocessing
from station.messages import Pixels
from station.preprocess import input_size, write_input

ROUNDING_PICTURES = 48
"""So many of the calibration set, which is drawn in turn from all classes, say how the weights are rounded."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A converted network.

    Attributes:
        model: the `.tflite`.
        weights: with which the float network's inner values stand in the same bases and scales as the model's.
    """

    model: bytes
    weights: list[npt.NDArray[Any]]


def quantize_pictures(
    network: keras.Model,
    pictures: Sequence[Pixels],
    preprocessing: Preprocessing,
    names: Sequence[str],
    to_real: tuple[float, int],
    say: Callable[[str], None],
    looks: int = 1,
) -> Quantized:
    """Convert a network that takes whole pictures.

    Before that see `export.rebase` and `export.rounding`, after it `export.bias_correction`.

    Args:
        network: float32, one input, outputs in the order of `names`.
        pictures: the calibration set; the model is exported for the size of the one with the median area.
        preprocessing: of the bundle.
        names: of the outputs.
        to_real: scale and zero point from a pixel to the network's input.
        say: takes lines for people.
        looks: over which the model takes the mean, see `export.mirrored`.

    Raises:
        DatasetError: there is nothing to calibrate on.
        BundleError: the converter left something in the model that is not integer.
    """
    if not pictures:
        raise DatasetError("there are no pictures to calibrate the quantization on")
    looking = with_looks(network, looks)
    serving, middle = _serving(looking, pictures, preprocessing, names)
    shape = serving.input_shape[1:]
    scale, zero_point = to_real

    def real(tensor: Pixels) -> npt.NDArray[np.float32]:
        return np.asarray((tensor[None].astype(np.float32) - zero_point) * np.float32(scale), np.float32)

    def representative() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        # The input's scale comes from its extremes, and must be the one with which pixels are written as they are. A
        # smooth ramp holds both of them and, unlike a black pixel beside a white one, widens no inner range.
        ramp = np.broadcast_to(np.linspace(0, 255, shape[1]).round().astype(np.uint8)[None, :, None], shape)
        for tensor in (ramp, *(_whole(picture, middle, shape, preprocessing) for picture in pictures)):
            yield "serving_default", {INPUT_NAMES[0]: real(tensor)}

    measured = [real(_whole(picture, middle, shape, preprocessing)) for picture in pictures]
    say("quantizing, 1 of 3: ranges of the features")
    spread = rebase(network, measured)
    say("quantizing, 2 of 3: rounding the weights")
    with lent(network, spread):
        rounded = round_weights(network, measured[:ROUNDING_PICTURES])
    # The converter makes its own, and needs the room.
    del measured
    say(f"quantizing, 3 of 3: converting, calibrated on {len(pictures)} pictures")
    with lent(network, rounded):
        model = convert(serving, representative)
    tensors = [_whole(picture, middle, shape, preprocessing)[None] for picture in pictures]
    exact = []
    for tensor in tensors:
        outputs = looking.predict_on_batch(real(tensor[0]))
        exact.append(dict(zip(names, outputs if isinstance(outputs, list) else [outputs], strict=True)))
    return Quantized(correct_means(model, tensors, exact), spread)


def picture_layers(
    network: keras.Model,
    quantized: Quantized,
    pictures: Sequence[Pixels],
    preprocessing: Preprocessing,
    names: Sequence[str],
    looks: int = 1,
) -> tuple[LayerError, ...]:
    """What each layer loses to quantization on the first few of the pictures that the model was calibrated on."""
    serving, middle = _serving(with_looks(network, looks), pictures, preprocessing, names)
    shape = serving.input_shape[1:]
    shown = [
        {INPUT_NAMES[0]: _whole(picture, middle, shape, preprocessing)[None]} for picture in pictures[:LAYER_PICTURES]
    ]
    with lent(network, quantized.weights):
        return layer_errors(serving, quantized.model, shown)


def _serving(
    network: keras.Model, pictures: Sequence[Pixels], preprocessing: Preprocessing, names: Sequence[str]
) -> tuple[keras.Model, Pixels]:
    """The network for the size of the picture with the median area, its outputs by name; and that picture."""
    middle = sorted(pictures, key=lambda item: item.shape[0] * item.shape[1])[len(pictures) // 2]
    _, fixed_height, fixed_width, _ = network.input_shape
    height, width = input_size(middle, preprocessing, (fixed_height or 0, fixed_width or 0))
    source = keras.Input((height, width, preprocessing.channels), batch_size=1, name=INPUT_NAMES[0])
    outputs = network(source, training=False)
    return keras.Model(source, dict(zip(names, outputs, strict=True))), middle


def _whole(picture: Pixels, middle: Pixels, shape: tuple[int, ...], preprocessing: Preprocessing) -> Pixels:
    """All of a picture, in the exported size: a crop might leave out what sets the ranges."""
    tensor = np.empty(shape, np.uint8)
    write_input(np.asarray(cv2.resize(picture, middle.shape[1::-1]), np.uint8), tensor, preprocessing)
    return tensor


def draw_calibration(
    request: Request, samples: Sequence[Sample], channels: int
) -> tuple[tuple[str, ...], list[Pixels]]:
    """Names and pixels of a stratified draw from training pictures."""
    drawn = calibration_set(samples, len(request.dataset.labels), CALIBRATION_PICTURES, request.seed)
    return tuple(sample.name for sample in drawn), [read_sample(sample, channels) for sample in drawn]


def best_temperature(items: Sequence[Scored]) -> float:
    """The temperature with the least cross-entropy on held-out pictures that were scored at 1; 1 without any."""
    labelled = [item for item in items if item.sample.label is not None]
    if not labelled:
        return 1.0
    logs = np.log(np.maximum([item.class_scores for item in labelled], 1e-12))
    truth = np.array([item.sample.label for item in labelled], np.int64)

    def entropy(temperature: float) -> float:
        scaled = logs / temperature
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        chosen = scaled[np.arange(len(truth)), truth] - np.log(np.exp(scaled).sum(axis=1))
        return float(-chosen.mean())

    return min((float(value) for value in np.exp(np.linspace(np.log(0.3), np.log(5.0), 57))), key=entropy)
