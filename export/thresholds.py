"""Choose a threshold by what it does to whole parts, and say it in counts.

A threshold is only as good as the pictures that it was chosen on: "0 of 40 bad missed" still allows that one in eleven
is missed. So every choice is told with its counts and exact intervals, and what the pictures cannot support is a
warning.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from export.dataset import DatasetError
from export.metrics import Bools, Floats, clopper_pearson, upper_bound

FEW_PICTURES = 20
"""With fewer good or fewer bad pictures than this, one picture changes a rate by more than 5 %."""

_MARGIN = 0.25
"""Room above the highest and below the lowest score, in spans from the median of the scores to that end, in logits."""

_LEAST_MARGIN = 0.1
_EDGE = 1e-9
_LEAST_BANDWIDTH = 0.05
_PLACES_AT_ONCE = 1000
_SAME_COST = 1e-12


@dataclass(frozen=True, slots=True)
class Counts:
    """Whole parts at one threshold.

    Attributes:
        rejected: good parts that were not called ok.
        good: all good parts.
        missed: bad parts that were called ok.
        bad: all bad parts.
    """

    rejected: int
    good: int
    missed: int
    bad: int

    @property
    def false_reject_rate(self) -> float:
        """Share of the good parts that were rejected; 0 without any."""
        return self.rejected / max(self.good, 1)

    @property
    def miss_rate(self) -> float:
        """Share of the bad parts that were missed; 0 without any."""
        return self.missed / max(self.bad, 1)

    @property
    def recall(self) -> float:
        """Share of the bad parts that were caught; 1 without any."""
        return 1.0 - self.miss_rate

    def __str__(self) -> str:
        parts = [f"{self.rejected} of {self.good} good rejected"] if self.good else []
        parts += [f"{self.missed} of {self.bad} bad missed"] if self.bad else []
        return ", ".join(parts) or "no parts"

    def with_intervals(self) -> str:
        """The counts, each with the exact 95 % interval of its rate."""
        parts = []
        for hits, total, text in (
            (self.rejected, self.good, "good rejected"),
            (self.missed, self.bad, "bad missed"),
        ):
            if total:
                interval = clopper_pearson(hits, total)
                parts.append(
                    f"{hits} of {total} {text} (95 % interval {percent(interval.low)} to {percent(interval.high)})"
                )
        return ", ".join(parts) or "no parts"


@dataclass(frozen=True, slots=True)
class Option:
    """A range of thresholds, from `low` (exclusive) to `high` (inclusive), that all give the same counts."""

    low: float
    high: float
    counts: Counts

    @property
    def gap(self) -> float:
        """Width of the range in logits."""
        return logit(self.high) - logit(self.low)

    @property
    def threshold(self) -> float:
        """The middle of the range in logits, with as few digits as still lie well inside."""
        middle = probability((logit(self.low) + logit(self.high)) / 2)
        for digits in range(2, 12):
            rounded = round(middle, digits)
            inner_low, inner_high = (self.low + middle) / 2, (self.high + middle) / 2
            if inner_low < rounded < inner_high:
                return rounded
        return middle


@dataclass(frozen=True, slots=True)
class MaxFalseReject:
    """At most this share of the good parts rejected; under that, as few bad ones missed as possible."""

    rate: float

    def cost(self, counts: Counts) -> tuple[float, ...]:
        """What is made least; a broken limit counts before anything else."""
        broken = counts.false_reject_rate if counts.false_reject_rate > self.rate else 0.0
        return (broken, counts.miss_rate, counts.false_reject_rate)

    def __str__(self) -> str:
        return f"at most {percent(self.rate)} of the good ones rejected"


@dataclass(frozen=True, slots=True)
class MaxMiss:
    """At most this share of the bad parts missed; under that, as few good ones rejected as possible."""

    rate: float

    def cost(self, counts: Counts) -> tuple[float, ...]:
        """What is made least; a broken limit counts before anything else."""
        broken = counts.miss_rate if counts.miss_rate > self.rate else 0.0
        return (broken, counts.false_reject_rate, counts.miss_rate)

    def __str__(self) -> str:
        return f"at most {percent(self.rate)} of the bad ones missed"


@dataclass(frozen=True, slots=True)
class Costs:
    """Least cost.

    Attributes:
        false_reject: what a good part costs that is rejected.
        miss: what a bad part costs that is missed, in the same unit.
        bad_share: share of bad parts on the line; with 0.5 the two rates count by their costs alone.
    """

    false_reject: float = 1.0
    miss: float = 1.0
    bad_share: float = 0.5

    @property
    def weights(self) -> tuple[float, float]:
        """Of the rates of false rejects and of misses; the unit of the costs falls out."""
        # The larger one first: the sum of two large ones may be none.
        largest = max(self.false_reject, self.miss)
        false_reject, miss = self.false_reject / largest, self.miss / largest
        return (1 - self.bad_share) * false_reject / (false_reject + miss), self.bad_share * miss / (
            false_reject + miss
        )

    def cost(self, counts: Counts) -> tuple[float, ...]:
        """The mean cost of a part, as a share of what a false reject and a miss cost together."""
        false_reject, miss = self.weights
        return (false_reject * counts.false_reject_rate + miss * counts.miss_rate,)

    def __str__(self) -> str:
        shares = "" if self.bad_share == 0.5 else f", {percent(self.bad_share)} of the parts bad"  # noqa: PLR2004
        return f"least cost at {self.false_reject:g} a false reject and {self.miss:g} a miss{shares}"


Rule = MaxFalseReject | MaxMiss | Costs


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen threshold.

    Attributes:
        threshold: in (0, 1).
        counts: on the pictures that it was chosen on.
        text: threshold, rule, counts and intervals in plain words.
        warnings: what these pictures do not support; each is one sentence.
    """

    threshold: float
    counts: Counts
    text: str
    warnings: tuple[str, ...]


def count_parts(defective: Bools, rejected: Bools) -> Counts:
    """Count parts by truth and verdict, both bool `[n]`."""
    return Counts(
        rejected=int((rejected & ~defective).sum()),
        good=int((~defective).sum()),
        missed=int((~rejected & defective).sum()),
        bad=int(defective.sum()),
    )


def options(scores: Floats, defective: Bools, floor: float = 0.0) -> list[Option]:
    """Every place for a threshold between two neighbouring scores, and one beyond either end.

    Args:
        scores: of whole parts, in 0..1; a part is rejected when its score is at least the threshold.
        defective: the truth of each part.
        floor: no threshold below this, since lower scores were never kept.
    """
    order = np.argsort(scores, kind="stable")
    ranked = np.clip(scores[order], _EDGE, 1 - _EDGE)
    edges = np.unique(ranked)
    if not len(edges):
        return []
    middle = logit(float(np.median(ranked)))
    below = logit(float(edges[0])) - max(_MARGIN * (middle - logit(float(edges[0]))), _LEAST_MARGIN)
    above = logit(float(edges[-1])) + max(_MARGIN * (logit(float(edges[-1])) - middle), _LEAST_MARGIN)
    places = [probability(below), *map(float, edges), probability(above)]
    # Below the lowest place everything is rejected; each edge that is passed lets its parts go.
    start = np.searchsorted(ranked, edges, side="left")
    bad_below = np.concatenate([[0], np.cumsum(defective[order])])
    bad, good = int(defective.sum()), int((~defective).sum())
    passed = [*map(int, start), len(ranked)]
    result = []
    for low, high, gone in zip(places[:-1], places[1:], passed, strict=True):
        if high <= max(low, floor):
            continue
        missed = int(bad_below[gone])
        result.append(Option(max(low, floor), high, Counts(good - (gone - missed), good, missed, bad)))
    return result


def options_on_grid(logits: Sequence[float], counts_at: Callable[[float], Counts]) -> list[Option]:
    """Ranges of thresholds with equal counts, where the counts at a threshold come out of a simulation.

    Args:
        logits: rising.
        counts_at: from a threshold to what happens there.
    """
    result: list[Option] = []
    for value in logits:
        here = probability(value)
        counts = counts_at(here)
        if result and result[-1].counts == counts:
            result[-1] = Option(result[-1].low, here, counts)
        else:
            result.append(Option(here, here, counts))
    return result


def cheapest(candidates: Sequence[Option], rule: Rule) -> Option:
    """The option that the rule likes best; of several, the one with the widest gap: the safest place."""
    least = min(rule.cost(one.counts) for one in candidates)
    best = [
        one
        for one in candidates
        if all(abs(a - b) < _SAME_COST for a, b in zip(rule.cost(one.counts), least, strict=True))
    ]
    return max(best, key=lambda one: one.gap)


def steadiest(
    candidates: Sequence[Option], rule: Costs, scores: Floats, defective: Bools, parts: Sequence[str]
) -> Option:
    """Of the options that may be the cheapest the one with the least smoothed cost.

    Which place is the cheapest on some dozens of parts is chance: a few pictures of one part move it from end to end.
    So each score is spread out by a logistic kernel as wide as the number of parts calls for (Silverman, "Density
    Estimation", 1986, section 3.4.2), in logits, the good ones and the bad ones by themselves, and what counts is the
    cost after that. Only options within one standard error of the least cost are looked at (the rule of Breiman et al.,
    "Classification and Regression Trees", 1984): the error of the rates of the cheapest one, parts counted and not
    pictures. Where nothing is wrong at the cheapest places, these alone are left. On these very pictures another option
    may be cheaper, and even better in both rates; on other parts it is dearer on average.

    Args:
        candidates: of `options`, with the same scores.
        rule: the costs.
        scores, defective: as in `options`, with good and bad ones.
        parts: which part each picture shows.
    """
    kinds = np.asarray(parts)
    good_parts, bad_parts = (len(np.unique(kinds[chosen])) for chosen in (~defective, defective))
    weights = rule.weights
    costs = np.array([rule.cost(one.counts)[0] for one in candidates])
    best = candidates[int(costs.argmin())].counts
    variances = [
        weight**2 * rate * (1 - rate) / count
        for weight, rate, count in zip(
            weights, (best.false_reject_rate, best.miss_rate), (good_parts, bad_parts), strict=True
        )
    ]
    limit = float(costs.min()) + math.sqrt(sum(variances)) + _SAME_COST
    likely = [one for one, cost in zip(candidates, costs, strict=True) if cost <= limit]
    places = np.array([logit(one.threshold) for one in likely])
    values = np.array([logit(score) for score in scores.tolist()])
    rejected = _share_above(places, values[~defective], good_parts)
    missed = 1 - _share_above(places, values[defective], bad_parts)
    smoothed = weights[0] * rejected + weights[1] * missed
    ranked = sorted(zip(smoothed.tolist(), [-one.gap for one in likely], range(len(likely)), strict=True))
    return likely[ranked[0][2]]


def _share_above(places: Floats, values: Floats, parts: int) -> Floats:
    """Share of values above each place, each value spread out by a logistic kernel."""
    low, high = np.quantile(values, [0.25, 0.75])
    spreads = [spread for spread in (float(values.std()), float(high - low) / 1.34) if spread > 0]
    bandwidth = max(0.9 * min(spreads, default=0.0) * parts**-0.2, _LEAST_BANDWIDTH)
    # In steps of a tenth of that, which changes nothing that counts: tens of thousands of scores become some hundreds.
    step = bandwidth / 10
    steps, counts = np.unique(np.rint(values / step), return_counts=True)
    # The logistic distribution whose standard deviation is the bandwidth.
    slope = math.pi / math.sqrt(3) / bandwidth
    shares = [
        np.tanh((steps * step - part[:, None]) * (slope / 2)) @ counts
        for part in np.array_split(places, math.ceil(len(places) / _PLACES_AT_ONCE))
    ]
    return np.asarray(0.5 + 0.5 * np.concatenate(shares) / len(values), np.float64)


def choose(
    scores: Floats, defective: Bools, rule: Rule, floor: float = 0.0, *, parts: Sequence[str] | None = None
) -> Choice:
    """Choose a threshold on held-out parts, good and bad ones, or good ones only.

    With good parts only, the limit is an order statistic of their scores: as low as the one-sided 95 % bound of the
    false-reject rate (Wilks, Annals of Mathematical Statistics 12, 1941) allows, and above all of them where that bound
    cannot be kept with so few.

    Args:
        scores, defective, floor: as in `options`.
        rule: what counts; a set without bad parts needs `MaxFalseReject`.
        parts: the part that each picture shows; with them least cost is sought as `steadiest` does. None: the place
            that is the cheapest for these pictures.

    Raises:
        DatasetError: there are no good parts, the rule speaks of misses and there are no bad ones, all scores are at an
            end of the range, or one is not a number.
    """
    if np.isnan(scores).any():
        raise DatasetError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not a number")
    candidates = options(scores, defective, floor)
    good, bad = int((~defective).sum()), int(defective.sum())
    if not good:
        raise DatasetError("a threshold needs good pictures: there are none in this split")
    if not candidates:
        raise DatasetError("all scores are 0 or 1: there is no place for a threshold between them")
    if not bad:
        if not isinstance(rule, MaxFalseReject):
            raise DatasetError(
                "there are no bad pictures in this split, so misses cannot be counted: "
                "choose by the largest share of good ones that may be rejected"
            )
        return _good_only(candidates, rule, good)
    exact = cheapest(candidates, rule)
    chosen, how = exact, ""
    if isinstance(rule, Costs) and parts is not None:
        chosen = steadiest(candidates, rule, scores, defective, parts)
        how = " on smoothed scores"
        if rule.cost(chosen.counts)[0] > rule.cost(exact.counts)[0] + _SAME_COST:
            how += f" (on these alone, {exact.threshold:g} is the cheapest: {exact.counts})"
    text = f"at {chosen.threshold:g}: {chosen.counts.with_intervals()}; chosen for {rule}{how}"
    return Choice(chosen.threshold, chosen.counts, text, tuple(_warnings(chosen.counts, rule)))


def good_needed(rate: float) -> int:
    """How many good parts, none of them rejected, show with 95 % confidence that at most this share is."""
    return math.ceil(math.log(0.05) / math.log1p(-rate)) if 0 < rate < 1 else 1


def overlap_warning(shared: int | None, of: int) -> Iterator[str]:
    """What to say when some of the pictures were trained on, or when nobody can tell (None)."""
    if shared is None:
        yield "the bundle does not say which pictures it was trained on: make sure that these are others"
    elif shared:
        yield (
            f"{shared} of {of} pictures were trained on: a model knows those better than new ones, so the figures are "
            "too good; use pictures that training never saw"
        )


def percent(share: float) -> str:
    """A share as a percentage with two meaningful digits."""
    value = 100 * share
    if value == 0 or value >= 99.95:  # noqa: PLR2004
        return f"{value:.0f} %"
    digits = 1 if value >= 1 else min(4, 1 - math.floor(math.log10(value)))
    return f"{value:.{digits}f} %"


def logit(share: float) -> float:
    """Log-odds, of a share kept away from 0 and 1."""
    inside = min(max(share, _EDGE), 1 - _EDGE)
    return math.log(inside / (1 - inside))


def probability(log_odds: float) -> float:
    """Inverse of `logit`, kept away from 0 and 1."""
    return min(max(1 / (1 + math.exp(-log_odds)), _EDGE), 1 - _EDGE)


def _good_only(candidates: Sequence[Option], rule: MaxFalseReject, good: int) -> Choice:
    # The higher the threshold, the fewer are rejected: the first option that keeps the bound is the lowest one.
    first = bisect_left(candidates, -rule.rate, key=lambda one: -upper_bound(one.counts.rejected, good))
    kept = first < len(candidates)
    chosen = candidates[first] if kept else candidates[-1]
    counts = chosen.counts
    bound = upper_bound(counts.rejected, good)
    text = (
        f"at {chosen.threshold:g}: {counts}; with 95 % confidence fewer than {percent(bound)} of good parts are "
        "rejected; chosen on good pictures only, so nothing is known of misses"
    )
    warnings = []
    if not kept:
        warnings.append(
            f"{good} good pictures cannot show that at most {percent(rule.rate)} of good parts are rejected: the limit "
            f"stands above all of them, which only shows fewer than {percent(bound)}; "
            f"{good_needed(rule.rate)} good pictures are needed"
        )
    return Choice(chosen.threshold, counts, text, tuple(warnings))


def _warnings(counts: Counts, rule: Rule) -> Iterator[str]:
    for total, name in ((counts.good, "good"), (counts.bad, "bad")):
        if total < FEW_PICTURES:
            yield f"only {total} {name} pictures: one of them changes the rate by {percent(1 / total)}"
    if isinstance(rule, MaxFalseReject):
        yield from _unsupported(rule.rate, counts.rejected, counts.good, "good", "rejected")
    elif isinstance(rule, MaxMiss):
        yield from _unsupported(rule.rate, counts.missed, counts.bad, "bad", "missed")


def _unsupported(rate: float, hits: int, total: int, name: str, verb: str) -> Iterator[str]:
    if hits / total > rate:
        yield f"no threshold keeps the limit: {hits} of {total} {name} ones are {verb}, allowed are {percent(rate)}"
    elif (bound := upper_bound(hits, total)) > rate:
        yield (
            f"{hits} of {total} {name} ones {verb} does not show that at most {percent(rate)} are: with 95 % "
            f"confidence it is fewer than {percent(bound)}; at least {good_needed(rate)} {name} pictures are needed"
        )
