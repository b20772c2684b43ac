"""The camera's own process, with real processes that hang, crash and are killed."""

import functools
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from camera_helpers import CLOCK, Seen, counting, drive, finish, picture

from station.adapters.camera_process import CameraProcess, CapturePlan, plan_for
from station.adapters.folder_camera import FolderCameraReader
from station.messages import CameraEvent, CameraStateName, Frame, Reason, SkipReason
from station.picture import View
from station.settings import FolderCamera, SimulatedCamera

RUNNING, STALLED, FINISHED = CameraStateName.RUNNING, CameraStateName.STALLED, CameraStateName.FINISHED
STARTING, STOPPED = CameraStateName.STARTING, CameraStateName.STOPPED


def process(plan: CapturePlan, *, resume_after: str | None = None, **options: Any) -> CameraProcess:
    return CameraProcess("cam", functools.partial(counting, **options), plan, CLOCK, resume_after=resume_after)


def child_pid() -> int:
    (child,) = psutil.Process().children()
    return child.pid


@pytest.fixture
def fuse(tmp_path: Path) -> Path:
    path = tmp_path / "fuse"
    path.touch()
    return path


def test_500_pictures_arrive_once_each_in_order_and_identical() -> None:
    def look(frame: Frame) -> None:
        assert frame.capture.pixels is not None
        np.testing.assert_array_equal(frame.capture.pixels, picture(frame.sequence - 1))

    with process(CapturePlan(waits=True, slots=4), count=500) as source:
        seen = drive(source, lambda so_far: FINISHED in so_far.states, look=look)
        finish(source, seen)
        assert source.depth() == 0
    assert seen.sequences == list(range(1, 501))
    assert seen.states == [STARTING, RUNNING, FINISHED, STOPPED]


def test_lent_pixels_are_a_read_only_view_into_shared_memory() -> None:
    with process(CapturePlan(waits=True), count=2) as source:
        seen = drive(source, lambda so_far: len(so_far.frames) == 2, release=False)
        first = seen.frames[0].capture.pixels
        assert first is not None
        assert not first.flags.writeable
        assert not first.flags.owndata
        np.testing.assert_array_equal(first, picture(0))


def test_a_released_slot_is_not_freed_a_second_time() -> None:
    with process(CapturePlan(waits=True, slots=2), count=10) as source:
        held = drive(source, lambda so_far: len(so_far.frames) == 2, release=False).frames
        held[0].release()
        third = drive(source, lambda so_far: len(so_far.frames) == 1, release=False).frames[0]
        held[0].release()
        assert source.read(0.3) is None, "a double release must not free the slot that the third picture is in"
        assert third.capture.pixels is not None
        np.testing.assert_array_equal(third.capture.pixels, picture(2))


def test_a_live_camera_that_finds_no_slot_announces_without_pixels() -> None:
    with process(CapturePlan(slots=3), rate_fps=500.0) as source:
        seen = drive(source, lambda so_far: len(so_far.frames) == 40, release=False)
        with_pixels = [frame for frame in seen.frames if frame.capture.pixels is not None]
        without = [frame for frame in seen.frames if frame.capture.pixels is None]
        assert [frame.sequence for frame in with_pixels] == [1, 2, 3]
        assert {frame.capture.fault for frame in without} == {Reason.OVERLOAD}
        assert seen.sequences == list(range(1, 41))
        for frame in with_pixels:
            frame.release()
        later = drive(source, lambda so_far: so_far.frames != [] and so_far.frames[-1].capture.pixels is not None)
        assert later.frames[0].sequence == 41


def test_frames_are_counted_while_nobody_reads() -> None:
    with process(CapturePlan(slots=2), rate_fps=2000.0) as source:
        drive(source, lambda so_far: len(so_far.frames) == 1)
        deadline_s = time.monotonic() + 20
        while source.depth() < 1000:
            assert time.monotonic() < deadline_s
            select.select([], [], [], 0.05)
        # Far more than the channel between the processes holds.
        seen = drive(source, lambda so_far: len(so_far.frames) >= 1000)
        finish(source, seen)
        assert source.depth() == 0
    assert seen.sequences == list(range(2, len(seen.frames) + 2))


def test_latest_skips_what_was_overtaken_and_counts_it() -> None:
    with process(CapturePlan(policy="latest", slots=3), rate_fps=300.0) as source:
        judged, seen = 0, Seen()
        while judged < 5:
            item = source.read(1.0)
            if isinstance(item, Frame):
                seen.frames.append(item)
                if item.capture.skipped is None:
                    judged += 1
                    assert item.capture.pixels is not None
                    np.testing.assert_array_equal(item.capture.pixels, picture(item.sequence - 1))
                    # A judgement that takes far longer than a frame.
                    select.select([], [], [], 0.1)
                item.release()
        finish(source, seen)
    skipped = [frame for frame in seen.frames if frame.capture.skipped is not None]
    assert seen.sequences == list(range(1, len(seen.frames) + 1))
    assert {frame.capture.skipped for frame in skipped} == {SkipReason.SUPERSEDED}
    assert all(frame.capture.pixels is None for frame in skipped)
    assert len(skipped) > 50


def test_frames_above_the_rate_limit_are_skipped_and_counted() -> None:
    with process(CapturePlan(max_rate_fps=50.0), rate_fps=400.0) as source:
        seen = drive(source, lambda so_far: len(so_far.frames) == 200)
    kept = [frame for frame in seen.frames if frame.capture.skipped is None]
    times_s = [frame.capture.captured_monotonic_s for frame in kept]
    assert seen.sequences == list(range(1, 201))
    assert {frame.capture.skipped for frame in seen.frames} == {None, SkipReason.RATE_LIMIT}
    assert len(kept) <= 50.0 * (times_s[-1] - times_s[0]) + 2


@pytest.mark.parametrize("mishap", ["hang", "freeze"])
def test_a_camera_that_hangs_is_replaced(mishap: str, fuse: Path) -> None:
    deadline_s = 1.0
    with process(CapturePlan(read_deadline_s=deadline_s), rate_fps=100.0, mishap=mishap, at=20, fuse=fuse) as source:
        before = drive(source, lambda so_far: len(so_far.frames) == 20)
        after = drive(source, lambda so_far: RUNNING in so_far.states)
        drive(source, lambda so_far: len(so_far.frames) == 5, seen=after)
        finish(source, after)
    assert after.states == [STALLED, RUNNING, STOPPED]
    assert after.events[1].missed_since == before.frames[-1].capture.captured_at
    stalled_after_s = after.time_of(STALLED) - before.last_frame_s
    assert deadline_s - 0.2 < stalled_after_s < deadline_s + 0.5
    assert after.time_of(RUNNING) - after.time_of(STALLED) < 5
    assert after.sequences == list(range(21, 21 + len(after.frames)))


@pytest.mark.parametrize(
    ("mishap", "reason"),
    [("crash", "was ended by SIGSEGV"), ("exception", "KeyError: 'a bug in an adapter'")],
)
def test_a_camera_process_that_dies_is_replaced(mishap: str, reason: str, fuse: Path) -> None:
    with process(CapturePlan(), rate_fps=100.0, mishap=mishap, at=10, fuse=fuse) as source:
        seen = drive(source, lambda so_far: len(so_far.frames) == 20)
        finish(source, seen)
    assert seen.states == [STARTING, RUNNING, STALLED, RUNNING, STOPPED]
    assert reason in (seen.events[2].reason or "")
    assert seen.sequences == list(range(1, len(seen.frames) + 1))


def test_after_a_device_error_the_child_opens_the_device_again_itself(fuse: Path) -> None:
    with process(CapturePlan(), rate_fps=100.0, mishap="error", at=5, fuse=fuse) as source:
        seen = drive(source, lambda so_far: len(so_far.frames) == 1)
        pid = child_pid()
        drive(source, lambda so_far: len(so_far.frames) == 20, seen=seen)
        assert child_pid() == pid
        finish(source, seen)
    assert seen.states == [STARTING, RUNNING, STALLED, RUNNING, STOPPED]
    assert seen.events[2].reason == "the cable was pulled"


def test_silence_of_a_triggered_camera_is_no_fault(fuse: Path) -> None:
    plan = CapturePlan(watch_reads=False, read_deadline_s=0.3)
    with process(plan, mishap="hang", at=0, fuse=fuse) as source:
        seen = drive(source, lambda so_far: RUNNING in so_far.states)
        assert source.read(1.5) is None
        os.kill(child_pid(), signal.SIGSTOP)
        drive(source, lambda so_far: STALLED in so_far.states, seen=seen)
        assert "no sign of life" in (seen.events[-1].reason or "")


def test_frames_numbered_but_lost_with_their_process_are_accounted_for() -> None:
    with process(CapturePlan(slots=2), rate_fps=2000.0) as source:
        seen = drive(source, lambda so_far: len(so_far.frames) == 1)
        # The channel is full long before the count is this high: the rest is known to the dying process alone.
        deadline_s = time.monotonic() + 20
        while source.depth() < 800:
            assert time.monotonic() < deadline_s
            select.select([], [], [], 0.05)
        os.kill(child_pid(), signal.SIGKILL)
        drive(source, lambda so_far: STALLED in so_far.states, seen=seen)
        lost = [frame for frame in seen.frames if frame.capture.fault is Reason.CAMERA_FAULT]
        assert lost
        assert source.depth() == 0
        drive(source, lambda so_far: so_far.states[-1] is RUNNING and len(so_far.frames) > 1000, seen=seen)
    assert seen.sequences == list(range(1, len(seen.frames) + 1))


def test_a_source_of_files_goes_on_where_its_killed_process_was() -> None:
    plan = CapturePlan(waits=True, resumes=True, slots=3)
    with process(plan, count=300, named=True) as source:
        seen = Seen()
        for goal in (50, 120, 200):
            drive(source, lambda so_far, goal=goal: len(so_far.frames) >= goal, seen=seen)  # type: ignore[misc]
            os.kill(child_pid(), signal.SIGKILL)
        drive(source, lambda so_far: FINISHED in so_far.states, seen=seen)
        finish(source, seen)
    assert [frame.capture.source for frame in seen.frames] == [str(number) for number in range(300)]
    assert seen.sequences == list(range(1, 301))
    assert all(event.missed_since is None for event in seen.events)


def test_an_earlier_run_is_continued() -> None:
    plan = CapturePlan(waits=True, resumes=True)
    with process(plan, count=10, named=True, resume_after="6") as source:
        seen = drive(source, lambda so_far: FINISHED in so_far.states)
    assert [frame.capture.source for frame in seen.frames] == ["7", "8", "9"]


def test_a_picture_of_another_size_is_wrong_and_kept(fuse: Path) -> None:
    with process(CapturePlan(waits=True), count=5, mishap="shrink", at=2, fuse=fuse) as source:
        seen = drive(source, lambda so_far: FINISHED in so_far.states)
    assert [frame.capture.fault for frame in seen.frames] == [None, None, Reason.WRONG_SIZE, None, None]


def test_the_size_is_remembered_when_the_process_is_replaced(fuse: Path) -> None:
    with process(CapturePlan(waits=True, slots=2), count=50, mishap="shrink", at=0, fuse=fuse) as source:
        seen = drive(source, lambda so_far: len(so_far.frames) == 1)
        os.kill(child_pid(), signal.SIGKILL)
        drive(source, lambda so_far: so_far.states[-1] is RUNNING and STALLED in so_far.states, seen=seen)
        drive(source, lambda so_far: FINISHED in so_far.states, seen=seen)
    assert seen.frames[0].capture.fault is None
    assert seen.frames[-1].capture.fault is Reason.WRONG_SIZE


@pytest.mark.parametrize("mishap", ["hang", "freeze"])
def test_stopping_takes_less_than_a_second_when_the_driver_hangs(mishap: str, fuse: Path) -> None:
    with process(CapturePlan(), rate_fps=100.0, mishap=mishap, at=3, fuse=fuse) as source:
        seen = drive(source, lambda so_far: len(so_far.frames) == 3)
        began_s = time.monotonic()
        finish(source, seen)
        assert time.monotonic() - began_s < 1.0
        assert source.read(0.0) is None
    assert seen.states[-1] is STOPPED
    assert STALLED not in seen.states


def test_a_station_that_cannot_keep_up_stops_all_the_same() -> None:
    pace = threading.Event()

    def judge_slowly(_: Frame) -> None:
        pace.wait(0.05)

    with process(CapturePlan(), rate_fps=200.0) as source:
        seen = drive(source, lambda so_far: len(so_far.frames) == 5)
        source.finish()
        drive(source, lambda so_far: STOPPED in so_far.states, seen=seen, within_s=60, look=judge_slowly)
    assert seen.sequences == list(range(1, len(seen.frames) + 1))


def test_leaving_without_an_orderly_stop_ends_a_hanging_child_within_a_second(fuse: Path) -> None:
    with process(CapturePlan(), rate_fps=100.0, mishap="freeze", at=1, fuse=fuse) as source:
        drive(source, lambda so_far: len(so_far.frames) == 1)
        child = psutil.Process(child_pid())
        drive(source, lambda _: child.status() == psutil.STATUS_STOPPED)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 1.0
    assert not child.is_running()


ORPHAN_SCRIPT = """
import functools, pathlib, sys
from camera_helpers import CLOCK, counting, drive
from station.adapters.camera_process import CameraProcess, CapturePlan
factory = functools.partial(counting, rate_fps=100.0, mishap=sys.argv[1], at=3, fuse=pathlib.Path(sys.argv[2]))
with CameraProcess("cam", factory, CapturePlan(read_deadline_s=60), CLOCK) as source:
    drive(source, lambda seen: len(seen.frames) == 3)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("mishap", ["none", "hang", "freeze"])
def test_a_killed_station_leaves_no_orphan(mishap: str, fuse: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    station = subprocess.Popen(
        [sys.executable, "-c", ORPHAN_SCRIPT, mishap, str(fuse)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert station.stdout is not None
    assert station.stdin is not None
    with station.stdout, station.stdin:
        assert station.stdout.readline() == b"ready\n"
        (child,) = psutil.Process(station.pid).children()
        ended = os.pidfd_open(child.pid)
        try:
            station.kill()
            station.wait()
            assert select.select([ended], [], [], 2.0)[0], "the camera process outlived its station"
        finally:
            os.close(ended)


def test_replacing_many_children_leaks_no_descriptor() -> None:
    me = psutil.Process()
    with process(CapturePlan(backoff_max_s=0.05), rate_fps=200.0) as source:
        seen = drive(source, lambda so_far: len(so_far.frames) == 1)
        gc.collect()
        before = me.num_fds()
        for goal in range(2, 6):
            os.kill(child_pid(), signal.SIGKILL)
            drive(source, lambda so_far, goal=goal: so_far.states.count(RUNNING) == goal, seen=seen)  # type: ignore[misc]
            drive(source, lambda so_far: so_far.frames[-1].capture.pixels is not None, seen=seen)
        assert seen.sequences == list(range(1, len(seen.frames) + 1))
        seen.frames.clear()
        gc.collect()
        assert me.num_fds() <= before


def test_a_folder_of_mixed_sizes_grows_the_ring(tmp_path: Path) -> None:
    sizes = [(20, 30), (200, 300), (20, 30), (700, 300), (10, 10), (1000, 1000)]
    arrived = []
    for number, size in enumerate(sizes):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture(number, size))
    (tmp_path / "3b.png").write_bytes(b"no picture at all")
    settings = FolderCamera(kind="folder", path=tmp_path, buffer_frames=2)

    def look(frame: Frame) -> None:
        if frame.capture.pixels is not None:
            arrived.append(frame.capture.pixels.copy())

    factory = functools.partial(FolderCameraReader, settings, CLOCK)
    with CameraProcess("cam", factory, plan_for(settings), CLOCK) as source:
        seen = drive(source, lambda so_far: len(so_far.frames) == 7, look=look)
        finish(source, seen)
    assert [frame.capture.source for frame in seen.frames] == [
        *("0.png", "1.png", "2.png", "3.png", "3b.png", "4.png", "5.png")
    ]
    assert [frame.capture.fault for frame in seen.frames].count(Reason.UNREADABLE) == 1
    for number, pixels in enumerate(arrived):
        np.testing.assert_array_equal(pixels, picture(number, sizes[number]))


def test_the_view_is_applied_before_the_ring() -> None:
    plan = CapturePlan(waits=True, view=View(rotate_degrees=90))
    with process(plan, count=1) as source:
        frame = drive(source, lambda so_far: so_far.frames != [], release=False).frames[0]
        assert frame.capture.pixels is not None
        np.testing.assert_array_equal(frame.capture.pixels, np.rot90(picture(0), -1))


def test_a_missing_folder_is_stalled_until_it_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    settings = FolderCamera(kind="folder", path=folder)
    with CameraProcess(
        "cam", functools.partial(FolderCameraReader, settings, CLOCK), plan_for(settings), CLOCK
    ) as source:
        seen = drive(source, lambda so_far: STALLED in so_far.states)
        assert str(folder) in (seen.events[-1].reason or "")
        folder.mkdir()
        cv2.imwrite(str(folder / "a.png"), picture(0))
        drive(source, lambda so_far: FINISHED in so_far.states, seen=seen)
    assert seen.states == [STARTING, STALLED, RUNNING, FINISHED]


def test_the_camera_keeps_off_the_processor_that_its_reader_is_pinned_to() -> None:
    whole = os.sched_getaffinity(0)
    pinned = {min(whole)}
    found: list[set[int]] = []

    def read() -> None:
        os.sched_setaffinity(0, pinned)
        with process(CapturePlan(), rate_fps=50.0) as source:
            drive(source, lambda so_far: so_far.states[-1:] == [RUNNING])
            found.append(os.sched_getaffinity(child_pid()))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert found == [(whole - pinned) or whole]


def test_finishing_before_the_first_frame() -> None:
    with process(CapturePlan()) as source:
        seen = finish(source, Seen())
    assert seen.states[0] is STARTING
    assert seen.states[-1] is STOPPED


def test_a_factory_that_cannot_be_loaded_is_named() -> None:
    # Importable here, not in the child.
    module = type(sys)("only_here")
    exec("def factory(): pass", module.__dict__)
    sys.modules["only_here"] = module
    try:
        with CameraProcess("cam", module.factory, CapturePlan(), CLOCK) as source:
            seen = drive(source, lambda so_far: STALLED in so_far.states)
    finally:
        del sys.modules["only_here"]
    assert isinstance(seen.events[-1], CameraEvent)
    assert "only_here" in (seen.events[-1].reason or "")


def test_plans_follow_from_settings(tmp_path: Path) -> None:
    once = plan_for(FolderCamera(kind="folder", path=tmp_path, rate_fps=0.1))
    watch = plan_for(FolderCamera(kind="folder", path=tmp_path, mode="watch"))
    live = plan_for(SimulatedCamera(kind="simulated"))
    flat_out = plan_for(SimulatedCamera(kind="simulated", rate_fps=0.0))
    assert (once.waits, once.resumes, once.fixed_size, once.watch_reads) == (True, True, False, True)
    assert once.read_deadline_s > 10
    assert not watch.watch_reads
    assert (live.waits, live.resumes, live.fixed_size) == (False, False, True)
    assert flat_out.waits
