"""Thresholds in counts: what each place for a threshold does, which one a rule takes, and what a set cannot support."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.dataset import DatasetError
from export.metrics import upper_bound
from export.thresholds import (
    Costs,
    Counts,
    MaxFalseReject,
    MaxMiss,
    Rule,
    choose,
    count_parts,
    good_needed,
    options,
    overlap_warning,
    percent,
)

PARTS = st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=30)
RULES: st.SearchStrategy[Rule] = st.one_of(
    st.builds(MaxFalseReject, st.sampled_from([0.0, 0.1, 0.5])),
    st.builds(MaxMiss, st.sampled_from([0.0, 0.1, 0.5])),
    st.builds(Costs, st.sampled_from([1.0, 3.0]), st.sampled_from([1.0, 20.0]), st.sampled_from([0.5, 0.01])),
)


def arrays(parts: list[tuple[bool, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score / 10 for _, score in parts], np.float64), np.array([bad for bad, _ in parts], np.bool_)


@settings(max_examples=60)
@given(PARTS)
def test_each_option_gives_the_counts_it_promises(parts: list[tuple[bool, int]]) -> None:
    scores, defective = arrays(parts)
    found = options(scores, defective)
    assert len(found) == len(set(scores)) + 1
    for option in found:
        assert option.low < option.threshold < option.high
        assert count_parts(defective, scores >= option.threshold) == option.counts
    assert found[0].counts.missed == 0
    assert found[-1].counts.rejected == 0


@settings(max_examples=60)
@given(PARTS, RULES)
def test_no_threshold_is_cheaper_than_the_chosen_one(parts: list[tuple[bool, int]], rule: Rule) -> None:
    scores, defective = arrays(parts)
    if defective.all() or not defective.any():
        return
    choice = choose(scores, defective, rule)
    assert count_parts(defective, scores >= choice.threshold) == choice.counts
    for threshold in np.arange(0.05, 1.05, 0.1):
        found, other = rule.cost(choice.counts), rule.cost(count_parts(defective, scores >= threshold))
        assert found[0] <= other[0] + 1e-12 if isinstance(rule, Costs) else found <= other
    if isinstance(rule, MaxFalseReject):
        assert choice.counts.false_reject_rate <= rule.rate
    if isinstance(rule, MaxMiss):
        assert choice.counts.miss_rate <= rule.rate


@settings(max_examples=60)
@given(PARTS, st.sampled_from([1.0, 20.0]), st.integers(1, 6))
def test_a_steady_choice_is_hardly_dearer_than_the_cheapest(
    parts: list[tuple[bool, int]], miss: float, of_a_kind: int
) -> None:
    scores, defective = arrays(parts)
    if defective.all() or not defective.any():
        return
    rule = Costs(1.0, miss)
    names = [f"{bad}{number // of_a_kind}" for number, bad in enumerate(defective.tolist())]
    steady = choose(scores, defective, rule, parts=names)
    assert count_parts(defective, scores >= steady.threshold) == steady.counts
    exact = choose(scores, defective, rule).counts
    pairs = (1.0, exact.false_reject_rate, ~defective), (miss, exact.miss_rate, defective)
    variance = sum(
        (cost / (1 + miss) / 2) ** 2 * rate * (1 - rate) / len({names[index] for index in np.flatnonzero(chosen)})
        for cost, rate, chosen in pairs
    )
    assert rule.cost(steady.counts)[0] <= rule.cost(exact)[0] + variance**0.5 + 1e-9
    if rule.cost(exact) == (0.0,):
        assert steady.counts == exact


def test_a_steady_choice_makes_no_mistake_where_none_is_needed() -> None:
    # What is smoothed alone would reject all good ones, for the one bad part near them.
    scores = np.array([*np.linspace(0.05, 0.3, 30), 0.33, 0.99, 0.999])
    defective = np.arange(33) >= 30
    names = [str(index) for index in range(33)]
    assert choose(scores, defective, Costs(1, 20), parts=names).counts == Counts(0, 30, 0, 3)


@pytest.mark.parametrize("unit", [1e-13, 1.0, 1e308])
def test_the_unit_of_the_costs_does_not_matter(unit: float) -> None:
    rng = np.random.default_rng(6)
    defective = np.arange(80) >= 60
    scores = 1 / (1 + np.exp(-rng.normal(0, 1, 80) - 1.5 * defective))
    for parts in (None, [str(index) for index in range(80)]):
        assert (
            choose(scores, defective, Costs(unit, unit), parts=parts).threshold
            == choose(scores, defective, Costs(), parts=parts).threshold
        )


def test_what_costs_as_much_is_not_called_cheaper() -> None:
    scores = np.array([0.4, 0.7, 0.4, 0.2, 0.5, 0.3])
    defective = np.arange(6) >= 2
    choice = choose(scores, defective, Costs(), parts=list("aabbbb"))
    assert Costs().cost(choice.counts) == Costs().cost(choose(scores, defective, Costs()).counts)
    assert choice.text.endswith("on smoothed scores")


def test_a_score_that_is_no_number_chooses_nothing() -> None:
    with pytest.raises(DatasetError, match="1 of 3 scores are not a number"):
        choose(np.array([0.1, np.nan, 0.9]), np.array([False, False, True]), Costs())


def test_a_steady_choice_counts_parts() -> None:
    rng = np.random.default_rng(2)
    defective = np.arange(400) >= 300
    scores = 1 / (1 + np.exp(-rng.normal(0, 1, 400) - 1.5 * defective))
    each = choose(scores, defective, Costs(), parts=[str(index) for index in range(400)])
    few = choose(scores, defective, Costs(), parts=[f"{bad}{index % 4}" for index, bad in enumerate(defective)])
    assert each.threshold != few.threshold
    exact = choose(scores, defective, Costs())
    assert each.text.endswith(
        f"on smoothed scores (on these alone, {exact.threshold:g} is the cheapest: {exact.counts})"
    )


def test_a_steady_choice_takes_tens_of_thousands() -> None:
    rng = np.random.default_rng(3)
    defective = np.arange(50_000) >= 40_000
    scores = 1 / (1 + np.exp(-rng.normal(0, 1, 50_000) - 3 * defective))
    found = choose(scores, defective, Costs(), parts=[f"{index % 40}" for index in range(50_000)])
    # Where the two distributions cross.
    assert abs(np.log(1 / (1 / found.threshold - 1)) - 1.5) < 0.1


def test_a_steady_choice_costs_less_on_other_parts() -> None:
    rng = np.random.default_rng(8)
    exact: list[float] = []
    steady: list[float] = []
    for _ in range(200):
        defective = np.arange(60) >= 45
        logits = rng.normal(0, 1, 60) + 1.5 * defective
        scores = 1 / (1 + np.exp(-logits))
        names = [str(index) for index in range(60)]
        for costs, parts in ((exact, None), (steady, names)):
            found = np.log(1 / (1 / choose(scores, defective, Costs(), parts=parts).threshold - 1))
            # Of all parts that there could be, with the distributions that these were drawn from.
            false_rejects, misses = 0.5 * math.erfc(found / 2**0.5), 0.5 * math.erfc((1.5 - found) / 2**0.5)
            costs.append((false_rejects + misses) / 2)
    least = 0.5 * math.erfc(0.75 / 2**0.5)
    assert np.mean(steady) - least < 0.7 * (np.mean(exact) - least)


def test_a_choice_is_told_in_counts() -> None:
    rng = np.random.default_rng(4)
    good = np.sort(rng.uniform(0.01, 0.3, 200))
    good[-3:] = 0.6
    scores = np.concatenate([good, np.full(40, 0.8)])
    defective = np.arange(240) >= 200
    choice = choose(scores, defective, MaxMiss(0.0))
    assert choice.counts == Counts(0, 200, 0, 40)
    assert 0.6 < choice.threshold < 0.8
    assert choice.text == (
        "at 0.71: 0 of 200 good rejected (95 % interval 0 % to 1.8 %), 0 of 40 bad missed "
        "(95 % interval 0 % to 8.8 %); chosen for at most 0 % of the bad ones missed"
    )
    assert choice.warnings[0].startswith("0 of 40 bad ones missed does not show that at most 0 % are")


def test_a_tight_limit_gives_way_to_misses() -> None:
    scores = np.array([0.1] * 95 + [0.7] * 5 + [0.5] * 10 + [0.9] * 30)
    defective = np.arange(140) >= 100
    strict = choose(scores, defective, MaxFalseReject(0.02))
    assert strict.counts == Counts(0, 100, 10, 40)
    loose = choose(scores, defective, MaxFalseReject(0.05))
    assert loose.counts == Counts(5, 100, 0, 40)
    assert choose(scores, defective, Costs(1, 100)).counts == loose.counts
    assert choose(scores, defective, Costs(100, 1)).counts == strict.counts
    assert choose(scores, defective, Costs(1, 100, bad_share=0.0001)).counts == strict.counts


def test_the_floor_bounds_the_choice() -> None:
    scores, defective = np.array([0.01, 0.02, 0.9]), np.array([True, False, True])
    choice = choose(scores, defective, MaxMiss(0.0), floor=0.05)
    assert choice.threshold > 0.05
    assert any(text.startswith("no threshold keeps the limit: 1 of 2 bad ones are missed") for text in choice.warnings)


@settings(max_examples=60)
@given(st.integers(1, 400), st.sampled_from([0.01, 0.05, 0.2]))
def test_good_parts_alone_give_a_limit_with_a_bound_that_holds(count: int, rate: float) -> None:
    scores = (np.arange(count) + 1) / (count + 2)
    choice = choose(scores, np.zeros(count, np.bool_), MaxFalseReject(rate))
    assert choice.counts.rejected == (scores >= choice.threshold).sum()
    bound = upper_bound(choice.counts.rejected, count)
    if count >= good_needed(rate):
        assert bound <= rate
        assert not choice.warnings
        # One more part rejected, and the bound would not hold.
        assert upper_bound(choice.counts.rejected + 1, count) > rate
    else:
        assert choice.counts.rejected == 0
        assert f"{good_needed(rate)} good pictures are needed" in choice.warnings[0]


def test_the_bound_of_good_parts_alone_in_words() -> None:
    choice = choose(np.linspace(0.1, 0.4, 50), np.zeros(50, np.bool_), MaxFalseReject(0.01))
    assert 0.4 < choice.threshold < 0.6
    assert "0 of 50 good rejected; with 95 % confidence fewer than 5.8 % of good parts are rejected" in choice.text
    (warning,) = choice.warnings
    assert warning == (
        "50 good pictures cannot show that at most 1.0 % of good parts are rejected: the limit stands above all of "
        "them, which only shows fewer than 5.8 %; 299 good pictures are needed"
    )


@pytest.mark.parametrize(
    ("defective", "rule", "text"),
    [
        ([False, False], MaxMiss(0.1), "there are no bad pictures"),
        ([False, False], Costs(), "there are no bad pictures"),
        ([True, True], Costs(), "needs good pictures"),
    ],
)
def test_what_cannot_be_chosen_is_refused(defective: list[bool], rule: Rule, text: str) -> None:
    with pytest.raises(DatasetError, match=text):
        choose(np.array([0.2, 0.4]), np.array(defective), rule)


def test_overlap_with_the_training_is_told() -> None:
    assert list(overlap_warning(0, 9)) == []
    assert "3 of 9 pictures were trained on" in next(overlap_warning(3, 9))
    assert "does not say" in next(overlap_warning(None, 9))


def test_shares_are_written_with_the_digits_that_matter() -> None:
    shares = (0, 0.00012, 0.0031, 0.0125, 0.0881, 0.5, 1)
    assert [percent(share) for share in shares] == [
        "0 %", "0.012 %", "0.31 %", "1.2 %", "8.8 %", "50.0 %", "100 %",
    ]  # fmt: skip
