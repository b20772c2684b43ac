"""The model bundle's contract: one zip file with `manifest.json`, `model.tflite` and `golden/`.

A bundle is checked before a byte of the model is given to the runtime: sizes, member names, the sha256 of each member
against the manifest, and that nothing stands in it that the manifest does not name. Writing bundles is the export's
business; reading them is the same code there and here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from station.bundle_file import GOLDEN, MANIFEST, MODEL, Part, check_members, open_members, parse_json, read_file
from station.messages import Box, ModelRef, Outcome
from station.trust import ANYONE, Trust

Task = Literal["detect", "classify", "anomaly"]


class Tensor(Part):
    """One input or output of the graph: real value = scale × (stored − zero_point)."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["uint8", "int8", "int16", "float32"]
    scale: float
    zero_point: int


class Preprocessing(Part):
    """How a picture becomes the input tensor.

    Attributes:
        channels: 1 for grey, 3 for BGR.
        geometry: `native`: the network is fully convolutional and takes the frame at its own size, padded at the
            right and at the bottom to a multiple of `multiple_px`; `fitted`: the same, but each side is stretched to
            the nearest multiple instead (below three multiples, to the next larger one), so that no edge is drawn where
            the frame ends; `resize`: the frame is scaled
            to the input's size.
        scale: with `native` and `fitted`, the frame is enlarged or shrunk by this first; 1 leaves it as it is.
        stride_px: edge of a grid cell.
        multiple_px: what the input's height and width must be multiples of; itself a multiple of `stride_px`.
        pad_value: grey value of the padding, 0..255.
    """

    channels: Literal[1, 3] = 1
    geometry: Literal["native", "fitted", "resize"] = "native"
    scale: float = Field(default=1.0, gt=0, le=8)
    stride_px: int = Field(default=8, ge=1)
    multiple_px: int = Field(default=16, ge=1)
    pad_value: int = Field(default=0, ge=0, le=255)


class Decoding(Part):
    """How the detector's grid becomes defects.

    Attributes:
        box_unit_px: pixels per unit of the box output.
        score_floor: candidates below are dropped.
        nms_iou: of two boxes of any class that overlap more than this, the lower score is dropped.
        max_candidates: the best this many cells are looked at.
    """

    box_unit_px: float = Field(default=8.0, gt=0)
    score_floor: float = Field(default=0.05, ge=0, le=1)
    nms_iou: float = Field(default=0.4, gt=0, le=1)
    max_candidates: int = Field(default=300, ge=1)


class ClassDecoding(Part):
    """How a classifier's logits become probabilities.

    Attributes:
        temperature: logits are divided by it before the softmax; chosen on held-out pictures, so that a probability of
            0.9 is right nine times in ten.
        score_floor: below it there is no candidate.
    """

    temperature: float = Field(default=1.0, gt=0)
    score_floor: float = Field(default=0.0, ge=0, le=1)


class SizeScale(Part):
    """What the size of a picture does to its strongest anomaly: the largest of more values is larger.

    Attributes:
        growth: logits by which that of a good picture is larger where it has e times as many cells.
        usual_cells: cells of a picture whose scores stay as they are.
        least_cells, most_cells: of the pictures that this was found on; smaller and larger ones are taken as these.
    """

    growth: float = Field(ge=0)
    usual_cells: float = Field(gt=0)
    least_cells: float = Field(gt=0)
    most_cells: float = Field(gt=0)

    def lift(self, cells: int) -> float:
        """Logits that a picture of so many cells scores too high."""
        return self.growth * math.log(min(max(cells, self.least_cells), self.most_cells) / self.usual_cells)


class AnomalyDecoding(Part):
    """How a patch's features and map become an anomaly score.

    The distance is computed in float outside of the graph; the score of a patch is
    sigmoid((distance − offset) / width + (map − map_offset) / map_width − lift), where `lift` is that of `sizes`.

    Attributes:
        distance: `nearest`: Euclidean, to the nearest of the stored patches of good parts.
        bank: member that holds them, a table of int8 in NumPy's format.
        feature_scale, feature_zero_point: quantization of the bank, the same as of the output `features`.
        smooth_cells: standard deviation of the Gaussian that smooths the map of distances; 0 for none.
        offset, width: in units of one quantization step of the features.
        map_offset, map_width: in units of the map's logits.
        sizes: brings pictures of several sizes to one scale; None: all are judged alike.
        score_floor: peaks below are no candidates.
    """

    distance: Literal["nearest"] = "nearest"
    bank: str = "bank.npy"
    feature_scale: float = Field(default=1.0, gt=0)
    feature_zero_point: int = 0
    smooth_cells: float = Field(default=0.0, ge=0, le=16)
    offset: float = 0.0
    width: float = Field(default=1.0, gt=0)
    map_offset: float = 0.0
    map_width: float = Field(default=1.0, gt=0)
    sizes: SizeScale | None = None
    score_floor: float = Field(default=0.05, ge=0, le=1)


class Thresholds(Part):
    """Scores from which a defect makes a frame ng, and the counts that they were chosen on.

    Attributes:
        default: for every class without its own.
        per_class: class name → threshold.
        unsure_from: a frame whose best candidate scores at least this, yet less than its threshold, is `unknown`
            (`unsure`) instead of `ok`; None: there is no such band.
        chosen_on: plain words and counts, for example "3 of 1200 good frames rejected, 0 of 130 bad missed".
    """

    default: float = Field(gt=0, lt=1)
    per_class: Mapping[str, float] = Field(default_factory=dict)
    unsure_from: float | None = Field(default=None, ge=0, lt=1)
    chosen_on: str = ""

    def of(self, label: str) -> float:
        """The threshold of one class."""
        return self.per_class.get(label, self.default)


class QualityLimits(Part):
    """When a picture can be judged at all; taken from the training pictures with a margin.

    Attributes:
        mean_min, mean_max: bounds of the mean grey value, 0..255.
        contrast_min: least standard deviation of the grey values.
        focus_min: least variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) over the picture.
    """

    mean_min: float = 0.0
    mean_max: float = 255.0
    contrast_min: float = 0.0
    focus_min: float = 0.0


class GoldenCase(Part):
    """One stored input with what it must give.

    Attributes:
        file: member name of the lossless picture.
        reference: member name of the picture that it is compared with, for a bundle that takes one.
        outcome: `ok` or `ng` at the bundle's thresholds.
        score: the picture's score.
        tolerance: by how much the score may differ on another processor: one quantization step of the logits,
            expressed in probability.
        boxes: the defects at or above the threshold.
    """

    file: str
    reference: str | None = None
    outcome: Outcome
    score: float
    tolerance: float = Field(gt=0)
    labels: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()


class Manifest(Part):
    """`manifest.json`.

    Attributes:
        inputs: the picture; after it the reference for a model that compares each picture with the same place without
            defects, aligned pixel for pixel.
        labels: class names; for the task `anomaly` the one label of its candidates.
        good_label: with the task `classify`, the class of pictures without a defect; None when every class is a kind
            of defect: such a bundle never says `ok`.
        decoding, classification, anomaly: how the outputs of the tasks `detect`, `classify` and `anomaly` are read.
        members: sha256 (hexadecimal) of every other member of the zip.
        metrics: figures by name for the float and the int8 model, on data that was held out.
        dataset: fingerprint (sha256 over the sorted file hashes) and counts of what it was trained on.
        calibration: file names (or ids) of the representative set used for quantization; with the task `anomaly` every
            second one with drawn defects.
        versions: of the tools that made it.
        configuration: the resolved knobs of the training.
    """

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    version: str = Field(min_length=1, max_length=64)
    task: Task
    created_at: datetime
    labels: tuple[str, ...] = Field(min_length=1)
    good_label: str | None = None
    inputs: tuple[Tensor, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    decoding: Decoding = Field(default_factory=Decoding)
    classification: ClassDecoding = Field(default_factory=ClassDecoding)
    anomaly: AnomalyDecoding = Field(default_factory=AnomalyDecoding)
    thresholds: Thresholds
    quality: QualityLimits
    golden: tuple[GoldenCase, ...] = Field(min_length=1)
    metrics: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)
    dataset: Mapping[str, Any] = Field(default_factory=dict)
    calibration: tuple[str, ...] = ()
    versions: Mapping[str, str] = Field(default_factory=dict)
    configuration: Mapping[str, Any] = Field(default_factory=dict)
    members: Mapping[str, str]

    @model_validator(mode="after")
    def _check_good_label(self) -> Self:
        if self.good_label is not None and (
            self.task != "classify" or self.good_label not in self.labels or len(self.labels) < 2  # noqa: PLR2004
        ):
            raise ValueError(f"good_label {self.good_label!r} must be one of at least two labels of the task classify")
        return self

    @property
    def compares(self) -> bool:
        """Whether each picture needs a reference beside it."""
        return len(self.inputs) > 1


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose bytes were checked.

    Attributes:
        manifest: the contract.
        model: bytes of the `.tflite` file.
        golden: file name → encoded picture.
        sha256: of the whole file, hexadecimal.
        origin: where it was read from, for messages.
        extra: any other member that the manifest names.
        signed_by: id of a trusted key that signed it; None: nobody did, or no key is known to check with.
    """

    manifest: Manifest
    model: bytes
    golden: Mapping[str, bytes]
    sha256: str
    origin: str
    extra: Mapping[str, bytes] = field(default_factory=dict)
    signed_by: str | None = None

    @property
    def ref(self) -> ModelRef:
        """What a verdict says of its model."""
        return ModelRef(name=self.manifest.name, version=self.manifest.version, sha256=self.sha256)


def read_bundle(path: Path, trust: Trust = ANYONE) -> Bundle:
    """Read and check a bundle file.

    Raises:
        BundleError: the file is missing, cut short, altered, too large, not trusted, or its manifest does not hold.
    """
    return open_bundle(read_file(path), str(path), trust)


def open_bundle(data: bytes, origin: str, trust: Trust = ANYONE) -> Bundle:
    """Check the bytes of a bundle file.

    Raises:
        BundleError: as for `read_bundle`.
    """
    contents = open_members(data, origin, trust)
    members = contents.members
    manifest = parse_manifest(members.pop(MANIFEST, None), origin)
    pictures = {name for case in manifest.golden for name in (case.file, case.reference) if name is not None}
    check_members(manifest.members, {MODEL} | pictures, members, origin)
    golden = {name: content for name, content in members.items() if name.startswith(GOLDEN)}
    extra = {name: content for name, content in members.items() if name != MODEL and name not in golden}
    return Bundle(manifest, members[MODEL], golden, contents.sha256, origin, extra, contents.signed_by)


def parse_manifest(text: bytes | None, origin: str) -> Manifest:
    """Check a manifest's text.

    Raises:
        BundleError: it is missing, not JSON, or a field is wrong; the text names the first such field.
    """
    return parse_json(Manifest, text, origin)
