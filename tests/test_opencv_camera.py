"""OpenCV's cameras over real video files and a real network camera; devices as far as a machine without one goes."""

import functools
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
from camera_helpers import CLOCK, drive, finish
from hypothesis import given
from hypothesis import strategies as st
from mjpeg_server import address, mjpeg_camera
from pydantic import SecretStr

from station.adapters.camera_process import CameraProcess, plan_for
from station.adapters.opencv_camera import OpenCvCamera, StreamDelay, set_and_compare
from station.errors import CameraError, EndOfStream
from station.messages import CameraStateName, Capture, Frame
from station.settings import DeviceCamera, StreamCamera, VideoCamera, shown_address

FRAMES = 40
RUNNING, STALLED, FINISHED = CameraStateName.RUNNING, CameraStateName.STALLED, CameraStateName.FINISHED


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Forty frames; each is one grey level, so that a half-decoded one shows."""
    path = tmp_path / "parts.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (160, 120))
    for number in range(FRAMES):
        writer.write(np.full((120, 160, 3), 20 + 5 * number, np.uint8))
    writer.release()
    return path


def level(capture: Capture) -> int:
    """The number that `video` put into a frame."""
    assert capture.pixels is not None
    pixels = capture.pixels.astype(int)
    assert np.ptp(pixels) <= 2, "the picture is not one frame's"
    return round((float(pixels.mean()) - 20) / 5)


def camera_of(
    path: Path, resume_after: str | None = None, *, loop: bool = False, rate_fps: float | None = None
) -> OpenCvCamera:
    return OpenCvCamera(VideoCamera(kind="video", path=path, loop=loop, rate_fps=rate_fps), CLOCK, resume_after)


@contextmanager
def running(settings: StreamCamera | VideoCamera) -> Iterator[CameraProcess]:
    factory = functools.partial(OpenCvCamera, settings, CLOCK)
    with CameraProcess("cam", factory, plan_for(settings), CLOCK) as source:
        yield source


def stream(url: str, **keys: object) -> StreamCamera:
    return StreamCamera.model_validate({"kind": "stream", "url": SecretStr(url), **keys})


def test_a_video_gives_each_frame_once_and_ends(video: Path) -> None:
    with camera_of(video) as camera:
        captures = [camera.read() for _ in range(FRAMES)]
        with pytest.raises(EndOfStream, match="all 40 frames"):
            camera.read()
    assert [level(capture) for capture in captures] == list(range(FRAMES))
    assert [capture.source for capture in captures] == [f"parts.avi#{number}" for number in range(FRAMES)]


@pytest.mark.parametrize(
    ("last", "first"), [("parts.avi#17", 18), ("parts.avi#0", 1), ("other.avi#17", 0), ("parts.avi", 0)]
)
def test_a_video_goes_on_after_the_last_frame(video: Path, last: str, first: int) -> None:
    with camera_of(video, last) as camera:
        assert level(camera.read()) == first


def test_a_looped_video_begins_again(video: Path) -> None:
    with camera_of(video, "parts.avi#38", loop=True) as camera:
        assert [level(camera.read()) for _ in range(3)] == [39, 0, 1]


def test_a_video_keeps_its_pace(video: Path) -> None:
    waits: list[float] = []
    settings = VideoCamera(kind="video", path=video, rate_fps=0.5)
    with OpenCvCamera(settings, CLOCK, wait=waits.append) as camera:
        for _ in range(3):
            camera.read()
    assert len(waits) == 2
    assert 1.5 < waits[0] <= 2


@pytest.mark.parametrize("share", [0.4, 0.6, 0.93])
def test_a_truncated_video_is_an_error_after_its_whole_frames(video: Path, share: float) -> None:
    data = video.read_bytes()
    video.write_bytes(data[: int(len(data) * share)])
    levels: list[int] = []

    def look(frame: Frame) -> None:
        levels.append(level(frame.capture))

    with running(VideoCamera(kind="video", path=video)) as source:
        seen = drive(source, lambda so_far: STALLED in so_far.states, look=look)
        assert f"cut short or damaged: {len(levels)} of 40" in (seen.events[-1].reason or "")
        finish(source, seen)
    assert levels == list(range(len(levels)))
    assert 0 < len(levels) < FRAMES
    assert FINISHED not in seen.states


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no video" * 1000])
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.avi"
    path.write_bytes(content)
    with pytest.raises(CameraError, match=r"x\.avi: is not a video"):
        camera_of(path).__enter__()
    with pytest.raises(CameraError, match=r"y\.avi: there is no such"):
        camera_of(tmp_path / "y.avi").__enter__()


def test_a_network_camera_that_stops_sending_is_stalled_and_comes_back() -> None:
    deadline_s = 1.5
    with mjpeg_camera() as sender:
        settings = stream(sender.url, read_deadline_s=deadline_s, open_timeout_s=1.0)
        with running(settings) as source:
            seen = drive(source, lambda so_far: len(so_far.frames) >= 20)
            sender.process.send_signal(signal.SIGSTOP)
            drive(source, lambda so_far: STALLED in so_far.states, seen=seen)
            assert seen.time_of(STALLED) - seen.last_frame_s < deadline_s + 0.5
            before_s = time.monotonic()
            assert drive(source, lambda _: time.monotonic() > before_s + 2.5, within_s=5).frames == []
            sender.process.send_signal(signal.SIGCONT)
            returned_s = time.monotonic()
            drive(source, lambda so_far: so_far.states[-1] is RUNNING, seen=seen)
            assert time.monotonic() - returned_s < 5
            drive(source, lambda so_far: len(so_far.frames) >= 30, seen=seen)
            finish(source, seen)
    assert seen.states[1:4] == [RUNNING, STALLED, RUNNING]
    assert seen.events[3].missed_since is not None
    assert seen.sequences == list(range(1, len(seen.frames) + 1))


def test_a_source_that_accepts_and_never_sends_is_stalled_until_it_does() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        settings = stream(address(port), read_deadline_s=1.5, open_timeout_s=1.0)
        with running(settings) as source:
            began_s = time.monotonic()
            seen = drive(source, lambda so_far: STALLED in so_far.states)
            assert time.monotonic() - began_s < 5
            reason = seen.events[-1].reason or ""
            assert f"http://127.0.0.1:{port}/video" in reason
            assert "secret" not in reason
            assert "hidden" not in reason
            silent.close()
            with mjpeg_camera(port=port):
                returned_s = time.monotonic()
                drive(source, lambda so_far: len(so_far.frames) >= 3, seen=seen)
                assert time.monotonic() - returned_s < 5
                finish(source, seen)
    assert seen.states[1:3] == [STALLED, RUNNING]


class JumpingClock:
    """The real time, moved on by hand."""

    def __init__(self) -> None:
        self.jump_s = 0.0

    def now(self) -> datetime:
        return CLOCK.now() + timedelta(seconds=self.jump_s)

    def monotonic_s(self) -> float:
        return CLOCK.monotonic_s() + self.jump_s


def test_a_stream_that_was_not_read_for_a_while_is_opened_anew() -> None:
    clock = JumpingClock()
    with mjpeg_camera() as sender, OpenCvCamera(stream(sender.url), clock) as camera:
        camera.read()
        camera.read()
        clock.jump_s = 3.0
        with pytest.raises(CameraError, match=r"was not read for 3\.\d s"):
            camera.read()


def test_a_missing_device_is_named_with_those_that_are_there() -> None:
    camera = OpenCvCamera(DeviceCamera(kind="v4l2", device="/dev/v4l/by-id/none-such"), CLOCK)
    with pytest.raises(CameraError, match=r"/dev/v4l/by-id/none-such: there is no such device; there are: "):
        camera.__enter__()


def test_a_device_that_is_no_camera_is_named(tmp_path: Path) -> None:
    camera = OpenCvCamera(DeviceCamera(kind="v4l2", device=str(tmp_path)), CLOCK)
    with pytest.raises(CameraError, match="cannot be opened"):
        camera.__enter__()


def test_controls_that_do_not_take_are_all_named(video: Path) -> None:
    # A video file is a real capture whose controls never take.
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    with pytest.raises(CameraError, match=r"exposure: its automatic cannot be switched off.*gain = 5 \(reads "):
        set_and_compare(capture, "cam", {"exposure": 100, "gain": 5})
    set_and_compare(capture, "cam", {})
    capture.release()


def test_reading_a_camera_that_is_not_open_is_an_error(video: Path) -> None:
    with pytest.raises(CameraError, match="not open"):
        camera_of(video).read()


def test_pictures_that_a_stream_held_back_are_old() -> None:
    delay = StreamDelay()
    for number in range(100):
        assert delay.of(number / 25, 1000 + number / 25) == pytest.approx(0, abs=1e-9)
    # Three seconds of silence, then everything at once: the oldest is three seconds old, the newest is not.
    ages_s = [delay.of(4 + number / 25, 1007.0) for number in range(76)]
    assert ages_s[0] == pytest.approx(3, abs=0.01)
    assert ages_s[-1] == pytest.approx(0, abs=0.01)


@given(st.lists(st.tuples(st.floats(0, 0.2), st.floats(0, 5)), min_size=1), st.floats(-1e-4, 1e-4))
def test_a_delay_is_never_negative_and_follows_a_drifting_clock(steps: list[tuple[float, float]], drift: float) -> None:
    delay, sent_s = StreamDelay(), 0.0
    held_s = [0.0, *(held for _, held in steps)]
    for gap_s, held in zip([0.0, *(gap for gap, _ in steps)], held_s, strict=True):
        sent_s += gap_s
        assert -1e-9 <= delay.of(sent_s * (1 + drift), 500 + sent_s + held) <= held + 1e-3 * sent_s + 1e-9


def test_a_stream_that_begins_anew_is_not_taken_for_late() -> None:
    delay = StreamDelay()
    delay.of(100.0, 1000.0)
    assert delay.of(0.0, 1001.0) == 0


@given(st.text("abc/", max_size=12), st.text("secr3t", min_size=1, max_size=8))
def test_an_address_is_shown_without_its_secrets(path: str, password: str) -> None:
    shown = shown_address(f"rtsp://operator:{password}@10.0.0.1:554/{path}?key=hidden")
    assert shown == f"rtsp://10.0.0.1:554/{path}"


def test_an_address_with_a_port_that_is_none_can_be_shown() -> None:
    assert shown_address("http://user:secret@camera:8o/video") == "http://camera:8o/video"
