"""Take the least used inner channels out of a network's blocks, so that it is smaller and faster.

An inverted residual block widens what comes in, looks at each of the many channels by itself, and projects them to few.
Nothing else sees the inner channels: one of them may go, with its column of the first kernel, its own depthwise kernel
and its row of the last one, and what is left is an ordinary network with narrower blocks. Single weights of zero would
save nothing: a kernel of int8 takes as long, and `export.rebase` and `export.rounding` would make other numbers of
them.

How much a channel is used is told by what pictures make of it, as with the criteria of activation of Molchanov et al.
(ICLR 2017), times the kernel that reads it, as Sun et al. (ICLR 2024, "Wanda") have it for single weights: its variance
behind the ReLU times the square of the norm of its row in the projection. That is the mean squared error that the
block's output has without it, if its mean is put into the bias. The error is made smaller still by what the channels
that stay know of the ones that go: the projection is fitted to what it gave before by least squares (He, Zhang & Sun,
ICCV 2017).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from export.covariance import Array, shrink
from export.efficientnet import STAGES, STEM_FILTERS

MULTIPLE = 8
"""Of the widths that are left: XNNPACK's kernels take eight or sixteen channels at once."""

POSITIONS = 400
"""Of each block and picture at which the channels are looked at."""

DAMPING = 0.01
"""Added to the channels' variances, as a share of their mean."""


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """What pictures make of the inner channels of a block: mean `[channels]`, covariance `[channels, channels]`."""

    mean: Array
    covariance: Array
    samples: int


def inner_widths(share: float, first_block: int) -> dict[str, int]:
    """How many inner channels are left in each block, from a block on.

    Args:
        share: of the channels, 0 to below 1, that go at least; the rest is rounded down to a multiple of 8.
        first_block: the blocks before it keep all of theirs.

    Returns:
        Name of a block, as `block3` → its inner width.
    """
    widths: dict[str, int] = {}
    number, before = 0, STEM_FILTERS
    for stage in STAGES:
        for _ in range(stage.blocks):
            if number >= first_block and stage.expansion != 1:
                # What 1 − 0.7 lacks of 0.3 shall not cost eight channels.
                left = math.floor((1 - share) * before * stage.expansion / MULTIPLE + 1e-6)
                widths[f"block{number}"] = MULTIPLE * max(1, left)
            number, before = number + 1, stage.filters
    return widths


def widths_of(network: keras.Model) -> dict[str, int]:
    """The inner width of each block that a network has."""
    found = {}
    for layer in network.layers:
        block, _, part = layer.name.partition("_")
        if part == "depthwise_convolution":
            found[block] = int(layer.output.shape[-1])
    return found


def prune(whole: keras.Model, pruned: keras.Model, pictures: Sequence[npt.NDArray[np.float32]]) -> None:
    """Give a network with narrower blocks the weights of a whole one, without the inner channels that are used least.

    Args:
        whole: of stems and stages from `export.efficientnet`, with anything behind them.
        pruned: has all of its layers; blocks may be narrower inside.
        pictures: `[1, height, width, channels]` as the networks take them, the more alike to what comes the better.
    """
    weights = {layer.name: layer.get_weights() for layer in whole.layers if layer.weights}
    narrower = widths_of(pruned)
    blocks = [name for name, width in widths_of(whole).items() if narrower[name] < width]
    for block, use in zip(blocks, _measure(whole, blocks, pictures), strict=True):
        expand, depthwise, project = (f"{block}_{part}_convolution" for part in ("expand", "depthwise", "project"))
        kept = _most_used(weights[project][0], use, narrower[block])
        weights[expand] = [array[..., kept] for array in weights[expand]]
        kernel, bias = weights[depthwise]
        weights[depthwise] = [kernel[:, :, kept], bias[kept]]
        kernel, bias = weights[project]
        weights[project] = _without_others(kernel, bias, use, kept)
    for name, arrays in weights.items():
        pruned.get_layer(name).set_weights(arrays)


def _measure(network: keras.Model, blocks: Sequence[str], pictures: Sequence[npt.NDArray[np.float32]]) -> list[_Use]:
    if not blocks:
        return []
    taps = keras.Model(network.input, [network.get_layer(f"{block}_depthwise_relu").output for block in blocks])
    rng = np.random.default_rng(0)
    counts = [0] * len(blocks)
    sums: list[Any] = [0.0] * len(blocks)
    products: list[Any] = [0.0] * len(blocks)
    for picture in pictures:
        found = taps.predict_on_batch(picture)
        for index, tensor in enumerate(found if isinstance(found, list) else [found]):
            cells = np.asarray(tensor, np.float64).reshape(-1, tensor.shape[-1])
            cells = cells[rng.permutation(len(cells))[:POSITIONS]]
            counts[index] += len(cells)
            sums[index] = sums[index] + cells.sum(axis=0)
            products[index] = products[index] + cells.T @ cells
    uses = []
    for count, total, product in zip(counts, sums, products, strict=True):
        mean = total / count
        uses.append(_Use(mean, product / count - np.outer(mean, mean), count))
    return uses


def _most_used(project: npt.NDArray[np.float32], use: _Use, width: int) -> npt.NDArray[np.int64]:
    """The channels that stay, in their order."""
    error = np.diag(use.covariance) * np.square(project[0, 0].astype(np.float64)).sum(axis=1)
    return np.sort(np.argsort(-error, kind="stable")[:width])


def _without_others(
    kernel: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], use: _Use, kept: npt.NDArray[np.int64]
) -> list[npt.NDArray[Any]]:
    """The projection that makes nearly the same of the kept channels alone."""
    exact = kernel[0, 0].astype(np.float64)
    gone = np.setdiff1d(np.arange(len(exact)), kept)
    covariance = shrink(use.covariance, use.samples)
    damping = DAMPING * np.diag(covariance).mean() + 1e-9
    among = covariance[np.ix_(kept, kept)] + damping * np.eye(len(kept))
    # How much of each kept channel stands for each one that goes, `[kept, gone]`.
    parts = np.linalg.solve(among, covariance[np.ix_(kept, gone)])
    offset = (use.mean[gone] - use.mean[kept] @ parts) @ exact[gone]
    return [(exact[kept] + parts @ exact[gone])[None, None], bias + offset]
