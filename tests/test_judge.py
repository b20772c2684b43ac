from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.adapters.system_clock import SystemClock
from station.judge import INCOMPLETE, above_threshold, judge, stricter, unjudged
from station.manifest import QualityLimits, Thresholds, read_bundle
from station.messages import Box, Capture, Defect, Frame, ModelRef, Outcome, Pixels, Reason, Scores
from station.pipeline import MOST_DEFECTS, Inspector, LoadedModel, Setup
from station.settings import SHIPPED_BUNDLE, FolderCamera, ModelSettings
from station.wire import encode

THRESHOLDS = Thresholds(default=0.5, per_class={"short": 0.9})


def defect(label: str, score: float) -> Defect:
    return Defect(label=label, score=score, box=Box(x_px=1, y_px=2, width_px=3, height_px=4))


def scores(*candidates: Defect) -> Scores:
    return Scores(candidates, max((one.score for one in candidates), default=0.02))


defects = st.builds(defect, st.sampled_from(["open", "short"]), st.floats(0, 1))


def test_a_clean_picture_is_ok_with_its_own_score() -> None:
    judgement = judge(scores(), (), THRESHOLDS, ())
    assert (judgement.outcome, judgement.reasons, judgement.score, judgement.threshold) == (Outcome.OK, (), 0.02, 0.5)


def test_each_class_has_its_threshold() -> None:
    found = scores(defect("short", 0.8), defect("open", 0.6))
    counted = above_threshold(found, THRESHOLDS)
    judgement = judge(found, counted, THRESHOLDS, ())
    assert [one.label for one in counted] == ["open"]
    assert (judgement.outcome, judgement.score, judgement.threshold) == (Outcome.NG, 0.6, 0.5)


def test_a_defect_in_an_incomplete_picture_is_a_defect() -> None:
    found = scores(defect("open", 0.9))
    judgement = judge(found, found.candidates, THRESHOLDS, (Reason.PARTIAL,))
    assert judgement.outcome is Outcome.NG
    assert judgement.reasons == (Reason.DEFECT, Reason.PARTIAL)


def test_an_incomplete_picture_without_a_defect_proves_nothing() -> None:
    judgement = judge(scores(), (), THRESHOLDS, (Reason.PARTIAL,))
    assert (judgement.outcome, judgement.reasons) == (Outcome.UNKNOWN, (Reason.PARTIAL,))


def test_a_neighbours_defect_does_not_show_in_this_frames_score() -> None:
    found = scores(defect("open", 0.99))
    judgement = judge(found, (), THRESHOLDS, ())
    assert (judgement.outcome, judgement.score) == (Outcome.OK, 0.0)


def test_unknown_always_says_why() -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        unjudged()


@given(st.lists(defects, max_size=5), st.sets(st.sampled_from(sorted(INCOMPLETE))))
def test_ok_means_judged_complete_and_below_every_threshold(found: list[Defect], quality: set[Reason]) -> None:
    given_scores = scores(*found)
    counted = above_threshold(given_scores, THRESHOLDS)
    judgement = judge(given_scores, counted, THRESHOLDS, tuple(quality))
    reached = any(one.score >= THRESHOLDS.of(one.label) for one in found)
    assert (judgement.outcome is Outcome.NG) == reached
    assert (judgement.outcome is Outcome.OK) == (not reached and not quality)
    assert (judgement.outcome is Outcome.OK) == (not judgement.reasons)


def test_in_the_band_below_the_threshold_a_picture_is_unknown() -> None:
    band = Thresholds(default=0.5, unsure_from=0.3)
    for score, outcome in ((0.29, Outcome.OK), (0.3, Outcome.UNKNOWN), (0.49, Outcome.UNKNOWN), (0.5, Outcome.NG)):
        found = scores(defect("open", score))
        judgement = judge(found, above_threshold(found, band), band, ())
        assert judgement.outcome is outcome
        assert judgement.score == score
        assert (judgement.reasons == (Reason.UNSURE,)) == (outcome is Outcome.UNKNOWN)


def test_stricter_thresholds_lower_what_stands_above_the_limit_only() -> None:
    own = Thresholds(default=0.6, per_class={"open": 0.2, "short": 0.8}, chosen_on="counts")
    strict = stricter(own, 0.4)
    assert (strict.default, strict.per_class) == (0.4, {"open": 0.2, "short": 0.4})
    assert stricter(own, 0.9) == own


class Everywhere:
    """A model that sees defects wherever it looks, as a wrong exposure may make it do."""

    ref = ModelRef(name="everywhere", version="1", sha256="0" * 64)

    def infer(self, pixels: Pixels) -> Scores:  # noqa: ARG002 (of the Protocol)
        return scores(*(defect("open", 1 - number / 10_000) for number in range(4000)))


def test_a_verdict_lists_the_best_defects_and_counts_the_others() -> None:
    clock = SystemClock()
    inspector = Inspector("s", "c", 1, FolderCamera(kind="folder", path=Path()), ModelSettings(), clock)
    manifest = read_bundle(SHIPPED_BUNDLE).manifest.model_copy(update={"quality": QualityLimits()})
    inspector.use(Setup(LoadedModel(Everywhere(), manifest)))
    picture = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    verdict = inspector.inspect(Frame("c", 1, Capture(picture, datetime.now(UTC), clock.monotonic_s())))
    assert verdict.outcome is Outcome.NG
    assert [one.score for one in verdict.defects] == [1 - number / 10_000 for number in range(MOST_DEFECTS)]
    assert verdict.unlisted == 4000 - MOST_DEFECTS
    assert len(encode(verdict)) < 64_000
