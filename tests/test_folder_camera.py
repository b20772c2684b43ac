"""The folder camera over real files; time is the test's own: waiting moves it on and lets the next thing happen."""

import os
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
from camera_helpers import picture
from hypothesis import given
from hypothesis import strategies as st

from station.adapters.folder_camera import GIVE_UP_S, SETTLE_S, FolderCameraReader, natural_order
from station.errors import CameraError, EndOfStream
from station.messages import Capture, Reason
from station.settings import FolderCamera


class Line:
    """A clock that only moves when the camera waits; each wait lets the next scripted thing happen."""

    def __init__(self, *happenings: Callable[[], object]) -> None:
        self.happenings = deque(happenings)
        self.elapsed_s = 0.0
        self.waits = 0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.elapsed_s)

    def monotonic_s(self) -> float:
        return 1000.0 + self.elapsed_s

    def wait(self, seconds: float) -> None:
        self.waits += 1
        assert self.waits < 1000, "the camera waits for something that never comes"
        self.elapsed_s += seconds
        if self.happenings:
            self.happenings.popleft()()


def put(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(number))


def reader(
    folder: Path, line: Line | None = None, resume_after: str | None = None, **keys: object
) -> FolderCameraReader:
    line = line or Line()
    settings = FolderCamera.model_validate({"kind": "folder", "path": folder, **keys})
    return FolderCameraReader(settings, line, resume_after, line.wait)


def read_all(camera: FolderCameraReader, limit: int = 100) -> list[Capture]:
    captures: list[Capture] = []
    with camera:
        try:
            while len(captures) < limit:
                captures.append(camera.read())
        except EndOfStream:
            pass
    return captures


def sources(camera: FolderCameraReader, limit: int = 100) -> list[str | None]:
    return [capture.source for capture in read_all(camera, limit)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    for number in (1, 2, 10, 9):
        put(path / f"part{number}.png", number)
    return path


ORDERED = ["part1.png", "part2.png", "part9.png", "part10.png"]


def test_once_in_natural_order_with_the_right_pixels(folder: Path) -> None:
    captures = read_all(reader(folder))
    assert [capture.source for capture in captures] == ORDERED
    for capture, number in zip(captures, (1, 2, 9, 10), strict=True):
        assert capture.pixels is not None
        np.testing.assert_array_equal(capture.pixels, picture(number))


def test_subfolders_pattern_and_files_that_are_no_pictures(folder: Path) -> None:
    put(folder / "b" / "x.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "part3.png.tmp").write_bytes(b"half")
    put(folder / ".hidden.png")
    (folder / "directory.png").mkdir()
    assert sources(reader(folder)) == ["b/x.png", *ORDERED]
    assert sources(reader(folder, pattern="part1*.png")) == ["part1.png", "part10.png"]


def test_by_default_everything_is_found_that_a_glob_finds(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for path in (folder / "b" / "c" / "x.PNG", folder / ".d" / "y.jpg", elsewhere / "z.png"):
        put(path)
    (folder / "b" / "link.png").symlink_to(elsewhere / "z.png")
    (folder / "b" / "broken.png").symlink_to(elsewhere / "none.png")
    (folder / "b" / "folder").symlink_to(elsewhere)
    found = set(sources(reader(folder)))
    assert found == set(sources(reader(folder, pattern="**/*.*")))
    assert {"b/c/x.PNG", ".d/y.jpg", "b/link.png"} <= found


def test_a_list_file_gives_the_order_and_may_repeat(folder: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("part9.png\n\npart1.png\r\nmissing.png\npart9.png\n")
    captures = read_all(reader(folder, list_file=listing))
    assert [capture.source for capture in captures] == ["part9.png", "part1.png", "missing.png", "part9.png"]
    assert [capture.fault for capture in captures] == [None, None, Reason.UNREADABLE, None]


@pytest.mark.parametrize("content", [b"../part1.png\n", b"/etc/part1.png\n", b"\xff\xfe\x00", b"\n\n"])
def test_a_bad_list_file_is_named(folder: Path, tmp_path: Path, content: bytes) -> None:
    listing = tmp_path / "list.txt"
    listing.write_bytes(content)
    with reader(folder, list_file=listing) as camera, pytest.raises(CameraError, match=r"list\.txt"):
        camera.read()


def test_loop_begins_again(folder: Path) -> None:
    assert sources(reader(folder, mode="loop"), limit=6) == [*ORDERED, "part1.png", "part2.png"]


@pytest.mark.parametrize(
    ("last", "rest"),
    [("part2.png", ORDERED[2:]), ("part5.png", ORDERED[2:]), ("part10.png", []), ("part0.png", ORDERED)],
)
def test_once_goes_on_after_the_last_one_even_if_it_is_gone(folder: Path, last: str, rest: list[str]) -> None:
    assert sources(reader(folder, resume_after=last)) == rest


def test_loop_goes_on_after_the_last_one(folder: Path) -> None:
    assert sources(reader(folder, resume_after="part9.png", mode="loop"), limit=3) == ["part10.png", *ORDERED[:2]]


def test_what_cannot_be_decoded_is_reported_once(folder: Path) -> None:
    (folder / "part3.png").write_bytes(b"\x89PNG but not really IEND\xaeB`\x82")
    (folder / "part4.jpg").write_bytes(cv2.imencode(".jpg", picture(4))[1].tobytes()[:-400])
    (folder / "part5.bmp").touch()
    captures = read_all(reader(folder))
    assert [capture.source for capture in captures if capture.fault is Reason.UNREADABLE] == [
        *("part3.png", "part4.jpg", "part5.bmp")
    ]
    assert all(capture.pixels is None for capture in captures if capture.fault)


def test_a_file_that_is_still_being_copied_is_waited_for(folder: Path) -> None:
    whole = (folder / "part1.png").read_bytes()
    late = folder / "part1.png"
    late.write_bytes(whole[:100])
    grow = [lambda end=end: late.write_bytes(whole[:end]) for end in range(200, len(whole), 400)]
    line = Line(*grow, lambda: late.write_bytes(whole))
    captures = read_all(reader(folder, line))
    assert [capture.source for capture in captures] == ORDERED
    assert all(capture.fault is None for capture in captures)


def test_many_fresh_files_are_waited_for_together(tmp_path: Path) -> None:
    for number in range(50):
        put(tmp_path / f"{number}.png")
    line = Line()
    assert len(read_all(reader(tmp_path, line))) == 50
    assert line.elapsed_s < 2 * SETTLE_S


def test_pace(folder: Path) -> None:
    line = Line()
    captures = read_all(reader(folder, line, rate_fps=4.0))
    times_s = np.array([capture.captured_monotonic_s for capture in captures])
    np.testing.assert_allclose(np.diff(times_s), 0.25)


def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="nowhere"):
        reader(tmp_path / "nowhere").__enter__()
    with reader(tmp_path) as camera, pytest.raises(CameraError, match=r"there is no picture.*\.png"):
        camera.read()


def test_names_that_are_not_utf8_are_escaped_and_found_again(tmp_path: Path) -> None:
    put(tmp_path / "a1.png")
    put(tmp_path / "a2.png")
    (tmp_path / "a1.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/a1\xff.png"))
    assert sources(reader(tmp_path)) == ["a1\\xff.png", "a2.png"]
    assert sources(reader(tmp_path, resume_after="a1\\xff.png")) == ["a2.png"]


# watch


def arrive(path: Path, number: int, changed: int) -> None:
    """Put a picture whose time of change is later than all before it: the file system's clock is a coarse one."""
    before = {other.stat().st_ctime_ns for other in path.parent.rglob("*") if other.is_file()}
    put(path, number)
    while path.stat().st_ctime_ns in before:
        path.chmod(0o644)
    os.utime(path, (changed, changed))


def test_watch_takes_pictures_in_the_order_of_arrival(tmp_path: Path) -> None:
    names = ["z.png", "a.png", "m.png"]
    for number, name in enumerate(names):
        # What a copier sets must not matter.
        arrive(tmp_path / name, number, changed=1_000_000_000 - number)
    line = Line(*[lambda: None] * 10, lambda: put(tmp_path / "b.png"))
    assert sources(reader(tmp_path, line, mode="watch"), limit=4) == [*names, "b.png"]


def test_watch_never_takes_half_a_file(tmp_path: Path) -> None:
    whole = cv2.imencode(".png", picture(5))[1].tobytes()
    path = tmp_path / "new.png"
    pieces = [lambda end=end: path.write_bytes(whole[:end]) for end in range(0, len(whole), 100)]
    pauses: list[Callable[[], object]] = []
    for piece in pieces:
        # The copier rests for longer than a file needs to settle.
        pauses += [piece, lambda: None, lambda: None, lambda: None, lambda: None]
    line = Line(*pauses, lambda: path.write_bytes(whole))
    (capture,) = read_all(reader(tmp_path, line, mode="watch"), limit=1)
    assert capture.pixels is not None
    np.testing.assert_array_equal(capture.pixels, picture(5))


def test_watch_gives_a_damaged_file_up_and_takes_it_again_when_it_is_mended(tmp_path: Path) -> None:
    whole = cv2.imencode(".png", picture(5))[1].tobytes()
    path = tmp_path / "p.png"
    path.write_bytes(whole[:-20])
    line = Line()
    with reader(tmp_path, line, mode="watch") as camera:
        damaged = camera.read()
        assert damaged.fault is Reason.UNREADABLE
        assert line.elapsed_s >= GIVE_UP_S
        line.happenings.append(lambda: path.write_bytes(whole))
        mended = camera.read()
    assert mended.source == "p.png"
    assert mended.pixels is not None


def test_watch_takes_a_name_with_new_content_as_a_new_picture(tmp_path: Path) -> None:
    put(tmp_path / "latest.png", 1)
    line = Line(*[lambda: None] * 20)
    with reader(tmp_path, line, mode="watch") as camera:
        camera.read()
        line.happenings.extend([lambda: None, lambda: put(tmp_path / "latest.png", 2)])
        second = camera.read()
    assert second.pixels is not None
    np.testing.assert_array_equal(second.pixels, picture(2))


def test_a_change_of_rights_is_no_new_picture(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    line = Line()
    with reader(tmp_path, line, mode="watch") as camera:
        camera.read()
        line.happenings.extend([lambda: (tmp_path / "a.png").chmod(0o600), *[lambda: None] * 10])
        line.happenings.append(lambda: put(tmp_path / "b.png"))
        assert camera.read().source == "b.png"


def test_watch_goes_on_after_the_last_one(tmp_path: Path) -> None:
    for number, name in enumerate(["z.png", "a.png", "m.png"]):
        arrive(tmp_path / name, number, changed=1_000_000_000)
    assert sources(reader(tmp_path, resume_after="z.png", mode="watch"), limit=2) == ["a.png", "m.png"]
    # Nobody can say what came after a file that is gone.
    assert sources(reader(tmp_path, resume_after="gone.png", mode="watch"), limit=3) == ["z.png", "a.png", "m.png"]


def test_watch_waits_instead_of_spinning_and_slows_down_in_large_folders(tmp_path: Path) -> None:
    line = Line(*[lambda: None] * 50, lambda: put(tmp_path / "a.png"))
    sources(reader(tmp_path, line, mode="watch"), limit=1)
    assert line.elapsed_s / line.waits >= 0.19


class Slow(Line):
    """Time passes also while the camera looks: three seconds from one look at the clock to the next."""

    def monotonic_s(self) -> float:
        self.elapsed_s += 3
        return super().monotonic_s()


def test_watch_takes_what_it_finds_in_a_large_folder_without_a_long_wait(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"{number}.png", number)
    line = Slow()
    with reader(tmp_path, line, mode="watch") as camera:
        assert camera.read().source == "0.png"
        assert line.elapsed_s < 20


def test_a_folder_that_goes_away_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "share"
    put(folder / "a.png")
    line = Line()
    with reader(folder, line, mode="watch") as camera:
        camera.read()
        (folder / "a.png").unlink()
        folder.rmdir()
        with pytest.raises(CameraError, match="share"):
            camera.read()


@given(st.lists(st.from_regex(r"[a-c]{0,2}[0-9]{0,3}[a-c.]?", fullmatch=True), max_size=8, unique=True))
def test_natural_order_is_total(names: list[str]) -> None:
    assert len({natural_order(name) for name in names}) == len(names)


@given(st.lists(st.integers(0, 10**30), unique=True), st.sampled_from(["", "part", "a-", "x.y"]))
def test_natural_order_counts(numbers: list[int], prefix: str) -> None:
    names = [f"{prefix}{number}.png" for number in numbers]
    assert sorted(names, key=natural_order) == [f"{prefix}{number}.png" for number in sorted(numbers)]
