"""Which training pictures the ranges of a quantized model come from: a stratified draw."""

from collections.abc import Sequence

import numpy as np

from export.samples import Sample

CALIBRATION_PICTURES = 96


def calibration_set(samples: Sequence[Sample], labels: int, count: int, seed: int) -> list[Sample]:
    """Draw pictures so that every class and every group has its turn.

    The classes are served in turn (and pictures without defects as one more class); each takes a picture from the group
    that has given the fewest so far. A calibration on the first files of one folder ruins the ranges of the rest.
    Synthetic pictures are passed over: ranges come from what the camera sees. (On every second one the task `anomaly`,
    which has no defects to show, draws some.)

    Returns:
        At most `count` different samples, in the order drawn.
    """
    samples = [sample for sample in samples if sample.synthetic is None]
    order = np.random.default_rng((seed, 1)).permutation(len(samples))
    queues: list[list[int]] = [[] for _ in range(labels + 1)]
    for index in order:
        classes = set(samples[index].classes.tolist()) | {samples[index].label} - {None}
        for label in classes or {labels}:
            queues[label].append(int(index))
    drawn: list[int] = []
    given: dict[str, int] = {}
    while len(drawn) < min(count, len(samples)):
        before = len(drawn)
        for queue in queues:
            left = [index for index in queue if index not in drawn]
            if not left or len(drawn) == count:
                continue
            chosen = min(left, key=lambda index: given.get(samples[index].group, 0))
            drawn.append(chosen)
            given[samples[chosen].group] = given.get(samples[chosen].group, 0) + 1
        if len(drawn) == before:
            break
    return [samples[index] for index in drawn]
