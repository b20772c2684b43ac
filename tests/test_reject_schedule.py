"""The schedule of a reject output, and the encoder: pure logic, every part accounted for."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from station.encoder import Encoder
from station.reject_schedule import ClockCourse, Command, Outcomes, Part, RejectSchedule
from station.reject_settings import TcpReject


def table(**keys: Any) -> TcpReject:
    return TcpReject.model_validate(
        {"kind": "modbus_tcp", "host": "plc", "address": 0, "delay_s": 1.0, "pulse_s": 0.1, **keys}
    )


def made(**keys: Any) -> RejectSchedule:
    return RejectSchedule(table(**keys), ClockCourse())


def run(schedule: RejectSchedule, until_s: float, *, answers: bool = True) -> list[tuple[bool, float]]:
    """Do what is due, exactly in time, until then."""
    done = []
    while (due_s := schedule.next_s()) <= until_s:
        command = schedule.step(due_s)
        if command is None:
            continue
        done.append((command.on, round(due_s, 6)))
        if answers:
            schedule.acknowledged(command, due_s, due_s + 0.001)
        else:
            schedule.refused(command, "the device is away")
    return done


def judged(schedule: RejectSchedule, *parts: tuple[float, Outcomes | None]) -> None:
    for number, (captured_s, outcome) in enumerate(parts, 1):
        schedule.expect(("top", number), captured_s)
        if outcome is not None:
            schedule.decide(("top", number), outcome)


def account(schedule: RejectSchedule) -> dict[str, int]:
    names = ("expected", "pending", "spared", "written", "late", "failed", "overdue")
    return {name: getattr(schedule, name) for name in names if getattr(schedule, name)}


def test_ng_and_unknown_are_thrown_out_at_their_moment_for_the_length_of_the_pulse() -> None:
    schedule = made()
    judged(schedule, (0.0, "ok"), (0.5, "ng"), (1.0, "unknown"), (1.5, "skipped"))
    assert run(schedule, 10) == [(True, 1.5), (False, 1.6), (True, 2.0), (False, 2.1)]
    assert account(schedule) == {"expected": 4, "spared": 2, "written": 2}


def test_a_part_without_a_verdict_is_thrown_out_in_time_and_the_verdict_changes_nothing_afterwards() -> None:
    schedule = made()
    judged(schedule, (0.0, None))
    assert run(schedule, 10) == [(True, 1.0), (False, 1.1)]
    schedule.decide(("top", 1), "ok")
    assert account(schedule) == {"expected": 1, "written": 1, "overdue": 1}


def test_by_configuration_a_part_without_a_verdict_passes_and_is_told() -> None:
    schedule = made(without_verdict="pass")
    judged(schedule, (0.0, None))
    assert run(schedule, 10) == []
    assert account(schedule) == {"expected": 1, "failed": 1, "overdue": 1}
    assert list(schedule.missed) == [(("top", 1), "it had no verdict at its moment")]


def test_the_signal_may_be_for_the_parts_that_pass() -> None:
    schedule = made(signal="pass")
    judged(schedule, (0.0, "ok"), (0.5, "ng"), (1.0, None), (1.5, "unknown"))
    assert run(schedule, 10) == [(True, 1.0), (False, 1.1)]
    assert account(schedule) == {"expected": 4, "spared": 2, "written": 1, "failed": 1, "overdue": 1}


def test_signals_that_overlap_are_one_or_apart_as_configured() -> None:
    parts: tuple[tuple[float, Outcomes | None], ...] = ((0.0, "ng"), (0.06, "ng"), (0.1, "ok"))
    schedule = made()
    judged(schedule, *parts)
    assert run(schedule, 10) == [(True, 1.0), (False, 1.16)]
    assert account(schedule) == {"expected": 3, "spared": 1, "written": 2}
    apart = made(overlap="separate", gap_s=0.02)
    judged(apart, *parts)
    assert run(apart, 10) == [(True, 1.0), (False, 1.04), (True, 1.06), (False, 1.16)]


def test_without_a_pulse_the_plc_takes_the_signal_back() -> None:
    schedule = made(pulse_s=0.0)
    judged(schedule, (0.0, "ng"), (0.01, "ng"))
    assert run(schedule, 10) == [(True, 1.0), (True, 1.01)]


def test_what_is_late_is_counted_and_what_is_too_late_is_not_given() -> None:
    schedule = made(late_after_ms=10.0, too_late_ms=50.0)
    judged(schedule, (0.0, "ng"), (1.0, "ng"), (2.0, "ng"))
    command = schedule.step(1.005)
    assert command == Command(True, 1.0, ("top", 1))
    schedule.acknowledged(command, 1.005, 1.02)
    assert schedule.step(1.2) == Command(False, 1.005 + 0.1)
    assert schedule.step(2.06) is None
    assert "60 ms too late" in schedule.missed[0][1]
    assert account(schedule) == {"expected": 3, "pending": 1, "late": 1, "failed": 1}


def test_a_device_that_is_away_fails_the_signal() -> None:
    schedule = made()
    judged(schedule, (0.0, "ng"), (1.0, "ng"))
    assert run(schedule, 10, answers=False) == [(True, 1.0), (True, 2.0)]
    assert account(schedule) == {"expected": 2, "failed": 2}


events = st.lists(
    st.tuples(
        st.floats(0.001, 0.3),
        st.sampled_from(["ok", "ng", "unknown", "skipped", None]),
        st.floats(0.0, 1.5),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(
    events,
    st.sampled_from(["reject", "pass"]),
    st.sampled_from(["extend", "separate"]),
    st.sampled_from([0.0, 0.05, 0.4]),
    st.floats(0.0, 0.2),
)
def test_each_part_ends_in_one_way_and_the_output_ends_at_rest(
    parts: list[tuple[float, Outcomes | None, float, bool]],
    signal: str,
    overlap: str,
    pulse_s: float,
    dozes_s: float,
) -> None:
    schedule = made(signal=signal, overlap=overlap, pulse_s=pulse_s)
    agenda: list[tuple[float, int, str]] = []
    captured_s = 0.0
    for number, (after_s, outcome, takes_s, _) in enumerate(parts):
        captured_s += after_s
        agenda.append((captured_s, number, "expect"))
        if outcome is not None:
            agenda.append((captured_s + takes_s, number, "decide"))
    works = {("top", number): works for number, (_, _, _, works) in enumerate(parts)}
    on, given, commands = False, set[Part](), list[Command]()
    now_s = 0.0

    def act(until_s: float) -> None:
        nonlocal on, now_s
        while (due_s := schedule.next_s()) <= until_s:
            now_s = max(now_s, due_s) + dozes_s
            while (command := schedule.step(now_s)) is not None:
                assert now_s >= command.moment_s
                commands.append(command)
                if command.on:
                    assert not on
                    assert command.part is not None
                    assert command.part not in given
                    given.add(command.part)
                    on = pulse_s > 0
                    if works[command.part]:
                        schedule.acknowledged(command, now_s, now_s)
                    else:
                        on = False
                        schedule.refused(command, "away")
                else:
                    assert on
                    on = False
                    schedule.acknowledged(command, now_s, now_s)
                assert schedule.is_on == on

    for at_s, number, what in sorted(agenda):
        act(at_s)
        now_s = max(now_s, at_s)
        if what == "expect":
            schedule.expect(("top", number), at_s)
        else:
            outcome = parts[number][1]
            assert outcome is not None
            schedule.decide(("top", number), outcome)
        assert schedule.expected == (
            schedule.pending + schedule.spared + schedule.written + schedule.late + schedule.failed
        )
    act(captured_s + 1000)
    assert schedule.pending == 0
    assert schedule.expected == len(parts) == schedule.spared + schedule.written + schedule.late + schedule.failed
    assert not on
    assert schedule.next_s() == math.inf
    moments = [command.moment_s for command in commands if command.on]
    assert moments == sorted(moments)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.floats(0.002, 0.2), st.integers(0, 3000)), min_size=2, max_size=60),
    st.sampled_from([16, 32]),
    st.booleans(),
    st.integers(0, 1 << 32),
    st.floats(0, 1),
)
def test_an_encoder_that_overflows_gives_the_way_between_its_readings(
    steps: list[tuple[float, int]], bits: int, down: bool, begin: int, where: float
) -> None:
    encoder, at_s, way, known = Encoder(bits, down=down), 10.0, 0, [(10.0, 0)]
    encoder.read(at_s, begin % (1 << bits))
    for after_s, counts in steps:
        at_s, way = at_s + after_s, way + counts
        assert encoder.read(at_s, (begin + (-way if down else way)) % (1 << bits))
        known.append((at_s, way))
    asked_s = known[0][0] + where * (at_s - known[0][0])
    (before, after) = next(pair for pair in itertools.pairwise(known) if pair[0][0] <= asked_s <= pair[1][0])
    share = (asked_s - before[0]) / (after[0] - before[0])
    found = encoder.position_at(asked_s)
    assert found == pytest.approx(before[1] + share * (after[1] - before[1]), abs=1e-3)
    assert found is not None
    reached_s = encoder.time_of(found)
    there = encoder.position_at(reached_s)
    assert there == pytest.approx(found, abs=1e-3)


def test_a_belt_that_stands_still_reaches_nothing_and_one_that_goes_on_does() -> None:
    encoder = Encoder(32)
    for step in range(20):
        encoder.read(step * 0.02, 1000 + step * 20)
    assert encoder.time_of(1380.0) == pytest.approx(1.38)
    for step in range(20, 40):
        encoder.read(step * 0.02, 1380)
    assert encoder.time_of(500.0) == math.inf
    for step in range(40, 60):
        encoder.read(step * 0.02, 1380 + (step - 39) * 10)
    assert encoder.time_of(780.0) == pytest.approx(59 * 0.02 + 200 / 500)


def test_after_a_silence_the_way_begins_anew() -> None:
    encoder = Encoder(16)
    assert encoder.read(0.0, 5)
    assert encoder.position_at(0.1) == 0
    assert encoder.position_at(10.0) is None
    assert encoder.position_at(-1.0) is None
    assert not encoder.read(60.0, 9)
    schedule = RejectSchedule(table(delay_s=None, delay_counts=100, counts={"address": 4}), Encoder(32))
    schedule.expect(("top", 1), 0.0)
    assert account(schedule) == {"expected": 1, "failed": 1}
