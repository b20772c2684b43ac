"""The dense detector: a fully convolutional network from a picture to a grid of class logits and box distances.

The layout follows what is quick on one CPU core in int8 and also quick to train on two: ordinary 3×3 convolutions with
at least 32 channels (depthwise ones train slowly), one wide strided convolution as the stem, residual blocks (He et
al., CVPR 2016) on an eighth and on a sixteenth of the resolution, and the coarse branch brought back by a
depth-to-space rearrangement, which unlike a resize has no size baked into the graph. Boxes are distances to the four
sides as in FCOS (Tian et al., ICCV 2019).
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from station.detections import Grid, decode
from station.manifest import Decoding, Preprocessing
from station.messages import Pixels, Scores
from station.preprocess import input_size, write_input

STRIDE_PX = 8
"""Edge of a cell of the output grid."""

MULTIPLE_PX = 16
"""Height and width of the input must be multiples of this, since the coarse branch works at a sixteenth."""

PRIOR_LOGIT = -4.6
"""Initial heatmap bias: 0.01, so that the many empty cells do not drown the start (Lin et al., ICCV 2017, §4.1)."""


@dataclass(frozen=True, slots=True)
class DetectorWidths:
    """Channels and residual blocks of the detector; the defaults take about 7 ms for 640×640 in int8 on one core.

    Attributes:
        stem: channels at a quarter of the resolution.
        fine: channels at an eighth.
        coarse: channels at a sixteenth.
        fine_blocks: residual blocks at an eighth, before the coarse branch.
        coarse_blocks: residual blocks at a sixteenth.
        head_convolutions: 3×3 convolutions at an eighth after the branches meet; one fewer pays for the second stem of
            a detector that compares.
    """

    stem: int = 32
    fine: int = 64
    coarse: int = 96
    fine_blocks: int = 1
    coarse_blocks: int = 3
    head_convolutions: int = 2


def build_detector(
    height_px: int | None,
    width_px: int | None,
    channels: int,
    labels: int,
    widths: DetectorWidths,
    *,
    reference: bool = False,
    precision: str = "float32",
) -> keras.Model:
    """Build the network with fresh weights.

    A detector that compares sees the same place without defects beside the picture: both go through the same stem (as
    in Bromley et al., NeurIPS 1993), and everything behind it sees the two side by side. Joining them before the stem
    would cost 3 ms of the runtime's time for 640×640, since it copies single bytes.

    Args:
        height_px, width_px: input size, multiples of `MULTIPLE_PX`; None leaves it open.
        channels: 1 grey, 3 BGR.
        labels: number of classes.
        widths: size of the network.
        reference: whether there is a second input of the same shape, the reference picture.
        precision: Keras dtype policy of the body, for example `mixed_bfloat16`; the two outputs are always float32.

    Returns:
        A model from `[batch, height, width, channels]` in 0..1, or from a list of two such (picture, reference), to
        `heatmap` logits `[batch, height/8, width/8, labels]` and `box` `[batch, height/8, width/8, 4]`: left, top,
        right, bottom from the cell's centre in cells, never negative.
    """
    policy = keras.DTypePolicy(precision)

    def convolve(x: Any, filters: int, kernel: int = 3, strides: int = 1, *, relu: bool = True) -> Any:
        x = layers.Conv2D(
            filters,
            kernel,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            dtype=policy,
        )(x)
        x = layers.BatchNormalization(dtype=policy)(x)
        return layers.ReLU(dtype=policy)(x) if relu else x

    def residual(x: Any, filters: int) -> Any:
        branch = convolve(convolve(x, filters), filters, relu=False)
        return layers.ReLU(dtype=policy)(layers.Add(dtype=policy)([x, branch]))

    names = ("picture", "reference") if reference else ("picture",)
    pictures = [keras.Input((height_px, width_px, channels), name=name) for name in names]
    stem = layers.Conv2D(
        widths.stem, 6, strides=4, padding="same", use_bias=False, kernel_initializer="he_normal", dtype=policy
    )
    normalize, rectify = layers.BatchNormalization(dtype=policy), layers.ReLU(dtype=policy)
    stems = [rectify(normalize(stem(source))) for source in pictures]
    x = convolve(layers.Concatenate(dtype=policy)(stems) if reference else stems[0], widths.stem)
    x = convolve(x, widths.fine, strides=2)
    for _ in range(widths.fine_blocks):
        x = residual(x, widths.fine)
    fine = x
    x = convolve(x, widths.coarse, strides=2)
    for _ in range(widths.coarse_blocks):
        x = residual(x, widths.coarse)
    x = convolve(x, widths.fine * 4, kernel=1, relu=False)
    x = ops.depth_to_space(x, 2)
    x = layers.ReLU(dtype=policy)(layers.Add(dtype=policy)([fine, x]))
    for _ in range(widths.head_convolutions):
        x = convolve(x, widths.fine)
    heatmap = layers.Conv2D(
        labels, 1, bias_initializer=keras.initializers.Constant(PRIOR_LOGIT), dtype="float32", name="heatmap"
    )(x)
    box = layers.Conv2D(
        4, 1, activation="relu", bias_initializer=keras.initializers.Constant(2.0), dtype="float32", name="box"
    )(x)
    return keras.Model(pictures if reference else pictures[0], [heatmap, box], name="detector")


def heatmap_loss(target: Any, logits: Any) -> Any:
    """Quality focal loss (Li et al., NeurIPS 2020, eq. 3, β = 2) over soft targets, per unit of target mass.

    Args:
        target: `[batch, rows, columns, labels]` in 0..1; −1 marks cells that do not count.
        logits: same shape.
    """
    counts = ops.cast(target >= 0, "float32")
    target = ops.maximum(target, 0.0)
    error = ops.abs(ops.sigmoid(logits) - target)
    cross_entropy = ops.maximum(logits, 0.0) - logits * target + ops.softplus(-ops.abs(logits))
    focal = ops.sum(counts * error * error * cross_entropy) / ops.maximum(ops.sum(counts * target), 1.0)
    # Logits far out say nothing more, but widen the int8 range that the 256 levels must share.
    excess = ops.maximum(ops.abs(logits) - 8.0, 0.0)
    return focal + 0.01 * ops.mean(excess * excess)


def box_loss(target: Any, distances: Any) -> Any:
    """Generalized IoU loss (Rezatofighi et al., CVPR 2019) plus a small scaled L1 term, weighted per cell.

    Args:
        target: `[batch, rows, columns, 5]`: left, top, right, bottom in cells, and the cell's weight.
        distances: `[batch, rows, columns, 4]`.
    """
    weight = target[..., 4]
    wanted = target[..., :4]
    wanted_area = (wanted[..., 0] + wanted[..., 2]) * (wanted[..., 1] + wanted[..., 3])
    area = (distances[..., 0] + distances[..., 2]) * (distances[..., 1] + distances[..., 3])
    inner = ops.minimum(wanted, distances)
    outer = ops.maximum(wanted, distances)
    overlap = (inner[..., 0] + inner[..., 2]) * (inner[..., 1] + inner[..., 3])
    hull = (outer[..., 0] + outer[..., 2]) * (outer[..., 1] + outer[..., 3])
    union = wanted_area + area - overlap
    giou = overlap / (union + 1e-6) - (hull - union) / (hull + 1e-6)
    # Where a distance is clipped at zero the IoU has no slope left; the L1 term keeps one.
    span = ops.sqrt(wanted_area + 1e-6)
    absolute = ops.mean(ops.abs(wanted - distances), axis=-1) / span
    return ops.sum(weight * (1.0 - giou + absolute)) / ops.maximum(ops.sum(weight), 1.0)


class FloatDetector:
    """The float network before quantization, with the same preprocessing and decoding as the deployed model."""

    def __init__(
        self, network: keras.Model, labels: tuple[str, ...], preprocessing: Preprocessing, decoding: Decoding
    ) -> None:
        self._network = network
        self._labels = labels
        self._preprocessing = preprocessing
        self._decoding = decoding

    def infer(self, pixels: Pixels, reference: Pixels | None = None) -> Scores:
        """Score one picture, beside its reference where the network compares."""
        preprocessing = self._preprocessing
        height, width = input_size(pixels, preprocessing, (pixels.shape[0], pixels.shape[1]))
        tensors = []
        for source in (pixels, reference):
            if source is not None:
                tensor = np.empty((height, width, preprocessing.channels), np.uint8)
                placement = write_input(source, tensor, preprocessing)
                tensors.append(tensor[None].astype(np.float32) / np.float32(255))
        heatmap, box = self._network.predict_on_batch(tensors if len(tensors) > 1 else tensors[0])
        candidates, score = decode(
            Grid(np.asarray(heatmap[0], np.float32)),
            Grid(np.asarray(box[0], np.float32)),
            labels=self._labels,
            decoding=self._decoding,
            stride_px=preprocessing.stride_px,
            placement=placement,
        )
        return Scores(candidates, score)
