from datetime import UTC, datetime, timedelta

import pytest

from station.display import verdict_line
from station.ids import uuid7
from station.messages import Box, Defect, Latency, Outcome, Reason, Verdict
from station.tally import Tally, percentiles

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)


def verdict(
    sequence: int, outcome: Outcome, reasons: tuple[Reason, ...] = (), defects: tuple[Defect, ...] = ()
) -> Verdict:
    return Verdict(
        id=uuid7(1000 + sequence),
        station="s",
        camera="c",
        epoch=1,
        sequence=sequence,
        outcome=outcome,
        reasons=reasons,
        defects=defects,
        captured_at=AT,
        latency_ms=Latency(queue=0, quality=0, preprocess=0, inference=0, judge=0, total=0),
    )


def test_unknown_counts_as_caught_on_a_defective_frame_and_as_a_false_reject_on_a_good_one() -> None:
    defective = {1, 2, 3}
    tally = Tally(lambda one: one.sequence in defective)
    outcomes = [Outcome.NG, Outcome.UNKNOWN, *[Outcome.OK] * 4, Outcome.NG, Outcome.UNKNOWN]
    for sequence, outcome in enumerate(outcomes, start=1):
        tally.add(verdict(sequence, outcome), AT.timestamp())
    confusion = tally.confusion
    assert (confusion.caught, confusion.missed, confusion.passed, confusion.rejected) == (2, 1, 3, 2)
    assert confusion.recall == pytest.approx(2 / 3)
    assert confusion.false_reject_rate == pytest.approx(2 / 5)


def test_a_frame_whose_truth_nobody_knows_counts_in_its_outcome_only() -> None:
    tally = Tally(lambda _: None)
    assert tally.add(verdict(1, Outcome.UNKNOWN, (Reason.CAMERA_FAULT,)), AT.timestamp())
    assert (tally.received, tally.count(Outcome.UNKNOWN)) == (1, 1)
    assert tally.confusion.recall is None
    assert tally.confusion.false_reject_rate is None


def test_a_verdict_that_arrives_twice_is_counted_once() -> None:
    tally = Tally()
    one = verdict(1, Outcome.OK)
    assert tally.add(one, AT.timestamp())
    assert not tally.add(one, AT.timestamp())
    assert (tally.received, tally.duplicates) == (1, 1)
    assert tally.confusion.recall is None


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles([]) is None
    found = percentiles([float(value) for value in range(1, 201)])
    assert found is not None
    assert (found.p50, found.p99) == (100.0, 198.0)


def test_a_line_says_the_outcome_in_words_and_in_colour() -> None:
    box = Box(x_px=10, y_px=20, width_px=10, height_px=10)
    found = tuple(Defect(label="open", score=score, box=box) for score in (0.9, 0.8, 0.7, 0.6))
    shown = verdict(7, Outcome.NG, (Reason.DEFECT, Reason.PARTIAL), found)
    plain = verdict_line(shown, 12.34, colour=False, historical=True)
    assert plain.split()[0] == "NG"
    assert "open 0.90 at 15,25 px" in plain
    assert "and 1 more, partial  [historical]" in plain
    assert "\x1b" not in plain
    assert "\x1b[" in verdict_line(shown, 12.34, colour=True)


def test_ids_sort_by_time_and_carry_version_and_variant() -> None:
    ids = [uuid7(int((AT + timedelta(milliseconds=step)).timestamp() * 1e3)) for step in range(50)]
    assert ids == sorted(ids)
    assert {one.version for one in ids} == {7}
    assert {one.variant for one in ids} == {"specified in RFC 4122"}
    with pytest.raises(ValueError, match="between 0 and"):
        uuid7(-1)
