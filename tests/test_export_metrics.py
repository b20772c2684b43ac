"""Figures over truth and score, against brute force and against values worked out by hand."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.metrics import (
    accuracy,
    auroc,
    average_precision,
    beta_cdf,
    class_figures,
    clopper_pearson,
    confusion_matrix,
    group_bootstrap,
    macro_f1,
    precision_recall_curve,
    roc_curve,
    upper_bound,
)

# Few different scores, so that most rankings have ties.
RANKING = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=25)


def arrays(ranking: list[tuple[bool, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([hit for hit, _ in ranking], np.bool_), np.array([score / 6 for _, score in ranking], np.float64)


@settings(max_examples=60)
@given(RANKING)
def test_auroc_is_the_share_of_pairs_in_the_right_order(ranking: list[tuple[bool, int]]) -> None:
    good = [score for hit, score in ranking if not hit]
    bad = [score for hit, score in ranking if hit]
    value = auroc(*arrays(ranking))
    if not good or not bad:
        assert value is None
        return
    pairs = [1.0 if b > g else 0.5 if b == g else 0.0 for b, g in product(bad, good)]
    assert value == pytest.approx(sum(pairs) / len(pairs))


@settings(max_examples=60)
@given(RANKING, st.integers(0, 4))
def test_average_precision_counts_every_threshold(ranking: list[tuple[bool, int]], never_found: int) -> None:
    truths = sum(hit for hit, _ in ranking) + never_found
    value = average_precision(*arrays(ranking), truths)
    if not truths:
        assert value is None
        return
    expected = 0.0
    for threshold in range(7):
        above = [hit for hit, score in ranking if score >= threshold]
        new = sum(hit for hit, score in ranking if score == threshold)
        if above:
            expected += new / truths * (sum(above) / len(above))
    assert value == pytest.approx(expected)


@settings(max_examples=60)
@given(RANKING, st.randoms())
def test_the_order_of_the_pictures_changes_nothing(ranking: list[tuple[bool, int]], random: object) -> None:
    mixed = list(ranking)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert auroc(*arrays(ranking)) == auroc(*arrays(mixed))
    assert average_precision(*arrays(ranking)) == average_precision(*arrays(mixed))


@settings(max_examples=60)
@given(RANKING)
def test_each_point_of_a_curve_is_a_count_at_its_threshold(ranking: list[tuple[bool, int]]) -> None:
    positive, scores = arrays(ranking)
    roc, pr = roc_curve(positive, scores), precision_recall_curve(positive, scores)
    if roc is not None:
        for x, y, threshold in zip(roc.x, roc.y, roc.thresholds, strict=True):
            called = scores >= threshold
            assert x == pytest.approx((called & ~positive).sum() / (~positive).sum())
            assert y == pytest.approx((called & positive).sum() / positive.sum())
        assert (roc.x[-1], roc.y[-1]) == (1, 1)
    if pr is not None:
        for x, y, threshold in list(zip(pr.x, pr.y, pr.thresholds, strict=True))[1:]:
            called = scores >= threshold
            assert x == pytest.approx((called & positive).sum() / positive.sum())
            assert y == pytest.approx((called & positive).sum() / called.sum())


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_a_confusion_matrix_and_its_shares_by_brute_force(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    matrix = confusion_matrix(truth, predicted, 4)
    for row, column in product(range(4), repeat=2):
        assert matrix[row, column] == pairs.count((row, column))
    assert accuracy(matrix) == pytest.approx(sum(t == p for t, p in pairs) / max(len(pairs), 1))
    occurring = []
    for index, figures in enumerate(class_figures(matrix, "abcd")):
        right = pairs.count((index, index))
        called, labelled = sum(p == index for _, p in pairs), sum(t == index for t, _ in pairs)
        assert figures.precision == pytest.approx(right / called if called else 0)
        assert figures.recall == pytest.approx(right / labelled if labelled else 0)
        if called or labelled:
            occurring.append(2 * right / (called + labelled))
    assert macro_f1(matrix) == pytest.approx(np.mean(occurring) if occurring else 0)


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.001, 0.999))
def test_the_beta_distribution_is_the_tail_of_a_binomial(a: int, b: int, x: float) -> None:
    n = a + b - 1
    tail = sum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))
    assert beta_cdf(x, a, b) == pytest.approx(tail, abs=1e-10)


def test_intervals_in_closed_form() -> None:
    for hits, total, low, high in [(0, 40, 0, 1 - 0.025 ** (1 / 40)), (5, 5, 0.025 ** (1 / 5), 1)]:
        interval = clopper_pearson(hits, total)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)
    assert clopper_pearson(0, 0).high == 1
    for n in (1, 20, 299, 5000):
        assert upper_bound(0, n) == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-9)
    assert upper_bound(7, 7) == 1
    large = clopper_pearson(50_000, 100_000)
    assert (large.low, large.high) == pytest.approx((0.4969, 0.5031), abs=1e-4)


@settings(max_examples=60)
@given(st.integers(0, 30), st.integers(1, 300))
def test_an_interval_holds_its_share_and_its_ends_are_exact(hits: int, total: int) -> None:
    hits = min(hits, total)
    interval = clopper_pearson(hits, total)
    assert interval.low <= hits / total <= interval.high

    def at_most(p: float) -> float:
        return sum(math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in range(hits + 1))

    if hits < total:
        assert at_most(interval.high) == pytest.approx(0.025, abs=1e-9)
        assert at_most(upper_bound(hits, total)) == pytest.approx(0.05, abs=1e-9)


def test_the_bootstrap_draws_whole_groups() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(400) % 2 == 0
    scores = rng.normal(size=400) + positive
    single = group_bootstrap(auroc, positive, scores, [str(n) for n in range(400)], draws=300)
    value = auroc(positive, scores)
    assert single is not None
    assert value is not None
    assert single.low < value < single.high
    # The same pictures six times over say nothing new; only with the groups does the interval stay as wide.
    again = np.repeat(np.arange(400), 6)
    grouped = group_bootstrap(auroc, positive[again], scores[again], [str(n) for n in again], draws=300)
    apart = group_bootstrap(auroc, positive[again], scores[again], [str(n) for n in range(2400)], draws=300)
    assert grouped is not None
    assert apart is not None
    assert grouped.high - grouped.low == pytest.approx(single.high - single.low, rel=0.2)
    assert apart.high - apart.low < 0.6 * (single.high - single.low)
    assert group_bootstrap(auroc, positive, scores, ["one"] * 400) is None
    assert group_bootstrap(auroc, np.ones(4, np.bool_), np.arange(4.0), list("abcd")) is None
