"""A small virtual machine whose power can be cut, with a disk that forgets what it was not told to keep.

The machine is QEMU with a kernel of Debian's and, as its whole system, this very Python interpreter with what the tests
import, packed into an initial RAM disk. Its disk is a server in this process that speaks the NBD protocol
(https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md): what is written stays in its volatile cache until
the guest asks for a flush. When the power is cut, any of the sectors written since the last flush may have reached the
disk or not, as chance will have it.
"""

import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

QEMU = "qemu-system-x86_64"
LEFT_OUT = frozenset({"site-packages", "test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "pydoc_data"})
"""Parts of the standard library that nothing here needs."""
SECTOR_BYTES = 512
PAGE_BYTES = 4096
GREETING, OPTION_MAGIC, OPTION_REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPT_ABORT, OPT_GO = 2, 7
REP_ACK, REP_INFO, REP_ERR_UNSUPPORTED = 1, 3, 1 << 31 | 1
HAS_FLAGS, SEND_FLUSH, SEND_FUA = 1, 4, 8
COMMAND_FUA = 1
EINVAL = 22


class ForgetfulDisk:
    """An NBD server over an image in memory, with a volatile write cache.

    Attributes:
        flushes: how often the guest asked for durability.
        forgotten_bytes: what was in the volatile cache when the power went, and did not reach the disk.
    """

    def __init__(self, image: bytes, seed: int) -> None:
        self._stable = bytearray(image)
        self._volatile: dict[int, bytes] = {}
        self._chance = random.Random(seed)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="nbd")
        self.flushes = 0
        self.forgotten_bytes = 0

    def __enter__(self) -> "ForgetfulDisk":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                stream, _ = self._server.accept()
            except OSError:
                return
            with stream, stream.makefile("rb") as reader, suppress(EOFError, OSError):
                self._negotiate(stream, reader)
                self._transmit(stream, reader)
            self._lose_power()

    def _lose_power(self) -> None:
        """Of each page that was not flushed all, some or none of its sectors have reached the disk."""
        shares: dict[int, float] = {}
        for sector, data in self._volatile.items():
            share = shares.setdefault(sector * SECTOR_BYTES // PAGE_BYTES, self._chance.choice((0.0, 0.5, 1.0)))
            if self._chance.random() < share:
                self._put(sector, data)
            else:
                self.forgotten_bytes += SECTOR_BYTES
        self._volatile.clear()

    def _put(self, sector: int, data: bytes) -> None:
        self._stable[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = data

    def _read(self, offset: int, length: int) -> bytes:
        first, last = offset // SECTOR_BYTES, (offset + length) // SECTOR_BYTES
        return b"".join(
            self._volatile.get(sector) or bytes(self._stable[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES])
            for sector in range(first, last)
        )

    def _write(self, offset: int, data: bytes, *, durable: bool) -> None:
        for begin in range(0, len(data), SECTOR_BYTES):
            sector, piece = (offset + begin) // SECTOR_BYTES, data[begin : begin + SECTOR_BYTES]
            if durable:
                self._volatile.pop(sector, None)
                self._put(sector, piece)
            else:
                self._volatile[sector] = piece

    def _flush(self) -> None:
        self.flushes += 1
        for sector, data in self._volatile.items():
            self._put(sector, data)
        self._volatile.clear()

    def _negotiate(self, stream: socket.socket, reader: IO[bytes]) -> None:
        stream.sendall(struct.pack(">QQH", GREETING, OPTION_MAGIC, FIXED_NEWSTYLE | NO_ZEROES))
        _exactly(reader, 4)
        while True:
            _, option, length = struct.unpack(">QII", _exactly(reader, 16))
            _exactly(reader, length)
            if option == OPT_GO:
                info = struct.pack(">HQH", 0, len(self._stable), HAS_FLAGS | SEND_FLUSH | SEND_FUA)
                stream.sendall(struct.pack(">QIII", OPTION_REPLY, option, REP_INFO, len(info)) + info)
                stream.sendall(struct.pack(">QIII", OPTION_REPLY, option, REP_ACK, 0))
                return
            if option == OPT_ABORT:
                raise EOFError
            stream.sendall(struct.pack(">QIII", OPTION_REPLY, option, REP_ERR_UNSUPPORTED, 0))

    def _transmit(self, stream: socket.socket, reader: IO[bytes]) -> None:
        while True:
            magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQI", _exactly(reader, 28))
            assert magic == REQUEST_MAGIC
            answer, error = b"", 0
            match command:
                case 0:
                    answer = self._read(offset, length)
                case 1:
                    self._write(offset, _exactly(reader, length), durable=bool(flags & COMMAND_FUA))
                case 2:
                    return
                case 3:
                    self._flush()
                case _:
                    error = EINVAL
            stream.sendall(struct.pack(">IIQ", REPLY_MAGIC, error, cookie) + answer)


def _exactly(reader: IO[bytes], size: int) -> bytes:
    data = reader.read(size)
    if len(data) < size:
        raise EOFError
    return data


class Machine:
    """The running machine; `lines` are what its program says over its port."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def line(self) -> str:
        """The next line; empty when the machine is off."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode()

    def cut_the_power(self) -> list[str]:
        """SIGKILL; returns what had been said and not been read. A line that is not whole was not said."""
        self._process.kill()
        assert self._process.stdout is not None
        rest = self._process.stdout.read().decode().splitlines(keepends=True)
        return [line for line in rest if line.endswith("\n")]


def needs_machine() -> tuple[Path, Path]:
    """The kernel and the folder of its modules; skips the test where there is no QEMU or no kernel.

    FAULTS_KERNEL names a folder with `boot/vmlinuz-*` and `lib/modules` in it; default: the root.
    """
    if shutil.which(QEMU) is None:
        pytest.skip(f"a power cut needs {QEMU}")
    root = Path(os.environ.get("FAULTS_KERNEL", "/"))
    for kernel in sorted(root.glob("boot/vmlinuz-*"), reverse=True):
        modules = root / "lib" / "modules" / kernel.name.removeprefix("vmlinuz-")
        if modules.is_dir():
            return kernel, modules
    pytest.skip(f"a power cut needs a kernel: {root}/boot/vmlinuz-* with its modules; or set FAULTS_KERNEL")


@contextmanager
def machine(kernel: Path, initial: Path, disk: ForgetfulDisk, console: Path, options: str) -> Iterator[Machine]:
    """Switch it on; it is switched off at the end at the latest.

    Args:
        kernel: file.
        initial: RAM disk made by `pack`.
        disk: its only disk.
        console: file for what the kernel says.
        options: for the program, on the kernel's command line.
    """
    command = [
        # Emulated: a nested /dev/kvm may be there and not work.
        *(QEMU, "-accel", "tcg", "-cpu", "max", "-m", "1024", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(kernel), "-initrd", str(initial), "-no-reboot"),
        *("-append", f"console=ttyS0 panic=-1 quiet no_timer_check {options}", "-serial", f"file:{console}"),
        *("-drive", f"file=nbd://127.0.0.1:{disk.port},format=raw,if=none,id=disk,cache=none"),
        *("-device", "virtio-blk-pci,drive=disk"),
        *("-chardev", "stdio,id=port,signal=off", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=port"),
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            yield Machine(process)
        finally:
            process.kill()
            process.wait()


LISTING = """
import sys
import {imports}
from pathlib import Path
site = sys.argv[1]
for name in sorted({{name.partition(".")[0] for name in sys.modules}}):
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    if file.startswith(site):
        print(name if Path(file).stem == "__init__" else Path(file).name)
"""


def pack(target: Path, program: Path, imports: str, more: Sequence[Path], modules: Path, wanted: Sequence[str]) -> None:
    """Write an initial RAM disk (cpio, "newc") whose first process is a Python program.

    Args:
        target: the file to write.
        program: its `main` is called.
        imports: modules that it needs, with commas between them; their packages are packed whole.
        more: further files and folders that must be importable.
        modules: folder of the kernel's modules.
        wanted: names of those to pack.
    """
    site = str(Path(sysconfig.get_path("purelib")).resolve())
    listing = subprocess.run(
        [sys.executable, "-c", LISTING.format(imports=imports), site], capture_output=True, text=True, check=True
    ).stdout.split()
    python = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    files: dict[str, Path] = {str(python): python}
    for path in library.rglob("*"):
        parts = path.relative_to(library).parts
        if path.is_file() and not LEFT_OUT.intersection(parts) and not parts[0].startswith("config-"):
            files[str(path)] = path
    packages = [Path(site, name + suffix) for name in listing for suffix in ("", ".libs")]
    for package in [*packages, program, *more]:
        for path in [package] if package.is_file() else package.rglob("*"):
            if path.is_file() and not LEFT_OUT.intersection(path.relative_to(package.parent).parts):
                files[f"/site/{path.relative_to(package.parent)}"] = path
    for path in [path for path in files.values() if path == python or ".so" in path.suffixes]:
        for library_path in _shared_libraries(path):
            if not library_path.is_relative_to(site):
                files.setdefault(str(library_path), library_path)
    for path in modules.rglob("*.ko"):
        if path.stem in wanted:
            files[f"/modules/{path.name}"] = path
    start = f"#!{python} -I\nimport sys\nsys.path.append('/site')\nimport {program.stem}\n{program.stem}.main()\n"
    folders = sorted({str(parent) for name in files for parent in Path(name).parents} - {"/"})
    with target.open("wb") as archive:
        for name in [*folders, "/dev"]:
            _add(archive, name, b"", 0o040755)
        _add(archive, "/init", start.encode(), 0o100755)
        for name, path in files.items():
            # With another time the compiled form of a module would count as stale.
            _add(archive, name, path.read_bytes(), 0o100755, int(path.stat().st_mtime))
        _add(archive, "TRAILER!!!", b"", 0)


def _shared_libraries(path: Path) -> Iterator[Path]:
    """Where the loader finds what this file needs; within the packages by their real place."""
    said = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
    for line in said.splitlines():
        for word in line.split():
            if word.startswith("/"):
                yield Path(word.rstrip(":")).resolve() if "site-packages" in word else Path(word)


def _add(archive: IO[bytes], name: str, data: bytes, mode: int, modified_s: int = 0) -> None:
    encoded = name.lstrip("/").encode() + b"\0"
    fields = (0, mode, 0, 0, 1, modified_s, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    archive.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))
