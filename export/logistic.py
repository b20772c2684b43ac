"""Multinomial logistic regression: the best linear classifier on features that stay as they are.

Its loss is convex, so there is one answer, and L-BFGS (Liu & Nocedal, Mathematical Programming 45, 1989) finds it in
some dozens of passes: no rate, no schedule, nothing to tune but how much large weights cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01)
"""That `best_penalty` looks at, from the simplest classifier on."""

PASSES = 150
GRADIENT = 1e-4
"""The largest slope that counts as flat; the loss is in nats."""

TEMPERATURES = tuple(float(value) for value in np.exp(np.linspace(-1.6, 1.6, 33)))

_MEMORY = 8


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """Logits are features @ kernel + bias: `[features, classes]` and `[classes]`."""

    kernel: Floats
    bias: Floats

    def logits(self, features: npt.ArrayLike) -> Floats:
        """`[n, features]` to `[n, classes]`."""
        return np.asarray(np.asarray(features) @ self.kernel + self.bias, np.float64)


def fit(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    weights: Floats,
    classes: int,
    penalty: float,
    start: Linear | None = None,
) -> Linear:
    """Minimize the mean weighted cross-entropy plus half the penalty times the squared kernel.

    Args:
        features: `[n, features]`, about one scale each.
        labels: `[n]`.
        weights: `[n]`, not negative, with a positive sum.
        classes: how many there are; one that no label has gets a bias that rules it out.
        penalty: more than 0.
        start: of another fit, to begin with.
    """
    count, width = features.shape
    share = (weights / weights.sum())[:, None]
    wanted = np.zeros((count, classes))
    wanted[np.arange(count), labels] = 1

    def slope(point: Floats) -> tuple[float, Floats]:
        kernel, bias = point[:-classes].reshape(width, classes), point[-classes:]
        logits = np.asarray(features @ kernel.astype(np.float32), np.float64) + bias
        logits -= logits.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        total = powers.sum(axis=1, keepdims=True)
        loss = float(np.sum(share * wanted * (np.log(total) - logits))) + 0.5 * penalty * float(np.sum(kernel**2))
        error = share * (powers / total - wanted)
        turn = np.asarray(features.T @ error.astype(np.float32), np.float64) + penalty * kernel
        return loss, np.concatenate([turn.ravel(), error.sum(axis=0)])

    first = start or Linear(np.zeros((width, classes)), np.log(np.maximum(share.T @ wanted, 1e-6))[0])
    point = _minimize(slope, np.concatenate([first.kernel.ravel(), first.bias]))
    return Linear(point[:-classes].reshape(width, classes), point[-classes:])


def best_penalty(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    weights: Floats,
    classes: int,
    parts: npt.NDArray[np.int64],
) -> tuple[float, float]:
    """The penalty with the least cross-entropy on parts that were left out in turn, each at its best temperature.

    Args:
        features, labels, weights, classes: as `fit` takes them.
        parts: `[n]`; what is alike has the same one.

    Returns:
        The penalty, and the cross-entropy on what was left out; the first of `PENALTIES` where there is one part only.
    """
    held_out = np.zeros((len(PENALTIES), len(labels), classes))
    for part in np.unique(parts):
        out = parts == part
        if out.all():
            break
        model = None
        for index, penalty in enumerate(PENALTIES):
            model = fit(features[~out], labels[~out], weights[~out], classes, penalty, model)
            held_out[index, out] = model.logits(features[out])
    losses = [calibrated_loss(logits, labels, weights) for logits in held_out]
    best = int(np.argmin(losses))
    return PENALTIES[best], losses[best]


def calibrated_loss(logits: Floats, labels: npt.NDArray[np.int64], weights: npt.NDArray[Any]) -> float:
    """Weighted mean of the cross-entropy at the temperature that suits the logits best.

    How sure a classifier is can be put right afterwards (Guo et al., ICML 2017); what it orders wrongly cannot.
    """
    return min(float(np.average(cross_entropy(logits / one, labels), weights=weights)) for one in TEMPERATURES)


def cross_entropy(logits: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """Of each sample, in nats."""
    scaled = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels], np.float64)


def _minimize(slope: Callable[[Floats], tuple[float, Floats]], point: Floats) -> Floats:
    loss, gradient = slope(point)
    steps: list[tuple[Floats, Floats]] = []
    for _ in range(PASSES):
        if np.abs(gradient).max() < GRADIENT:
            break
        direction = -_scaled(gradient, steps)
        fall = float(direction @ gradient)
        length = 1.0 if steps else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        # Armijo's rule; the loss is convex, so what falls enough leads on.
        while True:
            new = point + length * direction
            new_loss, new_gradient = slope(new)
            if new_loss <= loss + 1e-4 * length * fall or length < 1e-8:  # noqa: PLR2004
                break
            length /= 2
        if new_loss >= loss:
            break
        moved, turned = new - point, new_gradient - gradient
        if float(moved @ turned) > 0:
            steps = [*steps[1 - _MEMORY :], (moved, turned)]
        point, loss, gradient = new, new_loss, new_gradient
    return point


def _scaled(gradient: Floats, steps: Sequence[tuple[Floats, Floats]]) -> Floats:
    """The gradient times the inverse of the curvature that the last steps have shown."""
    result = gradient.copy()
    kept = []
    for moved, turned in reversed(steps):
        share = float(moved @ result) / float(moved @ turned)
        result -= share * turned
        kept.append(share)
    if steps:
        moved, turned = steps[-1]
        result *= float(moved @ turned) / float(turned @ turned)
    for (moved, turned), share in zip(steps, reversed(kept), strict=True):
        result += (share - float(turned @ result) / float(moved @ turned)) * moved
    return result
