"""From a camera's settings to a camera; runs in the camera's own process and imports no more than cameras need."""

from typing import assert_never

from station.adapters.folder_camera import FolderCameraReader
from station.adapters.opencv_camera import OpenCvCamera
from station.adapters.simulated_line import SimulatedLine, SimulatedLineCamera
from station.adapters.system_clock import SystemClock
from station.ports import Camera
from station.settings import (
    CameraSettings,
    DeviceCamera,
    FolderCamera,
    SimulatedCamera,
    StreamCamera,
    VideoCamera,
)


def make_camera(settings: CameraSettings, *, resume_after: str | None = None) -> Camera:
    """Return the camera that the settings describe, not yet open.

    Args:
        settings: one camera's table.
        resume_after: source of the last picture that has a verdict; sources that can be read again go on behind it.
    """
    clock = SystemClock()
    match settings:
        case FolderCamera():
            return FolderCameraReader(settings, clock, resume_after)
        case SimulatedCamera():
            rise = None
            if settings.rise_after_s is not None:
                rise = (settings.rise_after_s, settings.risen_defect_share)
            line = SimulatedLine(
                clock,
                seed=settings.seed,
                rate_fps=settings.rate_fps,
                defect_share=settings.defect_share,
                rise=rise,
            )
            return SimulatedLineCamera(line, settings.frames)
        case DeviceCamera() | StreamCamera():
            return OpenCvCamera(settings, clock)
        case VideoCamera():
            return OpenCvCamera(settings, clock, resume_after)
        case _:
            assert_never(settings)
