"""Covariances that few samples give."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def shrink(covariance: Array, samples: int) -> Array:
    """Believe in likenesses between channels by the number of samples only: few of many channels show false ones.

    Args:
        covariance: `[..., channels, channels]`.
        samples: that it was estimated from.
    """
    count = covariance.shape[-1]
    trust = samples / (samples + count)
    variances = np.einsum("...ii->...i", covariance)
    return np.asarray(trust * covariance + (1 - trust) * variances[..., None] * np.eye(count), np.float64)
