"""Spread a network's inner values over the whole int8 range, without changing what it computes.

One quantized tensor has one step for all of its channels, so a channel whose values are small loses most of them. In an
inverted residual network two things can be changed for nothing:

- Between two 1×1 convolutions with no activation between them, as along the residual path of a stage, the values may
  stand in any basis. In that of their principal components, each scaled to the same range, rounding costs each of them
  the same share. In the original basis it costs small differences between large channels most, and these are what a
  picture of low contrast consists of.
- A channel that ReLU6 never cuts may be scaled up until it fills 0..6, and the next kernel down (Nagel et al., ICCV
  2019, cross-layer equalization, with measured ranges instead of the weights').
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from export.covariance import Array, shrink

CAP = 6.0
"""Of ReLU6."""

HEADROOM = 2.0
"""What was measured times this is what is made room for: other pictures may have larger values, and what ReLU6 cuts
off is wrong in each look at a picture, while noise is not. On test pictures of a fold of MagneticTile the network's
features stood 30 dB above what was cut off with 1.5 and 48 pictures, 43 dB with 2 and 96."""

LARGEST_GAIN = 8.0
PROJECT_POWER = 0.5
"""Before a 1×1 convolution a channel gets only the root of the gain: the kernel shares its int8 steps over the
channels, and would lose what the values win."""

LEAST_VARIANCE = 1e-4
"""Components with a smaller share of the largest one's variance are not spread any further."""

LEAST_RANGE = 3.0
"""Of a component, in its standard deviations: what was hardly seen is not scaled up to fill the range."""

SAMPLES = 400
"""Positions of each tensor and picture that are looked at."""


@contextmanager
def lent(network: keras.Model, weights: Sequence[npt.NDArray[Any]]) -> Iterator[None]:
    """Other weights for a while; the network's own are put back."""
    own = network.get_weights()
    network.set_weights(list(weights))
    try:
        yield
    finally:
        network.set_weights(own)


def rebase(network: keras.Model, pictures: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[Any]]:
    """Weights with which the network computes the same, in ranges that int8 holds better.

    Args:
        network: of stems and stages from `export.efficientnet`, with anything behind them; it keeps its own weights.
        pictures: `[1, height, width, channels]` as the network takes them; their values set the ranges.

    Returns:
        The weights, in the order of `network.get_weights()`. Parts that are not of that kind keep theirs.
    """
    own = network.get_weights()
    try:
        _rebase(network, pictures)
        return list(network.get_weights())
    finally:
        network.set_weights(own)


def _rebase(network: keras.Model, pictures: Sequence[npt.NDArray[np.float32]]) -> None:
    names = {layer.name for layer in network.layers}
    relus = sorted(name for name in names if name.endswith("_relu"))
    paths = _linear_paths(network)
    cut = [network.get_layer(name).output for name in relus]
    linear = [tensor for members, _ in paths for tensor in members]
    if not cut and not linear:
        return
    largest, values = _look(keras.Model(network.input, [*cut, *linear]), len(cut), pictures)
    for name, most in zip(relus, largest, strict=True):
        _fill(network, name.removesuffix("_relu"), most)
    start = 0
    for members, consumers in paths:
        seen = np.concatenate(values[start : start + len(members)])
        start += len(members)
        basis = _basis(seen)
        for tensor in members:
            producer = tensor._keras_history.operation
            if isinstance(producer, layers.Conv2D):
                _turn_out(producer, basis)
        for consumer in consumers:
            _turn_in(consumer, np.asarray(np.linalg.inv(basis), np.float64))


def _look(
    taps: keras.Model, relus: int, pictures: Sequence[npt.NDArray[np.float32]]
) -> tuple[list[Array], list[Array]]:
    """The largest value of each channel of the first outputs, those of the ReLUs, and samples of all others.

    Samples are `[positions, channels]`.
    """
    rng = np.random.default_rng(0)
    drawn: list[list[npt.NDArray[np.float32]]] = [[] for _ in taps.outputs[relus:]]
    largest = [np.zeros(tensor.shape[-1]) for tensor in taps.outputs[:relus]]
    for picture in pictures:
        found = taps.predict_on_batch(picture)
        flat = [
            np.asarray(tensor, np.float32).reshape(-1, tensor.shape[-1])
            for tensor in (found if isinstance(found, list) else [found])
        ]
        for number, cells in enumerate(flat[:relus]):
            largest[number] = np.maximum(largest[number], cells.max(axis=0))
        for kept, cells in zip(drawn, flat[relus:], strict=True):
            kept.append(cells[rng.permutation(len(cells))[:SAMPLES]])
    return largest, [np.concatenate(kept).astype(np.float64) for kept in drawn]


def _fill(network: keras.Model, base: str, largest: Array) -> None:
    """Scale the channels of one ReLU6 up to its cap, and the kernel behind it down."""
    consumers = _consumers(network, network.get_layer(f"{base}_relu").output)
    if len(consumers) != 1 or not isinstance(consumers[0], layers.Conv2D | layers.DepthwiseConv2D):
        return
    gain = np.clip(CAP / np.maximum(HEADROOM * largest, 1e-6), 1.0, LARGEST_GAIN)
    if isinstance(consumers[0], layers.Conv2D):
        gain = gain**PROJECT_POWER
    convolution = network.get_layer(f"{base}_convolution")
    kernel, bias = convolution.get_weights()
    depthwise = isinstance(convolution, layers.DepthwiseConv2D)
    convolution.set_weights([kernel * (gain[:, None] if depthwise else gain), bias * gain])
    kernel, *rest = consumers[0].get_weights()
    consumers[0].set_weights([kernel / gain[:, None], *rest])


def _linear_paths(network: keras.Model) -> list[tuple[list[Any], list[Any]]]:
    """The residual paths: tensors that share a basis, and the 1×1 convolutions that read them."""
    paths = []
    taken: set[int] = set()
    for layer in network.layers:
        if not layer.name.endswith("_project_convolution") or id(layer.output) in taken:
            continue
        members, consumers, waiting, turnable = [], [], [layer.output], True
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in taken:
                continue
            taken.add(id(tensor))
            members.append(tensor)
            readers = _consumers(network, tensor)
            turnable &= bool(readers) and not any(tensor is output for output in network.outputs)
            for reader in readers:
                if isinstance(reader, layers.Add):
                    waiting += [reader.output, *reader.input]
                elif isinstance(reader, layers.AveragePooling2D):
                    waiting.append(reader.output)
                elif isinstance(reader, layers.Conv2D) and reader.kernel_size == (1, 1):
                    consumers.append(reader)
                else:
                    turnable = False
        if turnable:
            paths.append((members, consumers))
    return paths


def _consumers(network: keras.Model, tensor: Any) -> list[Any]:
    found = []
    for operation in network.operations:
        if isinstance(operation, layers.InputLayer):
            continue
        sources = operation.input
        if any(tensor is source for source in (sources if isinstance(sources, list | tuple) else [sources])):
            found.append(operation)
    return found


def _basis(seen: Array) -> Array:
    """From channels to principal components of equal range, `[components, channels]`."""
    covariance = np.cov(seen.T)
    # Few samples of many channels leave directions that only seem to be empty.
    variances, directions = np.linalg.eigh(shrink(covariance, len(seen)))
    floor = max(float(variances.max()) * LEAST_VARIANCE, 1e-12)
    basis = (directions / np.sqrt(np.maximum(variances, floor))).T
    return np.asarray(basis / np.maximum(np.abs(seen @ basis.T).max(axis=0), LEAST_RANGE)[:, None], np.float64)


def _turn_out(convolution: Any, basis: Array) -> None:
    kernel, bias = (np.asarray(value, np.float64) for value in convolution.get_weights())
    convolution.set_weights([kernel @ basis.T, basis @ bias])


def _turn_in(convolution: Any, inverse: Array) -> None:
    kernel, *rest = convolution.get_weights()
    convolution.set_weights([np.einsum("hwco,cd->hwdo", np.asarray(kernel, np.float64), inverse), *rest])
