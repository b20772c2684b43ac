"""Which pictures a bundle was trained on, so that a threshold or a figure is not taken from the same ones unnoticed."""

from collections.abc import Sequence
from typing import Any

from export.dataset import Dataset, Sample, fingerprint
from station.manifest import Manifest

FINGERPRINT = "fingerprint_sha256"
DIGESTS = "train_sha256_starts"
DIGEST_DIGITS = 12
"""48 bits: of ten thousand pictures against ten thousand others, one pair agrees by chance once in 2.8 million sets."""

MOST_DIGESTS = 10_000
"""Of a larger set the smallest digests stand for all: a random sample, the same wherever it is drawn."""


def training_record(dataset: Dataset) -> dict[str, Any]:
    """What the manifest says of the pictures that were trained on."""
    # Synthetic pictures never judge a model; those made for one training have no facts in the data set, and names of
    # their own in each.
    trained = [sample for sample in dataset.splits["train"] if sample.synthetic is None]
    digests = sorted(_digest(dataset, sample) for sample in trained)
    return {
        FINGERPRINT: fingerprint([*trained, *dataset.splits["validation"]]),
        DIGESTS: digests[:MOST_DIGESTS],
    }


def count_trained_on(manifest: Manifest, dataset: Dataset, samples: Sequence[Sample]) -> int | None:
    """How many of some pictures of a data set the bundle was trained on; None where the bundle does not say.

    Pictures are compared by the bytes of their files, whatever their names. Of a very large training set only a sample
    is known, and the count is an estimate from it.
    """
    known = manifest.dataset.get(DIGESTS)
    if known:
        digests = [_digest(dataset, sample) for sample in samples]
        seen = set(known)
        if len(known) < MOST_DIGESTS:
            return sum(digest in seen for digest in digests)
        last = max(known)
        comparable = [digest for digest in digests if digest <= last]
        shared = sum(digest in seen for digest in comparable)
        return round(shared / max(len(comparable), 1) * len(digests))
    trained = [*dataset.splits["train"], *dataset.splits["validation"]]
    if trained and manifest.dataset.get(FINGERPRINT) == fingerprint(trained):
        names = {sample.name for sample in dataset.splits["train"]}
        return sum(sample.name in names for sample in samples)
    return None


def _digest(dataset: Dataset, sample: Sample) -> str:
    return dataset.facts[sample.name].sha256[:DIGEST_DIGITS]
