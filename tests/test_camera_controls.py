"""A camera's controls in a changeover: set in its process, read back, refused and set back; with real processes."""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from camera_helpers import CLOCK, AdjustableCamera, Seen, adjustable, adjustable_device, counting, drive, finish, shown
from mosquitto import Listener, Mosquitto
from requester import Requester
from test_changeover import under
from test_station import running, statuses, verdicts

from station.adapters.camera_process import CameraProcess, CapturePlan
from station.errors import CameraError
from station.messages import Adjustment, CameraEvent, CameraStateName, Reason, Verdict
from station.ports import Adjustable

RUNNING, STALLED = CameraStateName.RUNNING, CameraStateName.STALLED
BOLT = {"exposure": 10.0, "gain": 1.0}
NUT = {"exposure": 30.0, "gain": 50.0}
TRIGGERED = CapturePlan(watch_reads=False, read_deadline_s=0.3)


def process(plan: CapturePlan, **options: Any) -> CameraProcess:
    return CameraProcess("cam", functools.partial(adjustable, controls=BOLT, **options), plan, CLOCK)


def settled(asked: Adjustment) -> Callable[[Seen], bool]:
    return lambda _: asked.done or asked.refused is not None


def sources(seen: Seen) -> list[str | None]:
    return [frame.capture.source for frame in seen.frames if frame.capture.pixels is not None]


def pictures(count: int) -> Callable[[Seen], bool]:
    return lambda seen: len(sources(seen)) >= count


def limit(folder: Path, largest: float) -> Path:
    """Say what is the largest value that the device takes; whole at any moment."""
    (folder / "new").write_text(f"{largest:g}")
    return (folder / "new").rename(folder / "largest")


def test_the_device_of_these_tests_does_what_an_adjustable_camera_promises(tmp_path: Path) -> None:
    camera = AdjustableCamera(controls=BOLT, largest=limit(tmp_path, 40.0))
    assert isinstance(camera, Adjustable)
    with camera:
        assert camera.read().source == shown(BOLT)
        with pytest.raises(CameraError, match=r"values: gain = 50 \(reads 1\)$"):
            camera.adjust(NUT)
        limit(tmp_path, 50.0)
        camera.adjust(NUT)
        assert camera.read().source == shown(NUT)


def test_controls_hold_before_they_are_told_to_and_no_picture_is_under_others() -> None:
    with process(CapturePlan(), rate_fps=100.0) as source:
        seen = drive(source, pictures(3))
        asked = source.adjust(NUT)
        drive(source, settled(asked), seen=seen)
        later = drive(source, pictures(10))
        finish(source, later)
    assert (asked.done, asked.refused) == (True, None)
    assert set(sources(seen)) <= {shown(BOLT), shown(NUT)}
    assert set(sources(later)) == {shown(NUT)}
    assert STALLED not in seen.states


def test_a_refused_value_is_named_and_those_before_hold_again(tmp_path: Path) -> None:
    with process(CapturePlan(), rate_fps=100.0, largest=limit(tmp_path, 40.0)) as source:
        former = source.adjust(BOLT)
        seen = drive(source, settled(former))
        asked = source.adjust(NUT)
        drive(source, settled(asked), seen=seen)
        drive(source, pictures(len(sources(seen)) + 5), seen=seen)
        finish(source, seen)
    assert former.done
    assert not asked.done
    assert asked.refused == "controls did not take their values: gain = 50 (reads 1)"
    # Though the exposure alone would have been taken.
    assert set(sources(seen)) == {shown(BOLT)}
    assert STALLED not in seen.states


def test_the_first_that_is_refused_leaves_what_the_camera_was_opened_with(tmp_path: Path) -> None:
    with process(CapturePlan(), rate_fps=100.0, largest=limit(tmp_path, 40.0)) as source:
        seen = drive(source, pictures(3))
        asked = source.adjust(NUT)
        drive(source, settled(asked), seen=seen)
        drive(source, pictures(len(sources(seen)) + 5), seen=seen)
        finish(source, seen)
    assert "gain = 50" in (asked.refused or "")
    assert set(sources(seen)) == {shown(BOLT)}


@pytest.mark.parametrize("largest", [50.0, 40.0])
def test_a_camera_that_waits_for_its_trigger_is_opened_anew(tmp_path: Path, largest: float) -> None:
    trigger = tmp_path / "trigger"
    with process(TRIGGERED, trigger=trigger, largest=limit(tmp_path, largest)) as source:
        former = source.adjust(BOLT)
        # The first controls come before or after the camera waits; only then is it opened anew for them too.
        seen = drive(source, settled(former), within_s=10)
        before = seen.states.count(STALLED)
        asked = source.adjust(NUT)
        drive(source, settled(asked), seen=seen, within_s=10)
        trigger.touch()
        drive(source, pictures(1), seen=seen)
        finish(source, seen)
    assert asked.done == (largest == 50.0)
    assert (asked.refused is None) == asked.done
    assert sources(seen) == [shown(NUT if asked.done else BOLT)]
    assert seen.states.count(STALLED) == before + 1
    reasons = [event.reason for event in seen.events if event.state is STALLED]
    assert set(reasons) == {"is opened anew, to take other controls while it waits for a trigger"}


def test_what_must_be_taken_is_waited_for_without_a_picture(tmp_path: Path) -> None:
    with process(CapturePlan(), rate_fps=100.0, largest=limit(tmp_path, 40.0)) as source:
        seen = drive(source, pictures(3))
        asked = source.adjust(NUT, must=True)
        drive(source, lambda so_far: STALLED in so_far.states, seen=seen)
        assert "gain = 50 (reads 1)" in (seen.events[-1].reason or "")
        assert set(sources(seen)) == {shown(BOLT)}
        assert not settled(asked)(seen)
        limit(tmp_path, 50.0)
        later = drive(source, pictures(3))
        finish(source, later)
    assert asked.done
    assert set(sources(later)) == {shown(NUT)}


@pytest.mark.parametrize("mishap", ["error", "crash"])
@pytest.mark.parametrize("at", [2, 3])
def test_an_order_outlives_the_opening_that_it_came_in(tmp_path: Path, mishap: str, at: int) -> None:
    """The camera fails before it looks at the order, or on the first picture under other controls."""
    fuse, trigger = tmp_path / "fuse", tmp_path / "trigger"
    with process(CapturePlan(), mishap=mishap, at=at, fuse=fuse, trigger=trigger) as source:
        seen = Seen()
        for number in (1, 2):
            trigger.touch()
            drive(source, pictures(number), seen=seen)
        # It waits for the third picture already and looks at the order in front of the fourth.
        asked = source.adjust(NUT)
        assert source.read(0.0) is None
        fuse.touch()
        trigger.touch()
        while not asked.done:
            drive(source, lambda _: True, seen=seen)
            trigger.touch()
            item = source.read(0.05)
            if isinstance(item, CameraEvent):
                seen.events.append(item)
            elif item is not None:
                item.release()
        finish(source, seen)
    assert not fuse.exists()
    assert seen.states.count(STALLED) == 1
    assert asked.refused is None


def test_an_order_survives_the_process_that_it_was_given_to() -> None:
    with process(CapturePlan(), rate_fps=100.0) as source:
        seen = drive(source, pictures(3))
        (child,) = psutil.Process().children()
        os.kill(child.pid, signal.SIGSTOP)
        asked = source.adjust(NUT)
        while source.read(0.0) is not None:
            pass
        os.kill(child.pid, signal.SIGKILL)
        drive(source, settled(asked), seen=seen)
        later = drive(source, pictures(3))
        finish(source, later)
    assert asked.done
    assert set(sources(later)) == {shown(NUT)}


def test_a_camera_without_controls_says_so() -> None:
    with CameraProcess("cam", functools.partial(counting, rate_fps=100.0), CapturePlan(), CLOCK) as source:
        seen = drive(source, pictures(2))
        asked = source.adjust(NUT)
        drive(source, settled(asked), seen=seen)
        drive(source, pictures(len(seen.frames) + 3), seen=seen)
        finish(source, seen)
    assert asked.refused == "this kind of camera has no controls that can be set"


# A whole station


def judged(found: list[Verdict]) -> set[tuple[str, str | None, str | None]]:
    """Camera, product and controls of what was judged: neither between two products nor without a picture."""
    unseen = {Reason.CHANGEOVER, Reason.OVERLOAD, Reason.CAMERA_FAULT}
    return {(one.camera, one.product, one.source) for one in found if not unseen & {*one.reasons}}


def test_no_frame_is_judged_under_the_controls_of_another_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("station.commands.assembly.make_camera", adjustable_device)
    cameras = {}
    for name in ("c", "d"):
        (tmp_path / name).mkdir()
        limit(tmp_path / name, 100.0)
        cameras[name] = {"kind": "v4l2", "device": str(tmp_path / name), "rate_fps": 40.0, "controls": BOLT}
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener, Requester(broker.port) as requester:
        document = {
            "broker": {"port": broker.port},
            "commands": {"allow": ["change-product"]},
            "camera": cameras,
            "product": {"bolt": {}, "nut": {"controls": NUT}},
            "evidence": {"enabled": False},
        }
        with running(tmp_path, document):
            listener.wait_until(lambda got: len(judged(verdicts(got))) == 2)
            # One camera takes them, the other does not: both go back, and the first is not judged before it has.
            limit(tmp_path / "d", 40.0)
            for _ in range(3):
                answer = requester.ask("change-product", product="nut")
                assert "bolt goes on: camera d: controls did not take their values: gain = 50" in str(answer.reason)
                count = listener.count
                listener.wait_until(lambda got, count=count: len(judged(verdicts(got[count:]))) == 2)  # type: ignore[misc]
            assert {one.what for one in statuses(listener.received)[-1].faults} == {"product"}
            assert judged(verdicts(listener.received)) == {(name, "bolt", shown(BOLT)) for name in ("c", "d")}
            limit(tmp_path / "d", 100.0)
            assert requester.ask("change-product", product="nut").accepted
            listener.wait_until(lambda got: under("nut")(got) and len(judged(verdicts(got))) == 4)
            assert requester.ask("change-product", product="bolt").accepted
            listener.wait_until(under("bolt"))
    assert judged(verdicts(listener.received)) == {
        (name, product, shown(controls)) for name in ("c", "d") for product, controls in (("bolt", BOLT), ("nut", NUT))
    }
