"""What tells one camera from another, so that a calibration is not used with the wrong one."""

from pathlib import Path
from typing import assert_never

from station.settings import (
    CameraSettings,
    DeviceCamera,
    FolderCamera,
    SimulatedCamera,
    StreamCamera,
    VideoCamera,
    shown_address,
)

BY_ID = Path("/dev/v4l/by-id")
_SYSFS = Path("/sys/class/video4linux")


def identify(settings: CameraSettings, by_id: Path = BY_ID, sysfs: Path = _SYSFS) -> str | None:
    """The camera's own id; None: it is not there, so nobody can say.

    A device has the name that udev gives it by maker, model and serial number, however it is numbered today; where
    there is none, its driver's name for it. A network camera has its address, files have their folder's or their own
    name, the simulated line its seed.

    Args:
        settings: the camera's table.
        by_id: folder of udev's links.
        sysfs: folder in which the kernel describes its video devices.
    """
    match settings:
        case DeviceCamera():
            return _device(settings.device, by_id, sysfs)
        case StreamCamera():
            return f"stream {shown_address(settings.url.get_secret_value())}"
        case VideoCamera():
            return f"video {settings.path.name}"
        case FolderCamera():
            return f"folder {settings.path.name}"
        case SimulatedCamera():
            return f"simulated line {settings.seed}"
        case _:
            assert_never(settings)


def _device(device: str | int, by_id: Path, sysfs: Path) -> str | None:
    path = Path(f"/dev/video{device}" if isinstance(device, int) else device)
    if path.parent == by_id:
        return path.name
    try:
        node = path.resolve(strict=True)
    except OSError:
        return None
    if by_id.is_dir():
        links = sorted(link.name for link in by_id.iterdir() if link.resolve() == node)
        if links:
            return links[0]
    try:
        return f"{node.name} {(sysfs / node.name / 'name').read_text(encoding='utf-8').strip()}"
    except OSError:
        return node.name
