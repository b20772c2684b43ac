"""Two cameras outside the station that stamp a number into each picture and keep their own list of what they sent.

``python numbered_camera.py RATE_FPS FOLDER LOG`` runs both as one process until its standard input closes, and prints
the port of the first. That is a network camera (MJPEG over HTTP), which exposes at its rate whether anybody looks or
not, from the first look on. The other drops pictures into FOLDER, one file each, at the same rate as long as there is
room for them: whoever judges them has to clear them away. LOG gets one line for each picture, written before it leaves:
`live NUMBER SECONDS VIEWERS` or `file NUMBER SECONDS NAME`, in wall time.

The number is written in blots of the kind that `tiny_detector` learns to find, one cell a bit, with check bits; so it
can be read back from the defects of a verdict, which is what the station made of the picture.
"""

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from station.messages import Defect, Pixels

CELL_PX = 32
COLUMNS = 8
BITS = 3 * COLUMNS
CHECK_BITS = 6
FILES = 2000
"""The folder has room for about this many."""
ROOM_EVERY = 50
"""After so many pictures it is looked how many files are there."""
MODULUS = 61
"""The largest prime below 2**CHECK_BITS: one wrong bit always shows, as 2**n is never a multiple of it."""


def stamped(number: int) -> Pixels:
    """The picture of a number: dark blots on the white rows, light ones on the dark row between them."""
    pixels = np.full((3 * CELL_PX, COLUMNS * CELL_PX), 230, np.uint8)
    pixels[CELL_PX : 2 * CELL_PX] = 20
    word = number << CHECK_BITS | number % MODULUS
    for bit in range(BITS):
        if word >> bit & 1:
            row, column = divmod(bit, COLUMNS)
            centre = (CELL_PX * column + CELL_PX // 2, CELL_PX * row + CELL_PX // 2)
            cv2.circle(pixels, centre, 5, 230 if row == 1 else 20, cv2.FILLED)
    return pixels


def read_number(defects: Sequence[Defect]) -> int | None:
    """The number that stood in a picture with these defects; None when it cannot be read."""
    word = 0
    for defect in defects:
        x, y = defect.box.centre_px
        word |= 1 << int(y // CELL_PX) * COLUMNS + int(x // CELL_PX)
    number, check = word >> CHECK_BITS, word & ((1 << CHECK_BITS) - 1)
    return number if number % MODULUS == check else None


@dataclass(frozen=True, slots=True)
class Sent:
    """One line of the cameras' own list."""

    number: int
    at_s: float
    watched: bool


@dataclass(frozen=True, slots=True)
class NumberedCameras:
    """The running cameras."""

    url: str
    folder: Path
    log: Path

    def sent(self, kind: str) -> list[Sent]:
        """What the camera of this kind, `live` or `file`, has sent so far."""
        lines = (line.split() for line in self.log.read_text(encoding="ascii").splitlines())
        return [Sent(int(number), float(at_s), rest != "0") for of_kind, number, at_s, rest in lines if of_kind == kind]


@contextmanager
def numbered_cameras(rate_fps: float, folder: Path) -> Iterator[tuple[NumberedCameras, "subprocess.Popen[bytes]"]]:
    """Run both; they stop when the process's standard input is closed, at the latest here."""
    pictures, log = folder / "pictures", folder / "sent.txt"
    pictures.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(rate_fps), str(pictures), str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdout, process.stdin:
        try:
            port = int(process.stdout.readline())
            yield NumberedCameras(f"http://127.0.0.1:{port}/", pictures, log), process
        finally:
            process.stdin.close()
            process.wait()


class _Camera:
    """Exposes at a rate from the first look on, for all who look at it then."""

    def __init__(self, rate_fps: float, folder: Path, log: IO[str]) -> None:
        self._rate_fps = rate_fps
        self._folder = folder
        self._log = log
        self._lock = threading.Lock()
        self._viewers: list[queue.SimpleQueue[bytes]] = []
        self._looked_at = threading.Event()
        self._stop = threading.Event()

    def look(self) -> "queue.SimpleQueue[bytes]":
        pictures: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        with self._lock:
            self._viewers.append(pictures)
        self._looked_at.set()
        return pictures

    def leave(self, pictures: "queue.SimpleQueue[bytes]") -> None:
        with self._lock:
            self._viewers.remove(pictures)

    def stop(self) -> None:
        self._stop.set()
        self._looked_at.set()

    def run(self) -> None:
        self._looked_at.wait()
        begin_s = time.monotonic()
        number = files = 0
        room = FILES
        while not self._stop.wait(max(0.0, begin_s + number / self._rate_fps - time.monotonic())):
            number += 1
            self._expose(number)
            if number % ROOM_EVERY == 0:
                room = FILES - sum(1 for _ in self._folder.iterdir())
            if room > 0:
                room -= 1
                files += 1
                self._drop(files)
            self._log.flush()

    def _expose(self, number: int) -> None:
        jpeg = _jpeg(number)
        with self._lock:
            self._log.write(f"live {number} {time.time():.6f} {len(self._viewers)}\n")
            for viewer in self._viewers:
                viewer.put(jpeg)

    def _drop(self, number: int) -> None:
        name = f"{number:07}.jpg"
        part = self._folder / f".{name}"
        part.write_bytes(_jpeg(number))
        self._log.write(f"file {number} {time.time():.6f} {name}\n")
        self._log.flush()
        part.rename(self._folder / name)


def _jpeg(number: int) -> bytes:
    return cv2.imencode(".jpg", stamped(number), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


class _Handler(BaseHTTPRequestHandler):
    camera: _Camera

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        pictures = self.camera.look()
        try:
            while True:
                jpeg = pictures.get()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                self.wfile.write(head + jpeg + b"\r\n")
        except OSError:
            # The station that looked was killed.
            return
        finally:
            self.camera.leave(pictures)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until standard input closes."""
    rate_fps, folder, log_path = float(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    with log_path.open("w", encoding="ascii") as log:
        camera = _Camera(rate_fps, folder, log)
        _Handler.camera = camera
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        exposing = threading.Thread(target=camera.run)
        exposing.start()
        print(server.server_port, flush=True)
        sys.stdin.read()
        camera.stop()
        exposing.join()


if __name__ == "__main__":
    main()
