"""The watchdog's judgement: lists of counters in, stalled stages out."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.messages import CameraStateName
from station.progress import PATIENCE_S, CameraProgress, ProcessProgress, Progress, RecorderProgress

RUNNING, STALLED, FINISHED = CameraStateName.RUNNING, CameraStateName.STALLED, CameraStateName.FINISHED
IDLE = RecorderProgress(turns=0, waiting=0, committed=0)


def camera(
    turns: int, taken: int, settled: int, state: CameraStateName = RUNNING, silence_s: float | None = None
) -> CameraProgress:
    return CameraProgress("c", turns, taken, settled, state, silence_s)


def looks(history: Sequence[tuple[float, CameraProgress, RecorderProgress]]) -> list[list[str]]:
    progress = Progress()
    return [list(progress.look(at_s, [one], recorder)) for at_s, one, recorder in history]


def over(step_s: float, cameras: Sequence[CameraProgress]) -> list[list[str]]:
    """Looks at these cameras, `step_s` apart, with a recorder that turns."""
    return looks([(n * step_s, one, RecorderProgress(n, 0, one.settled)) for n, one in enumerate(cameras)])


def test_a_thread_that_does_not_come_back_to_its_loop_is_stalled_after_its_patience() -> None:
    found = over(1.0, [camera(turns=5, taken=3, settled=3)] * 20)
    assert found[: int(PATIENCE_S) + 1] == [[]] * (int(PATIENCE_S) + 1)
    assert found[-1] == ["camera c: loop"]


def test_a_frame_without_a_verdict_is_stalled() -> None:
    found = over(1.0, [camera(turns=n, taken=3, settled=2) for n in range(20)])
    assert found[-1] == ["camera c: verdicts"]


def test_messages_that_wait_for_the_disk_are_stalled_also_when_the_recorder_turns() -> None:
    found = looks([(n, camera(n, n, n), RecorderProgress(n, waiting=7, committed=40)) for n in range(20)])
    assert found[-1] == ["recorder: journal"]


def test_a_recorder_that_hangs_in_a_commit_is_stalled_also_with_an_empty_mailbox() -> None:
    found = looks([(n, camera(n, 1, 1), RecorderProgress(9, waiting=0, committed=1)) for n in range(20)])
    assert found[-1] == ["recorder: loop"]


@pytest.mark.parametrize(
    "quiet",
    [
        pytest.param(camera(0, 4, 4, RUNNING, None), id="a triggered line without parts"),
        pytest.param(camera(0, 4, 4, FINISHED, 5.0), id="a folder that is read"),
        pytest.param(camera(0, 4, 4, STALLED, 5.0), id="a camera that is being replaced"),
    ],
)
def test_silence_that_is_no_fault_of_ours_keeps_the_watchdog_fed(quiet: CameraProgress) -> None:
    turning = [
        CameraProgress(quiet.name, n, quiet.taken, quiet.settled, quiet.state, quiet.silence_s) for n in range(1000)
    ]
    assert over(1.0, turning) == [[]] * 1000


def test_a_running_camera_that_nobody_declares_stalled_is_stalled_after_its_deadline_and_the_patience() -> None:
    found = over(1.0, [camera(n, 4, 4, RUNNING, silence_s=5.0) for n in range(30)])
    first = next(n for n, stalled in enumerate(found) if stalled)
    assert found[first] == ["camera c: frames"]
    assert first == int(PATIENCE_S + 5.0) + 1


def test_one_stuck_camera_is_named_beside_one_that_works() -> None:
    progress = Progress()
    for n in range(20):
        stuck = CameraProgress("a", 1, 9, 9, RUNNING, 1.0)
        works = CameraProgress("b", n, n, n, RUNNING, 1.0)
        found = progress.look(float(n), [stuck, works], RecorderProgress(n, 0, n))
    assert {name.split(":")[0] for name in found} == {"camera a"}


def test_a_stage_that_moves_again_is_forgiven_at_once() -> None:
    progress = Progress()
    for n in range(20):
        progress.look(float(n), [], RecorderProgress(1, 0, 0))
    assert progress.look(20.0, [], RecorderProgress(1, 0, 0)) == ["recorder: loop"]
    assert progress.look(21.0, [], RecorderProgress(2, 0, 0)) == []


steps = st.lists(
    st.tuples(
        st.floats(0.0, 3 * PATIENCE_S),
        st.booleans(),
        st.integers(0, 5),
        st.integers(0, 5),
        st.sampled_from(CameraStateName),
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=40,
)


@given(steps)
def test_stages_whose_counters_move_at_every_look_are_never_stalled(
    history: list[tuple[float, bool, int, int, CameraStateName, int, int]],
) -> None:
    progress, now_s, frames = Progress(), 0.0, 0
    for n, (pause_s, _, taken, _, state, waiting, _) in enumerate(history, start=1):
        now_s += pause_s
        frames += 1 + taken
        one = CameraProgress("c", n, frames, frames, state, 1.0)
        assert not progress.look(now_s, [one], RecorderProgress(n, waiting, frames))


@given(steps)
def test_a_stage_is_stalled_exactly_when_work_waited_and_nothing_moved_for_its_patience(
    history: list[tuple[float, bool, int, int, CameraStateName, int, int]],
) -> None:
    """Against a second account that remembers every look."""
    progress, now_s = Progress(), 0.0
    turns = taken = settled = committed = 0
    past: list[tuple[float, dict[str, tuple[int, bool]]]] = []
    for pause_s, turned, more, done, state, waiting, kept in history:
        now_s += pause_s
        turns += turned
        taken += more
        settled = min(taken, settled + done)
        committed += kept
        past.append(
            (
                now_s,
                {
                    "camera c: loop": (turns, True),
                    "camera c: verdicts": (settled, taken > settled),
                    "camera c: frames": (taken, state is RUNNING),
                    "recorder: loop": (turns, True),
                    "recorder: journal": (committed, waiting > 0),
                },
            )
        )
        one = CameraProgress("c", turns, taken, settled, state, 2.0)
        found = progress.look(now_s, [one], RecorderProgress(turns, waiting, committed))
        assert set(found) == {name for name in past[-1][1] if _stood_still(past, name)}


def _stood_still(past: list[tuple[float, dict[str, tuple[int, bool]]]], name: str) -> bool:
    now_s, last = past[-1]
    since_s = now_s
    for index in range(len(past) - 1, -1, -1):
        counter, waits = past[index][1][name]
        # Work that was not waiting at a look counts as done at that look.
        if counter != last[name][0]:
            break
        since_s = past[index][0]
        if not waits:
            break
    patience_s = PATIENCE_S + (2.0 if name == "camera c: frames" else 0.0)
    return last[name][1] and now_s - since_s > patience_s


def test_a_process_group_whose_thread_stands_still_is_stalled() -> None:
    progress = Progress()
    for n in range(30):
        groups = [ProcessProgress("oven", min(n, 5)), ProcessProgress("press", n)]
        found = progress.look(float(n), [], RecorderProgress(n, 0, n), groups)
    assert found == ["process oven: loop"]
