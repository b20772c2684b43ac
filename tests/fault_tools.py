"""What the fault tests share: the long form, a station of its own as a child process, and tables of what was seen.

`FAULTS=long python -m pytest -s -m fault` takes the full numbers; with `FAULTS_OUT=FILE` each table is also appended to
FILE as one line of JSON.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LONG = os.environ.get("FAULTS") == "long"


def table(name: str, figures: Mapping[str, Any]) -> None:
    """Show figures, and keep them where FAULTS_OUT says."""
    width = max(map(len, figures))
    print(f"\n{name}")
    for what, value in figures.items():
        shown = f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value}"
        print(f"  {what:{width}}  {shown}")
    if out := os.environ.get("FAULTS_OUT"):
        with Path(out).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"fault": name, **figures}) + "\n")


class StationProcess:
    """`station run` on a configuration, started and ended as a service manager does."""

    def __init__(self, configuration: Path) -> None:
        self._configuration = configuration
        self.log = configuration.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "station", "run", "--config", str(self._configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={key: value for key, value in os.environ.items() if not key.startswith("STATION_")},
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL of the main process; whatever it started has to notice by itself."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Ask for an orderly stop and return the exit code."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            # The log then shows where each thread stood.
            self._process.send_signal(signal.SIGABRT)
            self._process.wait()
            raise


@contextmanager
def station_process(folder: Path, document: str) -> Iterator[StationProcess]:
    """Write the configuration; whatever still runs at the end is killed. The caller starts it."""
    configuration = folder / "station.toml"
    configuration.write_text(document, encoding="utf-8")
    station = StationProcess(configuration)
    try:
        yield station
    except BaseException:
        if station.log.exists():
            print(station.log.read_text(encoding="utf-8", errors="replace")[-4000:])
        raise
    finally:
        if station.is_running:
            station.kill()


@contextmanager
def small_file_system(folder: Path, size_bytes: int) -> Iterator[Path]:
    """An ext4 of its own; skips the test where that cannot be mounted."""
    image, place = folder / "disk.img", folder / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], capture_output=True, check=False)
    if (
        made.returncode
        or subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, check=False).returncode
    ):
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Another program takes every byte that is free or becomes free; in the end it gives them back."""
    ballast, stop = folder / "ballast", threading.Event()

    def work() -> None:
        with ballast.open("ab", buffering=0) as file:
            piece = 1 << 20
            while not stop.is_set():
                try:
                    file.write(bytes(piece))
                except OSError:
                    piece = max(512, piece // 2)
                    stop.wait(0.002)

    thread = threading.Thread(target=work, name="filling")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        ballast.unlink()
