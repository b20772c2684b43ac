"""Which id belongs to which frame: never a wrong one, never one twice, whatever is lost and however late it comes."""

from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.messages import PartIdState
from station.part_id_join import MOST_FRAMES, Joiner, JoinRule
from station.part_id_messages import FoundId, SeenId

RULE = JoinRule(lead_s=0.0, window_s=0.1, arrival_s=0.0)


@dataclass(frozen=True, slots=True)
class Part:
    """A part that passes: when it is captured, when its id says it was, and what of both is lost on the way."""

    number: int
    captured_s: float
    frame_known_s: float
    id_at_s: float
    id_known_s: float
    has_frame: bool
    has_id: bool


@st.composite
def lines(draw: st.DrawFn, *, far_apart: bool) -> tuple[JoinRule, list[Part]]:
    """A rule, and parts whose jitter is within its window; `far_apart`: as the rule asks for."""
    window_s = draw(st.floats(0.01, 0.5))
    jitter_s = draw(st.floats(0.0, 1.0)) * window_s
    rule = JoinRule(draw(st.floats(-3.0, 3.0)), window_s, draw(st.floats(0.0, 1.0)))
    least_s = window_s + jitter_s if far_apart else 0.0
    parts, at_s, frame_known_s = [], 100.0, 0.0
    for number in range(draw(st.integers(1, 12))):
        at_s += least_s + 1e-6 + draw(st.floats(0.0, 1.0)) * (1.0 if far_apart else window_s)
        # A hair less than the window, so that the sum's rounding cannot make it more.
        id_at_s = at_s - rule.lead_s + draw(st.floats(-1.0, 1.0)) * jitter_s * (1 - 1e-9)
        frame_known_s = max(frame_known_s, at_s + draw(st.floats(0.0, 2.0)))
        id_known_s = id_at_s + draw(st.floats(0.0, 1.0)) * rule.arrival_s * (1 - 1e-9)
        lost = draw(st.sampled_from(["nothing", "nothing", "nothing", "frame", "id"]))
        parts.append(Part(number, at_s, frame_known_s, id_at_s, id_known_s, lost != "frame", lost != "id"))
    return rule, parts


def passed(rule: JoinRule, parts: list[Part], looks: list[float]) -> tuple[list[tuple[int, FoundId]], Joiner]:
    """Let the parts pass in time; look at the `looks` as well."""
    joiner = Joiner(rule)
    joiner.source(running=True, at_s=-inf)
    events = [(part.frame_known_s, 1, part) for part in parts if part.has_frame]
    events += [(part.id_known_s, 0, part) for part in parts if part.has_id]
    events.sort(key=lambda event: (event[0], event[1], event[2].number))
    decided: list[tuple[int, FoundId]] = []
    known: set[int] = set()

    def advance(now_s: float) -> None:
        behind = [part.captured_s for part in parts if part.has_frame and part.number not in known]
        until_s = min([now_s, *behind])
        decided.extend((one.key, one.found) for one in joiner.advance(now_s, until_s))

    for at_s, kind, part in sorted([*events, *((look, 2, parts[0]) for look in looks)], key=lambda event: event[:2]):
        if kind == 1:
            joiner.frame(part.number, part.captured_s)
            known.add(part.number)
        elif kind == 0:
            joiner.seen(SeenId(f"P{part.number}", part.id_at_s))
        advance(at_s)
    advance(1e6)
    return decided, joiner


looks = st.lists(st.floats(95.0, 120.0), max_size=20)


@given(lines(far_apart=True), looks)
def test_parts_that_are_far_enough_apart_get_their_own_id_and_no_other(
    line: tuple[JoinRule, list[Part]], looks: list[float]
) -> None:
    rule, parts = line
    decided, joiner = passed(rule, parts, looks)
    expected = [
        (part.number, FoundId(PartIdState.JOINED, f"P{part.number}") if part.has_id else FoundId(PartIdState.MISSING))
        for part in parts
        if part.has_frame
    ]
    assert decided == expected
    assert joiner.unclaimed == sum(part.has_id and not part.has_frame for part in parts)
    assert joiner.late == 0


@given(lines(far_apart=False), looks)
def test_however_close_the_parts_are_no_id_goes_to_two_frames_and_each_frame_leaves_once_in_order(
    line: tuple[JoinRule, list[Part]], looks: list[float]
) -> None:
    rule, parts = line
    decided, _ = passed(rule, parts, looks)
    assert [key for key, _ in decided] == [part.number for part in parts if part.has_frame]
    used = [found.text for _, found in decided if found.text is not None]
    assert len(used) == len(set(used))
    captured_s = {part.number: part.captured_s for part in parts}
    moments_s = {f"P{part.number}": part.id_at_s + rule.lead_s for part in parts}
    for key, found in decided:
        if found.state is PartIdState.JOINED:
            assert found.text is not None
            near = [
                text for text, at_s in moments_s.items() if abs(at_s - captured_s[key]) < rule.window_s * (1 - 1e-9)
            ]
            known = [part for part in parts if part.has_id and f"P{part.number}" in near]
            assert len(known) <= 1


@given(lines(far_apart=False), looks, looks)
def test_the_answer_does_not_depend_on_when_somebody_looks(
    line: tuple[JoinRule, list[Part]], some: list[float], others: list[float]
) -> None:
    assert passed(*line, some)[0] == passed(*line, others)[0]


def one_frame(*ids: SeenId, at_s: float = 10.0, rule: JoinRule = RULE) -> FoundId:
    joiner = Joiner(rule)
    joiner.source(running=True, at_s=0.0)
    joiner.frame(1, at_s)
    for one in ids:
        joiner.seen(one)
    (decision,) = joiner.advance(100.0, 100.0)
    return decision.found


def test_two_ids_in_one_window_are_not_chosen_from() -> None:
    assert one_frame(SeenId("A", 9.95), SeenId("B", 10.05)).state is PartIdState.AMBIGUOUS


def test_one_id_between_two_frames_goes_to_neither() -> None:
    joiner = Joiner(RULE)
    joiner.source(running=True, at_s=0.0)
    joiner.frame(1, 10.0)
    joiner.frame(2, 10.1)
    joiner.seen(SeenId("A", 10.05))
    assert [one.found.state for one in joiner.advance(100.0, 100.0)] == [PartIdState.AMBIGUOUS] * 2


def test_a_message_that_is_delivered_twice_is_one_id() -> None:
    assert one_frame(SeenId("A", 10.0), SeenId("A", 10.02)) == FoundId(PartIdState.JOINED, "A")


def test_what_holds_no_id_makes_its_frame_unreadable() -> None:
    assert one_frame(SeenId(None, 10.0, "it is empty")).state is PartIdState.UNREADABLE


def test_a_frame_waits_until_nothing_can_come_that_changes_the_answer() -> None:
    joiner = Joiner(JoinRule(lead_s=0.5, window_s=0.1, arrival_s=0.02))
    joiner.source(running=True, at_s=0.0)
    joiner.seen(SeenId("A", 9.55))
    joiner.frame(1, 10.0)
    assert not joiner.advance(10.14, 10.14)
    assert joiner.due_s(0.1) == pytest.approx(10.05 + 0.1 + 0.1)
    assert joiner.advance(10.16, 10.16)[0].found == FoundId(PartIdState.JOINED, "A")


def test_an_id_that_comes_too_late_is_counted_and_goes_to_nobody() -> None:
    joiner = Joiner(RULE)
    joiner.source(running=True, at_s=0.0)
    joiner.frame(1, 10.0)
    assert joiner.advance(10.2, 10.2)[0].found.state is PartIdState.MISSING
    assert not joiner.seen(SeenId("A", 10.05))
    joiner.frame(2, 10.12)
    assert joiner.advance(11.0, 11.0)[0].found.state is PartIdState.AMBIGUOUS
    assert joiner.late == 1


@pytest.mark.parametrize(
    ("down_s", "up_s", "state"),
    [(9.0, 9.5, "missing"), (9.0, 9.95, "source_fault"), (10.05, 20.0, "source_fault"), (10.3, 20.0, "missing")],
)
def test_a_frame_without_an_id_says_whether_the_source_was_away(down_s: float, up_s: float, state: str) -> None:
    joiner = Joiner(RULE)
    joiner.source(running=True, at_s=0.0)
    joiner.source(running=False, at_s=down_s)
    joiner.source(running=True, at_s=up_s)
    joiner.frame(1, 10.0)
    assert joiner.advance(100.0, 100.0)[0].found.state == state


def test_before_the_source_is_there_it_is_away() -> None:
    joiner = Joiner(RULE)
    joiner.frame(1, 10.0)
    assert joiner.advance(100.0, 100.0)[0].found.state is PartIdState.SOURCE_FAULT


def test_a_frame_whose_time_nobody_knows_gets_no_id() -> None:
    joiner = Joiner(RULE)
    joiner.source(running=True, at_s=0.0)
    joiner.seen(SeenId("A", 10.0))
    joiner.frame(1, None)
    assert joiner.advance(10.0, 10.0)[0].found.state is PartIdState.MISSING


def test_more_frames_than_may_wait_are_not_awaited_the_oldest_first() -> None:
    joiner = Joiner(JoinRule(lead_s=-30.0, window_s=0.1, arrival_s=0.0))
    for key in range(MOST_FRAMES + 3):
        joiner.frame(key, 10.0 + key * 1e-3)
    decided = joiner.advance(20.0, 20.0)
    assert [(one.key, one.found.state) for one in decided] == [(key, PartIdState.NOT_AWAITED) for key in range(3)]
    assert len(joiner) == MOST_FRAMES
    assert {one.found.state for one in joiner.flush()} == {PartIdState.NOT_AWAITED}
