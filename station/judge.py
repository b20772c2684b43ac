"""Scores, thresholds and quality become an outcome. No clock, no state, no input or output."""

from collections.abc import Sequence
from dataclasses import dataclass

from station.manifest import Thresholds
from station.messages import Defect, Outcome, Reason, Scores, Verdict

INCOMPLETE = frozenset({Reason.PARTIAL})
"""Reasons under which a picture is still looked at: a defect in the part that was seen is a defect, and only the
absence of one proves nothing. Lost lines are not among them: the stripe that they leave looks like a cut."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of one frame with what it rests on.

    Attributes:
        defects: those at or above their threshold, best first.
        score: the score that decided: the one that stands highest over its threshold; None when nothing was judged.
        threshold: the threshold it was compared with.
        allowed: defects at or above their threshold that a rule of the product lets pass.
    """

    outcome: Outcome
    reasons: tuple[Reason, ...]
    defects: tuple[Defect, ...] = ()
    score: float | None = None
    threshold: float | None = None
    allowed: tuple[Defect, ...] = ()


def unjudged(*reasons: Reason) -> Judgement:
    """A frame that could not be judged.

    Raises:
        ValueError: no reason is given; an `unknown` always says why.
    """
    if not reasons:
        raise ValueError("an unknown outcome needs a reason")
    return Judgement(Outcome.UNKNOWN, tuple(reasons))


def above_threshold(scores: Scores, thresholds: Thresholds) -> tuple[Defect, ...]:
    """The candidates that reach the threshold of their class, best first."""
    return tuple(defect for defect in scores.candidates if defect.score >= thresholds.of(defect.label))


def stricter(thresholds: Thresholds, limit: float) -> Thresholds:
    """The same thresholds, none of them above the limit."""
    return thresholds.model_copy(
        update={
            "default": min(thresholds.default, limit),
            "per_class": {label: min(one, limit) for label, one in thresholds.per_class.items()},
        }
    )


def lacking_part_id(verdict: Verdict) -> Verdict:
    """The verdict on a part that has no id of its own where one is required: what would be ok is unknown."""
    outcome = Outcome.UNKNOWN if verdict.outcome is Outcome.OK else verdict.outcome
    return verdict.model_copy(update={"outcome": outcome, "reasons": (*verdict.reasons, Reason.PART_ID)})


def judge(scores: Scores, defects: Sequence[Defect], thresholds: Thresholds, quality: Sequence[Reason]) -> Judgement:
    """Judge a picture that the model has scored.

    Args:
        scores: the model's answer for the whole picture.
        defects: out of `above_threshold`, those that this frame has to report: a line-scan frame leaves the ones on its
            seams to the neighbour that owns them.
        thresholds: the score from which a defect of each class counts.
        quality: what is wrong with the picture, out of `INCOMPLETE`; anything else should not have been scored.

    Returns:
        `ng` if there is a defect, else `unknown` if the picture is incomplete or the bundle's thresholds leave a band
        in which it is not sure, else `ok`.
    """
    considered = defects or [one for one in scores.candidates if one.score < thresholds.of(one.label)]
    if considered:
        deciding = max(considered, key=lambda one: one.score - thresholds.of(one.label))
        score, threshold = deciding.score, thresholds.of(deciding.label)
    else:
        # With candidates, all of them are a neighbouring frame's, and so is the picture's best score.
        score, threshold = 0.0 if scores.candidates else scores.score, thresholds.default
    if defects:
        return Judgement(Outcome.NG, (Reason.DEFECT, *quality), tuple(defects), score, threshold)
    if quality:
        return Judgement(Outcome.UNKNOWN, tuple(quality), (), score, threshold)
    unsure_from = thresholds.unsure_from
    if unsure_from is not None and any(one.score >= unsure_from for one in considered):
        return Judgement(Outcome.UNKNOWN, (Reason.UNSURE,), (), score, threshold)
    return Judgement(Outcome.OK, (), (), score, threshold)
