"""Cameras behind OpenCV: Video4Linux devices, network streams (RTSP, HTTP) and video files.

OpenCV reads ``OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT`` when it is loaded, so whoever starts the process sets it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np

from station.errors import CameraError, EndOfStream
from station.messages import Capture, Pixels
from station.ports import Clock
from station.settings import DeviceCamera, StreamCamera, VideoCamera, shown_address

STALE_PAUSE_S = 1.0
"""A stream without times of its own that was not read for this long holds old pictures: it is opened anew."""
CREDIBLE_AGE_S = 60.0
"""A driver's time stamp that says more than this, or the future, is not believed."""

_TRIGGERED_READ_TIMEOUT_MS = 24 * 3600 * 1000
_BRIEF_WAIT_S = 0.05
_BITS_PER_CHARACTER = 8
_RATE_TOLERANCE = 0.05
"""Drivers round a frame interval to what the sensor can do: 29.97 for 30."""
_CONTROL_TOLERANCE = 0.01
_V4L2_EXPOSURE_MANUAL = 1
"""`enum v4l2_exposure_auto_type` of linux/v4l2-controls.h."""
_EXACT_COUNT_SUFFIXES = frozenset({".avi", ".mp4", ".mov", ".m4v"})
"""Containers whose header counts the frames; for others OpenCV multiplies duration and rate."""
_ESTIMATE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class _Control:
    """An OpenCV property and the automatic to switch off before it is set, with the value that means off."""

    value: int
    automatic: int | None = None
    off: float = 0.0


_CONTROLS: Mapping[str, _Control] = {
    "exposure": _Control(cv2.CAP_PROP_EXPOSURE, cv2.CAP_PROP_AUTO_EXPOSURE, _V4L2_EXPOSURE_MANUAL),
    "white_balance": _Control(cv2.CAP_PROP_WB_TEMPERATURE, cv2.CAP_PROP_AUTO_WB),
    "focus": _Control(cv2.CAP_PROP_FOCUS, cv2.CAP_PROP_AUTOFOCUS),
    "gain": _Control(cv2.CAP_PROP_GAIN),
    "brightness": _Control(cv2.CAP_PROP_BRIGHTNESS),
    "contrast": _Control(cv2.CAP_PROP_CONTRAST),
    "saturation": _Control(cv2.CAP_PROP_SATURATION),
}


class OpenCvCamera:
    """Delivers the pictures of a device, a stream or a video file.

    A device's controls are set with the matching automatics off and read back; a value that did not take is an error,
    because thresholds hold for the light and the sharpness that they were chosen at. A device's pictures carry the
    driver's time of exposure. An RTSP stream's pictures carry their arrival minus the delay by which they fell behind
    the stream's own times, so that what a buffer held back is seen to be old. A video file's frames have the source
    ``<file name>#<number from 0>``.

    Args:
        settings: which kind, and how.
        clock: time.
        resume_after: of a video file: source of the last frame that was handed on.
        wait: sleeps for some seconds.
    """

    def __init__(
        self,
        settings: DeviceCamera | StreamCamera | VideoCamera,
        clock: Clock,
        resume_after: str | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._resume_after = resume_after
        self._wait = wait
        self._capture: cv2.VideoCapture | None = None
        self._next_index = 0
        self._due_s: float | None = None
        self._delay = StreamDelay()
        self._left_driver_s: float | None = None

    def __enter__(self) -> Self:
        self._left_driver_s = None
        match self._settings:
            case DeviceCamera():
                self._capture = _open_device(self._settings)
            case StreamCamera():
                self._capture = _open_stream(self._settings)
                self._delay = StreamDelay()
            case VideoCamera():
                self._next_index = _index_after(self._resume_after, self._settings.path)
                self._capture = _open_video(self._settings.path, self._next_index)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def read(self) -> Capture:
        """Wait for the next picture; with a driver that hangs, for ever.

        Raises:
            CameraError: nothing came in time, the device is gone, or a video file ends before its header says so.
            EndOfStream: the video file is finished.
        """
        capture = self._capture
        if capture is None:
            raise CameraError("the camera is not open")
        match self._settings:
            case DeviceCamera():
                return self._read_device(capture, self._settings)
            case StreamCamera():
                return self._read_stream(capture, self._settings)
            case VideoCamera():
                return self._read_video(capture, self._settings)

    def adjust(self, controls: Mapping[str, float]) -> None:
        """Set controls, with the matching automatics off, and read each back.

        Raises:
            CameraError: names every control that did not take its value; or there are none to set.
        """
        if self._capture is None or not isinstance(self._settings, DeviceCamera):
            raise CameraError("the camera is not open, or has no controls")
        set_and_compare(self._capture, str(_device_path(self._settings)), controls)

    def _read_device(self, capture: cv2.VideoCapture, settings: DeviceCamera) -> Capture:
        path = _device_path(settings)
        while (pixels := _grab(capture)) is None:
            if settings.expects == "continuous":
                raise CameraError(f"{path}: delivers no picture; is it still plugged in, or used by another program?")
            if not path.exists():
                raise CameraError(f"{path}: is gone")
            # No part came within the driver's own time-out; should it return at once, this keeps the processor free.
            self._wait(_BRIEF_WAIT_S)
        exposed_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
        age_s = self._clock.monotonic_s() - exposed_s
        return self._taken(pixels, age_s if 0 <= age_s <= CREDIBLE_AGE_S else 0.0)

    def _read_stream(self, capture: cv2.VideoCapture, settings: StreamCamera) -> Capture:
        shown = shown_address(settings.url.get_secret_value())
        has_times = settings.url.get_secret_value().startswith("rtsp")
        now_s = self._clock.monotonic_s()
        if not has_times and self._left_driver_s is not None and now_s - self._left_driver_s > STALE_PAUSE_S:
            raise CameraError(f"{shown}: was not read for {now_s - self._left_driver_s:.1f} s: what it holds is old")
        pixels = _grab(capture)
        self._left_driver_s = now_s = self._clock.monotonic_s()
        if pixels is None:
            raise CameraError(f"{shown}: delivers no picture any more")
        age_s = self._delay.of(capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3, now_s) if has_times else 0.0
        return self._taken(pixels, min(age_s, CREDIBLE_AGE_S))

    def _read_video(self, capture: cv2.VideoCapture, settings: VideoCamera) -> Capture:
        self._keep_pace(settings.rate_fps)
        pixels = _grab(capture)
        if pixels is None:
            _check_whole(capture, settings.path, self._next_index)
            if not settings.loop or self._next_index == 0:
                raise EndOfStream(f"{settings.path}: all {self._next_index} frames were delivered")
            capture.release()
            self._next_index = 0
            self._capture = capture = _open_video(settings.path, 0)
            pixels = _grab(capture)
            if pixels is None:
                raise CameraError(f"{settings.path}: cannot be read again from its beginning")
        source = f"{settings.path.name}#{self._next_index}"
        self._next_index += 1
        return self._taken(pixels, 0.0, source)

    def _taken(self, pixels: Pixels, age_s: float, source: str | None = None) -> Capture:
        at = self._clock.now() - timedelta(seconds=age_s)
        return Capture(pixels, at, self._clock.monotonic_s() - age_s, source=source)

    def _keep_pace(self, rate_fps: float | None) -> None:
        if rate_fps is None:
            return
        now_s = self._clock.monotonic_s()
        if self._due_s is not None and now_s < self._due_s:
            self._wait(self._due_s - now_s)
        self._due_s = max(now_s, self._due_s or now_s) + 1 / rate_fps


class StreamDelay:
    """How far a stream's pictures arrive behind the least delay that was seen.

    The sender's clock and ours drift apart, so the least delay may rise again, by a thousandth of the time that passes:
    ten times what two poor quartz clocks do.
    """

    _LEAK = 1e-3

    def __init__(self) -> None:
        self._least_s: float | None = None
        self._last_stamp_s = 0.0
        self._last_arrival_s = 0.0

    def of(self, stamp_s: float, arrival_s: float) -> float:
        """Seconds that this picture was held back; `stamp_s` is the stream's own time, `arrival_s` ours."""
        offset_s = arrival_s - stamp_s
        if self._least_s is None or stamp_s < self._last_stamp_s:
            # The first picture, or a stream that began anew.
            self._least_s = offset_s
        else:
            drift_s = self._LEAK * max(0.0, arrival_s - self._last_arrival_s)
            self._least_s = min(offset_s, self._least_s + drift_s)
        self._last_stamp_s, self._last_arrival_s = stamp_s, arrival_s
        return offset_s - self._least_s


def set_and_compare(capture: cv2.VideoCapture, camera: str, controls: Mapping[str, float]) -> None:
    """Set a device's controls, automatics off first, and read each back.

    Raises:
        CameraError: names every control that did not take its value, with what the camera says instead.
    """
    refused = []
    for name, wanted in controls.items():
        control = _CONTROLS[name]
        if control.automatic is not None:
            capture.set(control.automatic, control.off)
            if (found := capture.get(control.automatic)) != control.off:
                refused.append(f"{name}: its automatic cannot be switched off (reads {found:g})")
                continue
        capture.set(control.value, wanted)
        found = capture.get(control.value)
        if abs(found - wanted) > max(1.0, abs(wanted) * _CONTROL_TOLERANCE):
            refused.append(f"{name} = {wanted:g} (reads {found:g})")
    if refused:
        raise CameraError(f"{camera}: controls did not take their values: {'; '.join(refused)}")


def _device_path(settings: DeviceCamera) -> Path:
    return Path(f"/dev/video{settings.device}" if isinstance(settings.device, int) else settings.device)


def _open_device(settings: DeviceCamera) -> cv2.VideoCapture:
    path = _device_path(settings)
    if not path.exists():
        others = sorted(str(other) for other in Path("/dev/v4l/by-id").glob("*")) or sorted(
            str(other) for other in Path("/dev").glob("video*")
        )
        raise CameraError(f"{path}: there is no such device; there are: {', '.join(others) or 'none'}")
    capture = cv2.VideoCapture(str(path), cv2.CAP_V4L2)
    try:
        if not capture.isOpened():
            raise CameraError(f"{path}: cannot be opened; is it used by another program, or are rights missing?")
        _set_format(capture, settings, str(path))
        set_and_compare(capture, str(path), {str(name): value for name, value in settings.controls.items()})
    except BaseException:
        capture.release()
        raise
    return capture


def _set_format(capture: cv2.VideoCapture, settings: DeviceCamera, camera: str) -> None:
    # The format first: sizes and rates depend on it. The conversion to BGR is asked for by name, so that the order of
    # the channels does not hang on what another program left behind.
    wanted: list[tuple[str, int, float, float]] = []
    if settings.pixel_format is not None:
        code = float(cv2.VideoWriter.fourcc(*settings.pixel_format))
        wanted.append(("pixel_format", cv2.CAP_PROP_FOURCC, code, 0))
    if settings.width_px is not None:
        wanted.append(("width_px", cv2.CAP_PROP_FRAME_WIDTH, settings.width_px, 0))
    if settings.height_px is not None:
        wanted.append(("height_px", cv2.CAP_PROP_FRAME_HEIGHT, settings.height_px, 0))
    if settings.rate_fps is not None:
        wanted.append(("rate_fps", cv2.CAP_PROP_FPS, settings.rate_fps, settings.rate_fps * _RATE_TOLERANCE))
    wanted.append(("conversion to BGR", cv2.CAP_PROP_CONVERT_RGB, 1, 0))
    for _, code_of_property, value, _ in wanted:
        capture.set(code_of_property, value)
    # Some drivers keep two; the age of each picture is judged by its own time stamp anyway.
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    refused = []
    for name, code_of_property, value, tolerance in wanted:
        found = capture.get(code_of_property)
        if abs(found - value) > tolerance:
            shown = (_four_characters(value), _four_characters(found)) if name == "pixel_format" else (value, found)
            refused.append(f"{name} = {shown[0]} (reads {shown[1]})")
    if refused:
        raise CameraError(f"{camera}: did not take: {'; '.join(refused)}")


def _four_characters(code: float) -> str:
    number = int(code)
    return "".join(chr(number >> shift & 0xFF) for shift in range(0, 4 * _BITS_PER_CHARACTER, _BITS_PER_CHARACTER))


def _open_stream(settings: StreamCamera) -> cv2.VideoCapture:
    url = settings.url.get_secret_value()
    continuous = settings.expects == "continuous"
    read_timeout_ms = round(settings.read_deadline_s * 1e3) if continuous else _TRIGGERED_READ_TIMEOUT_MS
    open_timeout_ms = round(settings.open_timeout_s * 1e3)
    parameters = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, open_timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, read_timeout_ms]
    capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, [*parameters, cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        raise CameraError(f"{shown_address(url)}: cannot be opened; is the camera on, and is the address right?")
    return capture


def _open_video(path: Path, first_index: int) -> cv2.VideoCapture:
    if not path.is_file():
        raise CameraError(f"{path}: there is no such video file")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise CameraError(f"{path}: is not a video that can be read, or its beginning or index is missing")
    if first_index:
        capture.set(cv2.CAP_PROP_POS_FRAMES, first_index)
    return capture


def _index_after(source: str | None, path: Path) -> int:
    if source is None:
        return 0
    name, _, index = source.rpartition("#")
    return int(index) + 1 if name == path.name and index.isdecimal() else 0


def _check_whole(capture: cv2.VideoCapture, path: Path, delivered: int) -> None:
    told = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    tolerance = 0 if path.suffix.lower() in _EXACT_COUNT_SUFFIXES else 1 + int(told * _ESTIMATE_TOLERANCE)
    if delivered < told - tolerance:
        raise CameraError(f"{path}: is cut short or damaged: {delivered} of {told} frames could be read")


def _grab(capture: cv2.VideoCapture) -> Pixels | None:
    try:
        taken, pixels = capture.read()
    except cv2.error as exc:
        raise CameraError(f"OpenCV: {exc.err}") from exc
    if not taken or pixels is None:
        return None
    if pixels.dtype != np.uint8:
        raise CameraError(f"pictures have {pixels.dtype} pixels; choose a pixel_format of 8 bits per channel")
    return np.asarray(pixels, np.uint8)
