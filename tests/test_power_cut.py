"""The power goes while the journal is written: in a virtual machine, with a disk that forgets what was not flushed.

The machine says of each verdict that the recorder hands to the publisher. After the power has come back, each of them
must be in the journal, and its chain must be whole. The same is done once with a journal that leaves out the fsync of
each commit, to see that this test would notice.
"""

import random
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fault_tools import LONG, table
from power_cut_guest import MODULES
from virtual_machine import ForgetfulDisk, machine, needs_machine, pack

pytestmark = [pytest.mark.fault, pytest.mark.timeout(3600 if LONG else 600)]

CUTS = 10 if LONG else 1
CONTROL_CUTS = 2 if LONG else 0
LEAST = 50
"""Verdicts published before the power goes, at least."""
DISK_BYTES = 96 << 20
IMPORTS = "station.recorder, station.adapters.memory, station.adapters.sqlite_journal, station.adapters.system_clock"


@dataclass
class Outcome:
    """What the machine said over all its lives."""

    sent: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    chains: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bytes]:
    """Kernel, RAM disk and an empty file system."""
    kernel, modules = needs_machine()
    folder = tmp_path_factory.mktemp("machine")
    tests = Path(__file__).parent
    initial = folder / "initial.cpio"
    more = [tests / "delivery_helpers.py", tests.parent / "station"]
    pack(initial, tests / "power_cut_guest.py", IMPORTS, more, modules, MODULES)
    image = folder / "disk.ext4"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    return kernel, initial, image.read_bytes()


def lives(parts: tuple[Path, Path, bytes], folder: Path, cuts: int, synchronous: str) -> tuple[Outcome, ForgetfulDisk]:
    """Switch on, look at what is there, write, cut the power; once more in the end to look."""
    kernel, initial, image = parts
    outcome, chance, pause = Outcome(), random.Random(7), threading.Event()
    with ForgetfulDisk(image, seed=11) as disk:
        for cut in range(cuts + 1):
            with machine(kernel, initial, disk, folder / "console.txt", f"synchronous={synchronous}") as box:
                kept: dict[int, tuple[int, int, int]] = {}
                while (words := box.line().split()) and words[0] != "READY":
                    if words[0] == "CHAIN":
                        outcome.chains.append(" ".join(words[1:]))
                    else:
                        epoch, first, last, count = map(int, words[1:])
                        kept[epoch] = (first, last, count)
                assert words, (folder / "console.txt").read_text("utf-8", "replace")[-3000:]
                for epoch, newest in outcome.sent.items():
                    first, last, count = kept.get(epoch, (1, 0, 0))
                    assert (first, count) == (1, last), "a hole in the journal"
                    outcome.lost += max(0, newest - last)
                    outcome.sent[epoch] = min(newest, last)
                if cut < cuts:
                    said = [box.line() for _ in range(chance.randint(LEAST, 8 * LEAST))]
                    pause.wait(chance.uniform(0, 0.2))
                    for line in [*said, *box.cut_the_power()]:
                        _, sent_epoch, sequence = line.split()
                        outcome.sent[int(sent_epoch)] = int(sequence)
    return outcome, disk


def test_a_power_cut_loses_no_verdict_that_was_published(parts: tuple[Path, Path, bytes], tmp_path: Path) -> None:
    outcome, disk = lives(parts, tmp_path, CUTS, "FULL")
    control = lives(parts, tmp_path, CONTROL_CUTS, "NORMAL")[0] if CONTROL_CUTS else None
    table(
        f"{CUTS} power cuts",
        {
            "cuts": CUTS,
            "published": sum(outcome.sent.values()),
            "lost": outcome.lost,
            "chains whole": outcome.chains.count("whole"),
            "flushes": disk.flushes,
            "forgotten by the disk (bytes)": disk.forgotten_bytes,
            "lost in the control without fsync": control.lost if control else "not done",
        },
    )
    assert sum(outcome.sent.values()) >= LEAST * CUTS
    assert outcome.lost == 0
    assert set(outcome.chains) == {"whole"}
    assert control is None or control.lost > 0
