"""A network camera for tests: MJPEG over HTTP, as a process of its own that can be stopped with SIGSTOP.

``python mjpeg_server.py RATE_FPS PORT`` prints its port and serves until its standard input closes. Each picture is
of one grey level: the frame's number modulo 200, plus 20.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np


class _Handler(BaseHTTPRequestHandler):
    rate_fps = 25.0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        pace = threading.Event()
        number = 0
        try:
            while True:
                level = 20 + number % 200
                jpeg = cv2.imencode(".jpg", np.full((120, 160, 3), level, np.uint8))[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                self.wfile.write(head + jpeg + b"\r\n")
                number += 1
                pace.wait(1 / self.rate_fps)
        except OSError:
            # The camera's client went away.
            return

    def log_message(self, *_: object) -> None:
        return


def main() -> None:
    _Handler.rate_fps = float(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


def address(port: int) -> str:
    """The camera's address, with things in it that nobody must see."""
    return f"http://user:secret@127.0.0.1:{port}/video?token=hidden"


@dataclass(frozen=True)
class MjpegCamera:
    """The running server."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def mjpeg_camera(rate_fps: float = 25.0, port: int = 0) -> Iterator[MjpegCamera]:
    """Run the server; port 0 lets it choose one."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(rate_fps), str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdout, process.stdin:
        try:
            port = int(process.stdout.readline())
            yield MjpegCamera(address(port), process)
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
