"""Round a network's kernels to int8 so that what they compute changes least.

Rounding each weight to its nearest step is not the best: the errors of the weights of one output add up with the
inputs, and these are alike. A kernel that takes differences of neighbouring pixels, say, should still sum to zero after
rounding, or a bright picture gets another answer than a dark one. So the weights are rounded one after the other, and
the error of each is made good by those that are still to be rounded (Frantar et al., ICLR 2023, "GPTQ", after Hassibi &
Stork, NIPS 1992), by the inputs that calibration pictures give. What remains of the error in the mean goes into the
bias.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from export.covariance import Array, shrink

STEPS = 127
"""Of a weight, on either side of zero."""

POSITIONS = 80
DEPTHWISE_POSITIONS = 32
"""Of each layer and picture at which the inputs are taken; a depthwise kernel has few, and each channel has its own."""

MOST_INPUTS = 2048
"""A layer with more inputs an output keeps its weights; their covariance could not be estimated."""

DAMPING = 0.01
"""Added to the inputs' variances, as a share of their mean."""


def round_weights(network: keras.Model, pictures: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[Any]]:
    """Weights that stand on the steps of int8, one scale for each output channel, as the converter takes them.

    Args:
        network: without batch normalization, each layer with a bias; it keeps its own weights.
        pictures: `[1, height, width, channels]` as the network takes them.

    Returns:
        The weights, in the order of `network.get_weights()`.
    """
    own = network.get_weights()
    chosen = [layer for layer in network.layers if _can_round(layer)]
    if not chosen:
        return list(own)
    inputs = _inputs(network, chosen, pictures)
    try:
        for layer, seen in zip(chosen, inputs, strict=True):
            _round_layer(layer, np.concatenate(seen).astype(np.float64))
            seen.clear()
        return list(network.get_weights())
    finally:
        network.set_weights(own)


def round_kernel(kernel: Array, inputs: Array) -> tuple[Array, Array]:
    """Round kernels to their steps, each error made good by the weights after it.

    Args:
        kernel: `[kernels, inputs, outputs]`; the steps of an output are its largest weight over 127.
        inputs: `[kernels, samples, inputs]`.

    Returns:
        The rounded kernels, and what must be added to the outputs so that their mean stays, `[kernels, outputs]`.
    """
    count = kernel.shape[1]
    mean = inputs.mean(axis=1)
    centred = inputs - mean[:, None]
    covariance = shrink(centred.transpose(0, 2, 1) @ centred / inputs.shape[1], inputs.shape[1])
    damping = DAMPING * np.einsum("nii->ni", covariance).mean(axis=1) + 1e-9
    covariance = covariance + damping[:, None, None] * np.eye(count)
    upper = np.linalg.cholesky(np.linalg.inv(covariance)).transpose(0, 2, 1)
    left = kernel.copy()
    step = np.maximum(np.abs(kernel).max(axis=1), 1e-12) / STEPS
    # The largest weight stays, since the converter takes the steps from it.
    largest = np.abs(kernel).argmax(axis=1)
    rounded = np.empty_like(kernel)
    for index in range(count):
        whole = np.clip(np.round(left[:, index] / step), -STEPS, STEPS)
        whole = np.where(largest == index, np.sign(kernel[:, index]) * STEPS, whole)
        rounded[:, index] = whole * step
        error = (left[:, index] - rounded[:, index]) / upper[:, index, index][:, None]
        left[:, index + 1 :] -= upper[:, index, index + 1 :, None] * error[:, None]
    # The order is greedy: for a few outputs the nearest steps are better after all.
    nearest = np.round(kernel / step[:, None]) * step[:, None]
    better = _loss(kernel - nearest, covariance) < _loss(kernel - rounded, covariance)
    rounded = np.where(better[:, None], nearest, rounded)
    return rounded, np.einsum("nio,ni->no", kernel - rounded, mean)


def _loss(error: Array, covariance: Array) -> Array:
    """Variance of the outputs' error, `[kernels, outputs]`."""
    return np.asarray(np.sum(error * (covariance @ error), axis=1), np.float64)


def _can_round(layer: Any) -> bool:
    if isinstance(layer, layers.DepthwiseConv2D):
        return bool(layer.depth_multiplier == 1 and layer.padding == "same")
    if isinstance(layer, layers.Conv2D):
        return bool(layer.padding == "same" or layer.kernel_size == (1, 1)) and _fan_in(layer) <= MOST_INPUTS
    return isinstance(layer, layers.Dense) and _fan_in(layer) <= MOST_INPUTS


def _fan_in(layer: Any) -> int:
    return int(np.prod(layer.get_weights()[0].shape[:-1]))


def _inputs(
    network: keras.Model, chosen: Sequence[Any], pictures: Sequence[npt.NDArray[np.float32]]
) -> list[list[npt.NDArray[np.float16]]]:
    """For each layer and picture what the kernel is multiplied with, `[samples, kernel cells, channels]`.

    In half precision, since all layers' together are some hundred megabytes: it is still far finer than int8.
    """
    rng = np.random.default_rng(0)
    unique = {id(layer.input): layer.input for layer in chosen}
    taps = keras.Model(network.input, list(unique.values()))
    drawn: list[list[npt.NDArray[np.float16]]] = [[] for _ in chosen]
    for picture in pictures:
        found = taps.predict_on_batch(picture)
        by_tensor = dict(zip(unique, found if isinstance(found, list) else [found], strict=True))
        for kept, layer in zip(drawn, chosen, strict=True):
            kept.append(_patches(np.asarray(by_tensor[id(layer.input)][0], np.float32), layer, rng))
    return drawn


def _patches(tensor: npt.NDArray[np.float32], layer: Any, rng: np.random.Generator) -> npt.NDArray[np.float16]:
    if tensor.ndim == 1:
        return tensor[None, None].astype(np.float16)
    (rows, columns), (row_step, column_step) = layer.kernel_size, layer.strides
    height, width = -(-tensor.shape[0] // row_step), -(-tensor.shape[1] // column_step)
    above = max((height - 1) * row_step + rows - tensor.shape[0], 0)
    before = max((width - 1) * column_step + columns - tensor.shape[1], 0)
    padded = np.pad(tensor.astype(np.float16), ((above // 2, rows), (before // 2, columns), (0, 0)))
    positions = DEPTHWISE_POSITIONS if isinstance(layer, layers.DepthwiseConv2D) else POSITIONS
    at = rng.permutation(height * width)[:positions]
    tops, lefts = at // width * row_step, at % width * column_step
    return np.stack(
        [
            padded[top : top + rows, left : left + columns].reshape(rows * columns, -1)
            for top, left in zip(tops.tolist(), lefts.tolist(), strict=True)
        ]
    )


def _round_layer(layer: Any, seen: Array) -> None:
    kernel, bias = layer.get_weights()
    exact = np.asarray(kernel, np.float64)
    if isinstance(layer, layers.DepthwiseConv2D):
        cells, channels = seen.shape[1:]
        rounded, shift = round_kernel(exact.reshape(cells, channels).T[:, :, None], seen.transpose(2, 0, 1))
        kernel, shift = rounded[:, :, 0].T.reshape(kernel.shape), shift[:, 0]
    else:
        rounded, shift = round_kernel(exact.reshape(1, -1, kernel.shape[-1]), seen.reshape(1, len(seen), -1))
        kernel, shift = rounded[0].reshape(kernel.shape), shift[0]
    layer.set_weights([kernel, bias + shift])
