"""Logs of the simulated oven and press, as a logger would write them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from station.errors import ConfigurationError
from station.simulated_process import CHANNELS, DEFECTS_AFTER_S, SimulatedProcess

BEGIN = datetime(2026, 1, 5, 6, tzinfo=UTC)
"""Time of the first row of each log."""
LABEL = "anomaly"


@dataclass(frozen=True, slots=True)
class ProcessKnobs:
    """What to write.

    Attributes:
        logs: number of files.
        minutes: length of each.
        first_seed: of the first log; each further one has the next.
        rate_hz: rows a second.
        drift_after_s: the heater begins to fail; None: never. Then a column `anomaly` says since when.
    """

    logs: int = 4
    minutes: float = 60.0
    first_seed: int = 2000
    rate_hz: float = 10.0
    drift_after_s: float | None = None


def render_logs(out: Path, knobs: ProcessKnobs) -> list[Path]:
    """Write the logs; the same knobs give the same files. Returns their paths.

    Raises:
        ConfigurationError: the folder holds something already, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConfigurationError(f"--out {out}: is not empty; choose another folder")
        return [
            _render(out / f"process-{seed}.csv", seed, knobs)
            for seed in range(knobs.first_seed, knobs.first_seed + knobs.logs)
        ]
    except OSError as exc:
        raise ConfigurationError(f"--out {out}: cannot be written: {exc.strerror}") from exc


def _render(path: Path, seed: int, knobs: ProcessKnobs) -> Path:
    process = SimulatedProcess(seed, knobs.rate_hz, knobs.drift_after_s)
    heading = ["timestamp", *(f"{name} [{unit}]" for name, unit in CHANNELS)]
    if knobs.drift_after_s is not None:
        heading.append(LABEL)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(",".join(heading) + "\n")
        for row in range(round(knobs.minutes * 60 * knobs.rate_hz)):
            elapsed_s = row / knobs.rate_hz
            at = BEGIN + timedelta(seconds=elapsed_s)
            cells = [at.isoformat(timespec="milliseconds"), *(f"{value:.3f}" for value in process.next())]
            if knobs.drift_after_s is not None:
                cells.append(str(int(elapsed_s >= knobs.drift_after_s)))
            file.write(",".join(cells) + "\n")
    return path


def onset_and_defects(knobs: ProcessKnobs) -> str:
    """One line for people on what the logs hold."""
    if knobs.drift_after_s is None:
        return "normal operation"
    return (
        f"the heater begins to fail {knobs.drift_after_s:g} s after the begin, "
        f"the line's defects rise {DEFECTS_AFTER_S:g} s later"
    )
