"""What synthetic patches are worth, before anything is trained on them: near to real ones, varied, and not copies."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from export.efficientnet import INPUT_SCALE, INPUT_ZERO_POINT, build_lite0, load_pretrained, read_weights
from export.synthesis.patches import Floats

Features = npt.NDArray[np.float64]

SEEN_PX = 128
"""Patches are enlarged to this: ImageNet's features were learnt on larger things."""

COPY_RATIO = 0.35
"""A synthetic patch that is nearer to a real one than this share of the real ones' median distance to each other's
nearest is a copy. Real patches of one class, seen from the same defect's neighbouring windows, stand at about 0.6."""

COLLAPSED_BELOW = 0.3
"""With less than this share of the real ones' diversity all patches are nearly the same."""

_BATCH = 32
_BLOCK = 100
_LEAST_FOR_KID = 5


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of a set of synthetic patches beside the real ones that it was made from.

    Attributes:
        kid: Kernel Inception Distance (Bińkowski et al., ICLR 2018), here on pooled EfficientNet-Lite0 features: the
            unbiased squared maximum mean discrepancy with the kernel (x·y / d + 1)³; 0: the same distribution.
        kid_of_real: the same between two random halves of the real patches: what no synthesis can be below of.
        diversity: mean distance of two synthetic patches, as a share of that of two real ones.
        nearest_ratio: for each synthetic patch its distance to the nearest real one, over the real ones' median
            distance to their own nearest; median of all.
        copies: share of synthetic patches for which that ratio is below `COPY_RATIO`.
    """

    kid: float
    kid_of_real: float
    diversity: float
    nearest_ratio: float
    copies: float

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
    """Compare synthetic patches with real ones, both `[n, 64, 64, channels]` in 0..1.

    Mirrored and turned copies are copies, too: each real patch is looked at in its eight forms.
    """
    forms = np.concatenate([_all_forms(patch) for patch in real])
    seen_forms, made = eye.look(forms), eye.look(synthetic)
    scale = np.abs(seen_forms).mean(axis=0) + 1e-6
    seen_forms, made = seen_forms / scale, made / scale
    seen = seen_forms[::8]
    rng = np.random.default_rng(seed)
    between = distances(seen, seen)
    np.fill_diagonal(between, np.inf)
    own_nearest = float(np.median(between.min(axis=1)))
    nearest = distances(made, seen_forms).min(axis=1) / max(own_nearest, 1e-9)
    pairs = distances(made, made)[np.triu_indices(len(made), 1)]
    real_pairs = between[np.triu_indices(len(seen), 1)]
    order = rng.permutation(len(seen))
    halves = seen[order[: len(seen) // 2]], seen[order[len(seen) // 2 :]]
    return Quality(
        kid=squared_mmd(seen, made),
        kid_of_real=squared_mmd(*halves) if min(map(len, halves)) >= _LEAST_FOR_KID else float("nan"),
        diversity=float(pairs.mean() / max(real_pairs.mean(), 1e-9)) if len(pairs) else 0.0,
        nearest_ratio=float(np.median(nearest)),
        copies=float((nearest < COPY_RATIO).mean()),
    )


def diversity(eye: Eye, real: Floats, synthetic: Floats) -> float:
    """Mean distance of two synthetic patches as a share of that of two real ones."""
    seen, made = eye.look(real), eye.look(synthetic)
    scale = np.abs(seen).mean(axis=0) + 1e-6
    of_real = distances(seen / scale, seen / scale)[np.triu_indices(len(seen), 1)].mean()
    return float(distances(made / scale, made / scale)[np.triu_indices(len(made), 1)].mean() / max(of_real, 1e-9))


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


def nearest_real(eye: Eye, real: Floats, synthetic: Floats) -> Sequence[int]:
    """Index of the real patch, in any of its eight forms, that each synthetic one is nearest to."""
    seen, made = eye.look(np.concatenate([_all_forms(patch) for patch in real])), eye.look(synthetic)
    scale = np.abs(seen).mean(axis=0) + 1e-6
    return [int(index) // 8 for index in distances(made / scale, seen / scale).argmin(axis=1)]


def _all_forms(patch: Floats) -> Floats:
    turns = [np.rot90(patch, quarter) for quarter in range(4)]
    return np.stack([*turns, *(turn[:, ::-1] for turn in turns)])
