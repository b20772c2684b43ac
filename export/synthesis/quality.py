"""What synthetic patches are worth, before anything is trained on them: near to real ones, and varied."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from export.efficientnet import INPUT_SCALE, INPUT_ZERO_POINT, build_lite0, load_pretrained, read_weights
from export.synthesis.patches import Floats

Features = npt.NDArray[np.float64]

SEEN_PX = 128
"""Patches are enlarged to this: ImageNet's features were learnt on larger things."""

COLLAPSED_BELOW = 0.3
"""With less than this share of the real ones' diversity all patches are nearly the same."""

_BATCH = 32
_BLOCK = 100
LEAST_FOR_KID = 5
"""With fewer of either kind a kernel distance is chance."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of a set of synthetic patches beside the real ones that it was made from.

    Attributes:
        kid: Kernel Inception Distance (Bińkowski et al., ICLR 2018), here on pooled EfficientNet-Lite0 features: the
            unbiased squared maximum mean discrepancy with the kernel (x·y / d + 1)³; 0: the same distribution. None:
            there are too few patches to say.
        kid_of_real: the same between two random halves of the real patches: what no synthesis can be below of.
        diversity: mean distance of two synthetic patches, as a share of that of two real ones.
    """

    kid: float | None
    kid_of_real: float | None
    diversity: float

    @property
    def collapsed(self) -> bool:
        """Whether all patches are nearly the same."""
        return self.diversity < COLLAPSED_BELOW


class Eye:
    """Turns patches into features of the pretrained network."""

    def __init__(self, channels: int) -> None:
        self._network = build_lite0(SEEN_PX, SEEN_PX, channels)
        load_pretrained(self._network, read_weights())

    def look(self, patches: Floats) -> Features:
        """Pooled features of `[n, 64, 64, channels]` in 0..1: `[n, 112 + 320]`, each half of unit length on average."""
        rows = []
        for start in range(0, len(patches), _BATCH):
            enlarged = [
                cv2.resize(one, (SEEN_PX, SEEN_PX), interpolation=cv2.INTER_LINEAR).reshape(SEEN_PX, SEEN_PX, -1)
                for one in patches[start : start + _BATCH]
            ]
            inputs = (np.stack(enlarged) * 255 - INPUT_ZERO_POINT) * INPUT_SCALE
            taps = self._network.predict_on_batch(inputs.astype(np.float32))
            rows.append(np.concatenate([np.asarray(taps[at], np.float64).mean(axis=(1, 2)) for at in (4, 6)], axis=1))
        return np.concatenate(rows)


def measure(eye: Eye, real: Floats, synthetic: Floats, seed: int = 0) -> Quality:
    """Compare synthetic patches with real ones, both `[n, 64, 64, channels]` in 0..1, two of each at least."""
    seen, made = _to_scale(eye.look(real), eye.look(synthetic))
    order = np.random.default_rng(seed).permutation(len(seen))
    return Quality(
        kid=_kid(seen, made),
        kid_of_real=_kid(seen[order[: len(seen) // 2]], seen[order[len(seen) // 2 :]]),
        diversity=_diversity(seen, made),
    )


def diversity(eye: Eye, real: Floats, synthetic: Floats) -> float:
    """Mean distance of two synthetic patches as a share of that of two real ones."""
    seen, made = _to_scale(eye.look(real), eye.look(synthetic))
    return _diversity(seen, made)


def distances(first: Features, second: Features) -> Features:
    """Euclidean distance of each row to each row."""
    rows = [
        np.linalg.norm(first[start : start + _BLOCK, None] - second[None], axis=2)
        for start in range(0, len(first), _BLOCK)
    ]
    return np.asarray(np.concatenate(rows), np.float64)


def squared_mmd(first: Features, second: Features) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y / d + 1)³ (Gretton et al., JMLR 2012, lemma 6)."""

    def kernel(a: Features, b: Features) -> Features:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    def mean_off_diagonal(values: Features) -> float:
        count = len(values)
        return float((values.sum() - np.trace(values)) / (count * (count - 1)))

    across = float(kernel(first, second).mean())
    return mean_off_diagonal(kernel(first, first)) + mean_off_diagonal(kernel(second, second)) - 2 * across


def _kid(first: Features, second: Features) -> float | None:
    return squared_mmd(first, second) if min(len(first), len(second)) >= LEAST_FOR_KID else None


def _to_scale(seen: Features, made: Features) -> tuple[Features, Features]:
    """Each feature in parts of the real ones' mean."""
    scale = np.abs(seen).mean(axis=0) + 1e-6
    return seen / scale, made / scale


def _diversity(seen: Features, made: Features) -> float:
    return _mean_distance(made) / max(_mean_distance(seen), 1e-9)


def _mean_distance(rows: Features) -> float:
    """Of two different rows."""
    return float(distances(rows, rows)[np.triu_indices(len(rows), 1)].mean())
