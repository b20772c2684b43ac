"""The first and only process of the virtual machine: reports what the journal holds, then writes until the power goes.

The kernel starts it as /init. On the port to the host it says, a line each: `HAS EPOCH FIRST LAST COUNT` for what is in
the journal, `CHAIN` with `whole` or what is wrong, then `SENT EPOCH SEQUENCE` for each verdict that the recorder hands
to its publisher, which is what a broker would get.
"""

import ctypes
import os
import sqlite3
import sys
import threading
import time
from pathlib import Path

MODULES = (
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
)
FINIT_MODULE = 313
"""System call number on x86-64."""
DISK = Path("/dev/vda")
JOURNAL = Path("/data/journal.sqlite")
RATE_HZ = 300
DEVICES_WITHIN_S = 20


def mount(source: str, target: str, kind: str) -> None:
    Path(target).mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mount {source} {target}")


def loaded(module: Path) -> bool:
    with module.open("rb") as file:
        code: int = ctypes.CDLL(None).syscall(FINIT_MODULE, file.fileno(), b"", 0)
    return code == 0


def prepare() -> Path:
    """Devices, drivers and the disk; returns the port to the host."""
    for kind, target in (("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp")):
        mount(kind, target, kind)
    # A module may need another one; those that are missing are built into this kernel.
    left = [module for module in (Path("/modules", f"{name}.ko") for name in MODULES) if module.exists()]
    for _ in range(len(left)):
        left = [module for module in left if not loaded(module)]
    if left:
        raise OSError(f"modules that the kernel does not take: {left}")
    deadline_s = time.monotonic() + DEVICES_WITHIN_S
    while not ((ports := sorted(Path("/dev").glob("vport*"))) and DISK.exists()):
        if time.monotonic() > deadline_s:
            raise OSError(f"devices are missing: {sorted(Path('/dev').iterdir())}")
        time.sleep(0.01)
    mount(str(DISK), "/data", "ext4")
    return ports[0]


def main() -> None:
    """Report and write."""
    port_path = prepare()
    from delivery_helpers import message  # noqa: PLC0415

    from station.adapters.memory import MemoryPublisher  # noqa: PLC0415
    from station.adapters.sqlite_journal import SqliteJournal, verify  # noqa: PLC0415
    from station.adapters.system_clock import SystemClock  # noqa: PLC0415
    from station.mailbox import Mailbox, Overflow  # noqa: PLC0415
    from station.messages import OutboxRow, Outgoing  # noqa: PLC0415
    from station.recorder import Recorder  # noqa: PLC0415
    from station.settings import JournalSettings  # noqa: PLC0415

    class Wire(MemoryPublisher):
        """Says what it is sent, acknowledges it, and keeps none of it."""

        def send(self, row: OutboxRow, *, historical: bool) -> bool:
            sent = super().send(row, historical=historical)
            if row.message.kind == "verdict":
                say(f"SENT {row.message.epoch} {row.message.sequence}")
            self.sent.clear()
            self.acknowledge()
            return sent

    options = dict(word.split("=", 1) for word in Path("/proc/cmdline").read_text("ascii").split() if "=" in word)
    port = os.open(port_path, os.O_WRONLY)

    def say(line: str) -> None:
        os.write(port, f"{line}\n".encode())

    clock = SystemClock()
    mailbox: Mailbox[Outgoing] = Mailbox(1000, Overflow.BLOCK)
    publisher = Wire()
    # Small enough that its log is emptied, beside the commits, about every dozen of them.
    settings = JournalSettings(max_bytes=64_000_000)
    with SqliteJournal(JOURNAL, settings, station="line-1", clock=clock) as journal:
        # The control experiment: a journal that trusts the disk a little more must be caught.
        if options["synchronous"] != "FULL":
            journal._database.execute(f"PRAGMA synchronous = {options['synchronous']}")
        say(f"CHAIN {verify(JOURNAL).fault or 'whole'}")
        with sqlite3.connect(f"file:{JOURNAL}?mode=ro", uri=True) as database:
            for found in database.execute(
                "SELECT epoch, min(sequence), max(sequence), count(*) FROM journal "
                "WHERE kind = 'verdict' GROUP BY epoch ORDER BY epoch"
            ):
                say(f"HAS {' '.join(map(str, found))}")
        database.close()
        epoch = journal.open_epoch()
        recorder = Recorder(
            station="line-1",
            epoch=epoch,
            journal=journal,
            publisher=publisher,
            mailbox=mailbox,
            clock=clock,
            window=64,
            replay_window_s=60,
        )
        publisher.connect(session_present=True)

        def judge() -> None:
            begin_s, number = time.monotonic(), 0
            while True:
                number += 1
                mailbox.put(message(number, epoch=epoch))
                time.sleep(max(0.0, begin_s + number / RATE_HZ - time.monotonic()))

        say("READY")
        threading.Thread(target=judge, daemon=True).start()
        while True:
            recorder.step(0.2)


if __name__ == "__main__":
    try:
        main()
    except BaseException as exc:
        print(f"guest: {type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
        raise
