"""What each task's network puts out, and how that becomes scores: one readout a task, shared by station and export."""

from collections.abc import Sequence
from typing import Protocol

from station.anomaly import Bank, decode_anomaly, read_bank
from station.classification import decode_classes
from station.detections import Grid, Placement, decode, heatmap_image
from station.errors import BundleError
from station.manifest import Bundle, Manifest, Tensor
from station.messages import Scores

OUTPUT_NAMES = {"detect": ("heatmap", "box"), "classify": ("logits", "map"), "anomaly": ("features", "map")}
"""Task → names of the outputs, in the manifest's order."""


class Readout(Protocol):
    """Turns one task's outputs into scores."""

    def read(self, outputs: Sequence[Grid], placement: Placement, *, heatmap: bool) -> Scores:
        """Score a picture from the network's outputs, in the manifest's order.

        Raises:
            InferenceError: the outputs do not fit the manifest, or are not finite.
        """


class DetectReadout:
    """A heatmap and a grid of boxes become defects."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def read(self, outputs: Sequence[Grid], placement: Placement, *, heatmap: bool) -> Scores:
        """See `Readout`."""
        stride_px = self._manifest.preprocessing.stride_px
        candidates, score = decode(
            outputs[0],
            outputs[1],
            labels=self._manifest.labels,
            decoding=self._manifest.decoding,
            stride_px=stride_px,
            placement=placement,
        )
        return Scores(candidates, score, heatmap_image(outputs[0], stride_px, placement) if heatmap else None)


class ClassifyReadout:
    """Logits and an activation map become class probabilities and a place."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def read(self, outputs: Sequence[Grid], placement: Placement, *, heatmap: bool) -> Scores:
        """See `Readout`."""
        manifest = self._manifest
        return decode_classes(
            outputs[0],
            outputs[1],
            labels=manifest.labels,
            good_label=manifest.good_label,
            decoding=manifest.classification,
            stride_px=manifest.preprocessing.stride_px,
            placement=placement,
            heatmap=heatmap,
        )


class AnomalyReadout:
    """Features of patches become distances to good ones, and add to what the map says."""

    def __init__(self, manifest: Manifest, bank: Bank) -> None:
        self._manifest = manifest
        self._bank = bank

    def read(self, outputs: Sequence[Grid], placement: Placement, *, heatmap: bool) -> Scores:
        """See `Readout`."""
        return decode_anomaly(
            outputs[0],
            outputs[1],
            self._bank,
            decoding=self._manifest.anomaly,
            stride_px=self._manifest.preprocessing.stride_px,
            placement=placement,
            heatmap=heatmap,
        )


def readout_of(bundle: Bundle) -> Readout:
    """The readout of a bundle's task, once the manifest's outputs have been checked.

    Raises:
        BundleError: the outputs are not the task's, or the bank is missing or wrong.
    """
    manifest = bundle.manifest
    names = OUTPUT_NAMES[manifest.task]
    if len(manifest.outputs) != len(names):
        raise BundleError(
            f"the manifest must name the {len(names)} output{'s' * (len(names) > 1)} {' and '.join(names)} "
            f"for the task {manifest.task}"
        )
    _, height, width, _ = manifest.inputs[0].shape
    stride_px = manifest.preprocessing.stride_px
    cells = height // stride_px, width // stride_px
    if manifest.task == "detect":
        _check_shape(manifest.outputs[0], (1, *cells, len(manifest.labels)))
        _check_shape(manifest.outputs[1], (1, *cells, 4))
        return DetectReadout(manifest)
    if manifest.task == "classify":
        _check_shape(manifest.outputs[0], (1, len(manifest.labels)))
        _check_shape(manifest.outputs[1], (1, *cells, len(manifest.labels) - (manifest.good_label is not None)))
        return ClassifyReadout(manifest)
    depth = manifest.outputs[0].shape[-1]
    _check_shape(manifest.outputs[0], (1, *cells, depth))
    _check_shape(manifest.outputs[1], (1, *cells, 1))
    scale, zero_point = manifest.outputs[0].scale, manifest.outputs[0].zero_point
    if (manifest.anomaly.feature_scale, manifest.anomaly.feature_zero_point) != (scale, zero_point):
        raise BundleError(
            f"the bank is quantized with {manifest.anomaly.feature_scale:g} and {manifest.anomaly.feature_zero_point}, "
            f"the features with {scale:g} and {zero_point}"
        )
    content = bundle.extra.get(manifest.anomaly.bank)
    if content is None:
        raise BundleError(f"member {manifest.anomaly.bank} with the good patches is missing")
    return AnomalyReadout(manifest, read_bank(content, depth))


def _check_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype != "int8" or tensor.shape != shape:
        raise BundleError(
            f"the output {tensor.name} must be int8 {list(shape)}, not {tensor.dtype} {list(tensor.shape)}"
        )
