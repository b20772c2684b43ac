"""From a classifier's logits and map to scores: probabilities of the classes, and where the best one stands."""

import numpy as np
import numpy.typing as npt

from station.detections import Grid, Placement, sigmoid
from station.errors import InferenceError
from station.manifest import ClassDecoding
from station.messages import Defect, Scores
from station.regions import cells_inside, find_regions


def probabilities(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    """Softmax of logits over a temperature (Guo et al., ICML 2017, §4.2), `[…, labels]`."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float64)


def decode_classes(
    logits: Grid,
    activation: Grid,
    *,
    labels: tuple[str, ...],
    good_label: str | None,
    decoding: ClassDecoding,
    stride_px: int,
    placement: Placement,
    heatmap: bool,
) -> Scores:
    """Score a picture.

    With a good class the picture's score is the probability that it is not good, and the one candidate is the most
    probable of the other classes, boxed where its activation is strongest. Without one, every class is a kind of
    defect, and the score is the largest probability.

    Args:
        logits: `[labels]`.
        activation: `[rows, columns, defect labels]` logits of each class but the good one, in the order of the labels.
        labels: class names.
        good_label: the class of pictures without a defect; None when there is none.
        decoding: temperature.
        stride_px: edge of a cell of the activation.
        placement: where the picture lies on the input.
        heatmap: whether the best class's activation is wanted.

    Raises:
        InferenceError: the outputs do not fit the labels, or are not finite.
    """
    defects = tuple(label for label in labels if label != good_label)
    if logits.stored.shape != (len(labels),) or activation.stored.shape[2:] != (len(defects),):
        raise InferenceError(
            f"the network's logits {logits.stored.shape} and activation {activation.stored.shape} do not fit "
            f"{len(labels)} labels"
        )
    values = logits.real(logits.stored)
    if not np.isfinite(values).all():
        raise InferenceError("the network's logits are not finite")
    chances = probabilities(values, decoding.temperature)
    by_label = dict(zip(labels, chances.tolist(), strict=True))
    best = max(defects, key=lambda label: by_label[label])
    # The sum of the others keeps small probabilities that 1 − p would round away.
    score = by_label[best] if good_label is None else min(sum(by_label[label] for label in defects), 1.0)
    rows, columns = cells_inside(activation.stored.shape, stride_px, placement)
    heat = sigmoid(activation.real(activation.stored[:rows, :columns, defects.index(best)]))
    candidates: tuple[Defect, ...] = ()
    places = find_regions(heat, floor=0.0, limit=1, stride_px=stride_px, placement=placement)
    if score >= decoding.score_floor and places:
        candidates = (Defect(label=best, score=score, box=places[0].box),)
    return Scores(candidates, score, heat if heatmap else None, class_scores=tuple(by_label.values()))
