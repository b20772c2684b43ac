"""What every bundle is, whatever its task: one zip file whose members are checked before any byte of them is trusted.

This is the only way in. A file is taken as it is laid out here and in no other way: members one behind the other from
the first byte, each header saying twice the same, the directory right behind them, and nothing after it; no links, no
extra fields, no comments, no names that lead elsewhere. Then the signatures are looked at, if there are any, and only
then is anything unpacked. A member is only used when its sha256 is the one that `manifest.json` states.

The member `signatures.json` is the last one, stored without compression, and not named in the manifest: it covers every
byte before itself, which are all other members with their headers, and the directory can say nothing that they do not
say (APPNOTE.TXT 6.3, sections 4.3.7 to 4.3.16).
"""

import hashlib
import json
import re
import stat
import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from station.errors import BundleError
from station.trust import ANYONE, Signature, Signatures, Trust

MANIFEST = "manifest.json"
MODEL = "model.tflite"
GOLDEN = "golden/"
SIGNATURES = "signatures.json"

MAX_MEMBERS = 256
MAX_BYTES = 256 * 1024 * 1024
"""The file, and all members together, unpacked. A bundle is some MB; the limits keep a zip bomb from filling the
memory."""
MAX_MANIFEST_BYTES = 8 * 1024 * 1024
MAX_SIGNATURES_BYTES = 16 * 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}(/[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}){0,3}")
_STORED, _DEFLATED = 0, 8
_END = struct.Struct("<4s4H2LH")
_DIRECTORY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")
_VERSION = 20
_SYSTEMS = (0, 3)
"""Of the one who wrote the zip: Windows or Unix."""
_PLAIN_FILE = 0o600 << 16
"""Attributes as Python writes them for a member that comes from memory."""


class Part(BaseModel):
    """Base of the manifests' parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Head(Part, extra="ignore"):
    """What every manifest says, whatever its task."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    version: str = Field(min_length=1, max_length=64)
    task: str

    @property
    def is_process(self) -> bool:
        """Whether it is for readings, not for pictures."""
        return self.task in ("forecast", "warn")


AnyManifest = TypeVar("AnyManifest", bound=Part)


@dataclass(frozen=True, slots=True)
class Contents:
    """A bundle file that was let in.

    Attributes:
        members: name → content, without the signatures.
        sha256: of the whole file, hexadecimal.
        signatures: all that it has.
        signed_by: id of a trusted key that signed it; None: nobody did, or no key is known to check with.
    """

    members: dict[str, bytes]
    sha256: str
    signatures: tuple[Signature, ...] = ()
    signed_by: str | None = None


@dataclass(frozen=True, slots=True)
class _Member:
    """Where a member stands: its header, its bytes as they are packed, and its entry in the directory."""

    name: str
    method: int
    header: int
    begin: int
    end: int
    size: int
    crc: int
    entry: bytes


def read_file(path: Path) -> bytes:
    """Read a bundle file, without looking at what it holds.

    Raises:
        BundleError: it is missing or too large.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as exc:
        raise BundleError(f"bundle {path}: cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_BYTES:
        raise BundleError(f"bundle {path}: is larger than {MAX_BYTES} bytes")
    return data


def open_members(data: bytes, origin: str, trust: Trust = ANYONE) -> Contents:
    """Look at a bundle file's bytes, and unpack them when all is well.

    Args:
        data: the whole file.
        origin: where it comes from, for error texts.
        trust: whose signatures count.

    Raises:
        BundleError: it is cut short, laid out otherwise than a bundle is, too large, or not trusted.
    """
    members = _layout(data, origin)
    signatures: tuple[Signature, ...] = ()
    covered = members[-1].end if members else 0
    if members and members[-1].name == SIGNATURES:
        last = members.pop()
        covered = last.header
        signatures = _signatures(data, last, origin)
    signed_by = trust.check(signatures, hashlib.sha256(memoryview(data)[:covered]).digest(), origin)
    unpacked = {one.name: _unpack(data, one, origin) for one in members}
    return Contents(unpacked, hashlib.sha256(data).hexdigest(), signatures, signed_by)


def without_signatures(data: bytes, origin: str) -> tuple[bytes, bytes, tuple[Signature, ...]]:
    """Take the signatures off a bundle file.

    Returns:
        The file without them, the SHA-256 (32 bytes) of what a signature covers, and those that it had.

    Raises:
        BundleError: it is no bundle file.
    """
    signatures = open_members(data, origin).signatures
    members = [one for one in _layout(data, origin) if one.name != SIGNATURES]
    covered = data[: members[-1].end] if members else b""
    directory = b"".join(one.entry for one in members)
    end = _END.pack(b"PK\5\6", 0, 0, len(members), len(members), len(directory), len(covered), 0)
    return covered + directory + end, hashlib.sha256(covered).digest(), signatures


def parse_json(kind: type[AnyManifest], text: bytes | None, origin: str) -> AnyManifest:
    """Check a manifest's text.

    Raises:
        BundleError: it is missing, not JSON, or a field is wrong; the text names the first such field.
    """
    if text is None:
        raise BundleError(f"bundle {origin}: {MANIFEST} is missing")
    try:
        return kind.model_validate_json(text)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        field = ".".join(str(level) for level in first["loc"]) or "text"
        raise BundleError(f"bundle {origin}: {MANIFEST}: {field}: {first['msg']}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise BundleError(f"bundle {origin}: {MANIFEST}: is not JSON: {exc}") from exc


def head_of(contents: Contents, origin: str) -> Head:
    """What the manifest in a bundle file says first; its members are not checked yet.

    Raises:
        BundleError: there is no manifest that says so.
    """
    return parse_json(Head, contents.members.get(MANIFEST), origin)


def check_members(
    stated: Mapping[str, str], needed: Collection[str], members: Mapping[str, bytes], origin: str
) -> None:
    """Compare what stands in a bundle with what its manifest says.

    Args:
        stated: member → sha256 (hexadecimal), of every member but the manifest.
        needed: members that must be there whether stated or not.
        members: what was unpacked, without the manifest.
        origin: the file, for error texts.

    Raises:
        BundleError: a member is missing, altered, or not named.
    """
    if extra := sorted(set(members) - set(stated)):
        raise BundleError(f"bundle {origin}: member {extra[0]} is not named in the manifest")
    if missing := sorted((set(stated) | set(needed)) - set(members)):
        raise BundleError(f"bundle {origin}: member {missing[0]} is missing")
    for name, content in members.items():
        digest = hashlib.sha256(content).hexdigest()
        if digest != stated[name]:
            raise BundleError(
                f"bundle {origin}: member {name} was altered: sha256 {digest[:12]}…, "
                f"the manifest says {stated[name][:12]}…"
            )


def _layout(data: bytes, origin: str) -> list[_Member]:
    """Find the members, and see that there is nothing else.

    Raises:
        BundleError: the file is no zip, or not laid out as a bundle is.
    """
    if len(data) < _END.size or not data.startswith(b"PK\3\4"):
        raise BundleError(f"bundle {origin}: is not a whole zip file: it does not begin as one")
    end = len(data) - _END.size
    mark, disk, first_disk, here, count, size, begin, comment = _END.unpack_from(data, end)
    if mark != b"PK\5\6" or comment or disk or first_disk or here != count or begin + size != end:
        raise BundleError(f"bundle {origin}: is not a whole zip file: it does not end with its directory")
    if count > MAX_MEMBERS:
        raise BundleError(f"bundle {origin}: has {count} members; at most {MAX_MEMBERS} are allowed")
    members: list[_Member] = []
    entry, place, left = begin, 0, MAX_BYTES
    for _ in range(count):
        member, entry = _member(data, entry, end, place, origin)
        if any(one.name == member.name for one in members):
            raise BundleError(f"bundle {origin}: member {member.name} stands in it twice")
        limit = {MANIFEST: MAX_MANIFEST_BYTES, SIGNATURES: MAX_SIGNATURES_BYTES}.get(member.name, MAX_BYTES)
        if member.size > limit:
            raise BundleError(f"bundle {origin}: member {member.name} has {member.size} bytes; allowed are {limit}")
        left -= member.size
        if left < 0:
            raise BundleError(f"bundle {origin}: member {member.name} makes it more than {MAX_BYTES} bytes")
        members.append(member)
        place = member.end
    if entry != end or place != begin:
        raise BundleError(f"bundle {origin}: is not a whole zip file: it holds bytes that belong to no member")
    return members


def _member(data: bytes, entry: int, end: int, place: int, origin: str) -> tuple[_Member, int]:
    """Read one entry of the directory, with the header that must stand at `place`; return where the next entry is."""
    damaged = BundleError(f"bundle {origin}: is not a whole zip file: its directory is damaged")
    if entry + _DIRECTORY.size > end:
        raise damaged
    (
        mark, made_version, made_system, version, zero, flags, method, time, date, crc, packed, size,
        name_length, extra, comment, disk, internal, external, header,
    ) = _DIRECTORY.unpack_from(data, entry)  # fmt: skip
    following = entry + _DIRECTORY.size + name_length
    raw = data[entry + _DIRECTORY.size : following]
    if mark != b"PK\1\2" or following > end:
        raise damaged
    name = raw.decode("ascii", "backslashreplace")
    if not _NAME.fullmatch(name):
        raise BundleError(f"bundle {origin}: member {name[:80]!a} has a name that no member may have")
    if stat.S_IFMT(external >> 16) not in (0, stat.S_IFREG):
        raise BundleError(f"bundle {origin}: member {name} is not a plain file")
    if method not in (_STORED, _DEFLATED):
        raise BundleError(f"bundle {origin}: member {name} is neither stored nor deflated")
    if flags & 1:
        raise BundleError(f"bundle {origin}: member {name} is encrypted")
    plain = (made_version, version, zero, flags, extra, comment, disk, internal, external)
    if plain != (_VERSION, _VERSION, 0, 0, 0, 0, 0, 0, _PLAIN_FILE) or made_system not in _SYSTEMS:
        raise BundleError(f"bundle {origin}: member {name} stands in it otherwise than a bundle's members do")
    begin = place + _LOCAL.size + name_length
    expected = _LOCAL.pack(b"PK\3\4", version, 0, flags, method, time, date, crc, packed, size, name_length, 0)
    if header != place or data[place:begin] != expected + raw:
        raise BundleError(f"bundle {origin}: member {name} is not where, or not what, the directory says")
    whole = _Member(name, method, place, begin, begin + packed, size, crc, data[entry:following])
    return whole, following


def _unpack(data: bytes, member: _Member, origin: str) -> bytes:
    packed = memoryview(data)[member.begin : member.end]
    if member.method == _STORED:
        content = bytes(packed)
    else:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = unpacker.decompress(packed, member.size + 1)
        except zlib.error as exc:
            raise BundleError(f"bundle {origin}: member {member.name} is damaged: {exc}") from exc
        if not unpacker.eof or unpacker.unused_data:
            raise BundleError(f"bundle {origin}: member {member.name} is not as long as the zip says")
    if len(content) != member.size:
        raise BundleError(f"bundle {origin}: member {member.name} is not as long as the zip says")
    if zlib.crc32(content) != member.crc:
        raise BundleError(f"bundle {origin}: member {member.name} is damaged: its check sum is another one")
    return content


def _signatures(data: bytes, member: _Member, origin: str) -> tuple[Signature, ...]:
    content = _unpack(data, member, origin)
    try:
        found = Signatures.model_validate_json(content)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        raise BundleError(f"bundle {origin}: {SIGNATURES}: {first['msg']}") from None
    if member.method != _STORED or found.model_dump_json().encode() != content:
        raise BundleError(f"bundle {origin}: {SIGNATURES}: is not written as `station-export sign` writes it")
    return found.signatures
