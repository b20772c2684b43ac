"""From the features of a picture's patches to how far each is from what was seen on good parts.

The network puts out one feature vector for each patch; the bank holds those of good parts that stand for all others
(Roth et al., CVPR 2022, "PatchCore"). A patch's anomaly is its distance to the nearest of them. With whitened features
and the mean as the only one of the bank that is the Mahalanobis distance (Defard et al., ICPR 2021, "PaDiM"). Both are
int8 in the same quantization, so squared distances are sums of whole numbers: the same on every machine. To this the
network adds an opinion of its own.
"""

import io

import cv2
import numpy as np
import numpy.typing as npt

from station.detections import Grid, Placement, sigmoid
from station.errors import BundleError, InferenceError
from station.manifest import AnomalyDecoding
from station.messages import Defect, Scores
from station.regions import cells_inside, find_regions

ANOMALY_LABEL = "anomaly"
CANDIDATES = 5

_ROWS_AT_ONCE = 4096
_LARGEST_FEATURES = 256
"""Squared distances of so many int8 differences stay below 2²⁴, where float32 still counts in ones."""

Bank = npt.NDArray[np.int8]
FloatMap = npt.NDArray[np.float32]


def read_bank(content: bytes, features: int) -> Bank:
    """Read the stored patches `[patches, features]`.

    Raises:
        BundleError: the bytes are not such an array.
    """
    try:
        bank = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as exc:
        raise BundleError(f"the bank of good patches cannot be read: {exc}") from exc
    if not isinstance(bank, np.ndarray) or bank.dtype != np.int8 or bank.ndim != 2 or not len(bank):  # noqa: PLR2004
        raise BundleError("the bank of good patches is not a table of int8")
    if bank.shape[1] != features or features > _LARGEST_FEATURES:
        raise BundleError(
            f"the bank has {bank.shape[1]} features a patch, the model {features}; at most {_LARGEST_FEATURES} are "
            "allowed"
        )
    return bank


def nearest_distance(
    patches: npt.NDArray[np.int8] | npt.NDArray[np.float32], bank: npt.NDArray[np.int8] | npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Euclidean distance of each patch `[n, features]` to the nearest of the bank `[m, features]`, in their unit."""
    stored = bank.astype(np.float32)
    lengths = np.einsum("md,md->m", stored, stored)
    result = np.empty(len(patches), np.float32)
    for start in range(0, len(patches), _ROWS_AT_ONCE):
        part = patches[start : start + _ROWS_AT_ONCE].astype(np.float32)
        nearest = (lengths - 2 * (part @ stored.T)).min(axis=1) + np.einsum("nd,nd->n", part, part)
        result[start : start + _ROWS_AT_ONCE] = np.sqrt(np.maximum(nearest, 0))
    return result


def opinions(
    features: Grid,
    activation: Grid,
    bank: Bank,
    *,
    decoding: AnomalyDecoding,
    stride_px: int,
    placement: Placement,
) -> tuple[FloatMap, FloatMap]:
    """What is thought of each cell of a picture, both `[rows, columns]`: its distance, and the network's own logit.

    Args:
        features: `[rows, columns, features]`.
        activation: `[rows, columns, 1]`: the network's own opinion of each patch, as a logit.
        bank: of good patches.
        decoding: how distances are measured.
        stride_px: edge of a cell.
        placement: where the picture lies on the input.

    Raises:
        InferenceError: the features do not fit the bank, or are not finite.
    """
    if features.stored.ndim != 3 or activation.stored.shape != (*features.stored.shape[:2], 1):  # noqa: PLR2004
        raise InferenceError(
            f"the network's features {features.stored.shape} and map {activation.stored.shape} do not fit each other"
        )
    rows, columns = cells_inside(features.stored.shape, stride_px, placement)
    inside = Grid(features.stored[:rows, :columns], features.scale, features.zero_point)
    distance = _distance_map(inside, bank, decoding)
    opinion = activation.real(activation.stored[:rows, :columns, 0])
    if not np.isfinite(opinion).all():
        raise InferenceError("the network's map is not finite")
    return distance, opinion


def anomaly_logits(distance: FloatMap, opinion: FloatMap, decoding: AnomalyDecoding) -> FloatMap:
    """The logit of each cell's score from what `opinions` gives; see `AnomalyDecoding`."""
    logits = (distance - decoding.offset) / decoding.width + (opinion - decoding.map_offset) / decoding.map_width
    lift = 0.0 if decoding.sizes is None else decoding.sizes.lift(distance.size)
    return np.asarray(logits - lift, np.float32)


def decode_anomaly(
    features: Grid,
    activation: Grid,
    bank: Bank,
    *,
    decoding: AnomalyDecoding,
    stride_px: int,
    placement: Placement,
    heatmap: bool,
) -> Scores:
    """Score a picture: the largest anomaly anywhere; see `AnomalyDecoding`.

    Args:
        features, activation, bank, stride_px, placement: as in `opinions`.
        decoding: from distance to score.
        heatmap: whether the map of scores is wanted.

    Raises:
        InferenceError: the features do not fit the bank, or are not finite.
    """
    distance, opinion = opinions(
        features, activation, bank, decoding=decoding, stride_px=stride_px, placement=placement
    )
    heat = sigmoid(anomaly_logits(distance, opinion, decoding))
    places = find_regions(heat, floor=decoding.score_floor, limit=CANDIDATES, stride_px=stride_px, placement=placement)
    candidates = tuple(Defect(label=ANOMALY_LABEL, score=place.score, box=place.box) for place in places)
    score = float(heat.max())
    return Scores(candidates, score, heat if heatmap else None, class_scores=(score,))


def _distance_map(features: Grid, bank: Bank, decoding: AnomalyDecoding) -> FloatMap:
    """Distance of each patch, `[rows, columns]`, smoothed as the decoding says.

    Raises:
        InferenceError: the features are not finite, or not as many as the bank's.
    """
    rows, columns, depth = features.stored.shape
    if depth != bank.shape[1]:
        raise InferenceError(f"the network gives {depth} features a patch, the bank has {bank.shape[1]}")
    patches: npt.NDArray[np.int8] | npt.NDArray[np.float32] = features.stored.reshape(-1, depth)
    if features.stored.dtype.kind == "f":
        # The float network before quantization: bring it to the bank's unit, not to its whole numbers.
        patches = np.asarray(patches / decoding.feature_scale + decoding.feature_zero_point, np.float32)
        if not np.isfinite(patches).all():
            raise InferenceError("the network's features are not finite")
    distance = nearest_distance(patches, bank).reshape(rows, columns)
    if decoding.smooth_cells > 0:
        # Replicated edges: cells outside the picture say nothing about the ones inside.
        blurred = cv2.GaussianBlur(distance, (0, 0), sigmaX=decoding.smooth_cells, borderType=cv2.BORDER_REPLICATE)
        distance = np.asarray(blurred, np.float32)
    return distance
