"""Exit codes of the commands; the README's table says the same."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit code means."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BUNDLE = 3
    CAMERA = 4
    BROKER = 5
    PICTURE = 6
    SENSORS = 7
    CALIBRATION = 8
    REJECT = 9
    CONFIGURATION = 78
    """EX_CONFIG of sysexits.h: the service manager does not restart on it."""
