"""Defects without a network that learns them: drawn scratches and blobs."""

from collections.abc import Sequence

import cv2
import numpy as np

from export.synthesis.blending import Draw, Drawn
from export.synthesis.patches import PATCH_PX, Floats, Patch


def procedural(patches: Sequence[Patch], channels: int) -> Draw:
    """Scratches and blobs, half of each, as strong as real defects where there are any.

    Nothing of their form is learnt. Without a real defect they are as strong as `FALLBACK_STRENGTHS`.
    """
    strengths = [strength_of(patch) for patch in patches] or list(FALLBACK_STRENGTHS)

    def draw(_: Floats, rng: np.random.Generator) -> Drawn:
        alpha = _scratch(rng) if rng.random() < 0.5 else _blob(rng)  # noqa: PLR2004
        strength = np.float32(rng.choice(strengths) * rng.uniform(0.7, 1.3))
        tone = np.full((PATCH_PX, PATCH_PX, channels), strength, np.float32)
        grain = rng.normal(0, 0.15 * abs(strength), tone.shape).astype(np.float32)
        return Drawn(alpha, tone + np.asarray(cv2.GaussianBlur(grain, (0, 0), 1.0)).reshape(tone.shape))

    return draw


FALLBACK_STRENGTHS = (-0.35, -0.25, -0.15, 0.15, 0.25)
"""In parts of the grey scale; most defects are darker than their surroundings."""


def strength_of(patch: Patch) -> float:
    """By how much a defect is brighter than its ground, on the mean of its mask, in parts of the grey scale."""
    weight = float(patch.mask.sum())
    return float(((patch.pixels - patch.ground) * patch.mask).mean(axis=2).sum() / max(weight, 1e-6))


def turned(field: Floats, way: int) -> Floats:
    """One of the eight flips and quarter turns of a square."""
    result = np.rot90(field, way % 4)
    return np.ascontiguousarray(result[:, ::-1] if way >= 4 else result)  # noqa: PLR2004


def _scratch(rng: np.random.Generator) -> Floats:
    """A thin line that wanders, through the middle of the square."""
    steps = int(rng.integers(6, 20))
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.3, steps))
    length = float(rng.uniform(0.3, 0.85)) * PATCH_PX / steps
    points = np.cumsum(length * np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
    points += PATCH_PX / 2 - points.mean(axis=0)
    line = np.zeros((PATCH_PX, PATCH_PX), np.uint8)
    thickness = int(rng.integers(1, 5))
    fixed = np.round(points * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(line, [fixed], False, 255, thickness, cv2.LINE_AA, shift=4)
    soft = cv2.GaussianBlur(line, (0, 0), float(rng.uniform(0.4, 1.2))).astype(np.float32) / 255
    return np.asarray(np.minimum(soft * 1.4, 1), np.float32)[..., None]


def _blob(rng: np.random.Generator) -> Floats:
    """A smooth random field above a level, within an ellipse: from a round pit to a ragged chip."""
    y, x = (np.mgrid[:PATCH_PX, :PATCH_PX].astype(np.float32) + 0.5) / PATCH_PX - 0.5
    angle = float(rng.uniform(0, np.pi))
    ratio = float(np.exp(rng.uniform(-0.6, 0.6)))
    across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = np.hypot(across / ratio, along * ratio)
    rough = cv2.GaussianBlur(rng.normal(0, 1, distance.shape).astype(np.float32), (0, 0), float(rng.uniform(2, 7)))
    rough /= rough.std() + 1e-6
    level = float(rng.uniform(0.15, 0.3)) - distance + float(rng.uniform(0.01, 0.07)) * rough
    edge = float(rng.uniform(0.01, 0.05))
    return np.asarray(np.clip(level / edge + 0.5, 0, 1), np.float32)[..., None]
