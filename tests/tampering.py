"""A bundle that is signed as it should be, and what somebody who has no key can make of it."""

import hashlib
import io
import json
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from export.signing import signed
from station.bundle_file import MANIFEST, MODEL, SIGNATURES, open_members
from station.settings import SHIPPED_BUNDLE
from station.trust import Signature, Signatures, Trust, key_id, signed_message

Members = dict[str, bytes]


def public_of(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def trust_in(*keys: Ed25519PrivateKey, revoked: frozenset[str] = frozenset(), required: bool = True) -> Trust:
    return Trust({key_id(public_of(key)): public_of(key) for key in keys}, required, revoked)


def zipped(members: Mapping[str, bytes], **attributes: int) -> bytes:
    """A zip file as `station-export` writes it; `attributes` are set on the last member."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            if name == list(members)[-1]:
                for key, value in attributes.items():
                    setattr(info, key, value)
            stored = zipfile.ZIP_STORED if name == SIGNATURES else zipfile.ZIP_DEFLATED
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive.writestr(info, content, stored, 1)
    return whole.getvalue()


@dataclass(frozen=True)
class Signed:
    """A bundle, who signed it, and whom the station trusts."""

    data: bytes
    members: Members
    key: Ed25519PrivateKey
    trust: Trust

    @property
    def signatures(self) -> bytes:
        """The member with the signature."""
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            return archive.read(SIGNATURES)

    def with_old_signature(self, members: Mapping[str, bytes], **attributes: int) -> bytes:
        return zipped({**members, SIGNATURES: self.signatures}, **attributes)


def signed_bundle(path: Path = SHIPPED_BUNDLE) -> Signed:
    key = Ed25519PrivateKey.generate()
    data = signed(path.read_bytes(), "b", key)
    return Signed(data, open_members(data, "b").members, key, trust_in(key))


def _flipped(of: Signed, chance: random.Random) -> bytes:
    content = bytearray(of.data)
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def _flipped_in_the_directory(of: Signed, chance: random.Random) -> bytes:
    content = bytearray(of.data)
    begin = content.index(b"PK\1\2")
    content[chance.randrange(begin, len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def _overwritten(of: Signed, chance: random.Random) -> bytes:
    content = bytearray(of.data)
    begin = chance.randrange(len(content) - 64)
    content[begin : begin + 64] = chance.randbytes(64)
    return bytes(content)


def _cut(of: Signed, chance: random.Random) -> bytes:
    return of.data[: chance.randrange(len(of.data))]


def _piece_missing(of: Signed, chance: random.Random) -> bytes:
    begin = chance.randrange(len(of.data) - 1)
    return of.data[:begin] + of.data[begin + chance.randint(1, 4096) :]


def _behind(of: Signed, chance: random.Random) -> bytes:
    return of.data + chance.randbytes(chance.randint(1, 4096))


def _before(of: Signed, chance: random.Random) -> bytes:
    return chance.randbytes(chance.randint(1, 4096)) + of.data


def _between(of: Signed, chance: random.Random) -> bytes:
    """Bytes between the members and the directory, which every offset allows for."""
    content = bytearray(of.data)
    begin = content.index(b"PK\1\2")
    hidden = chance.randbytes(chance.randint(1, 512))
    content[begin:begin] = hidden
    struct.pack_into("<L", content, len(content) - 6, begin + len(hidden))
    return bytes(content)


def _swapped(of: Signed, chance: random.Random) -> bytes:
    one, other = chance.sample([name for name in of.members if name != MANIFEST], 2)
    return of.with_old_signature({**of.members, one: of.members[other], other: of.members[one]})


def _renamed(of: Signed, chance: random.Random) -> bytes:
    victim = chance.choice(list(of.members))
    return of.with_old_signature({(f"x{name}" if name == victim else name): it for name, it in of.members.items()})


def _left_out(of: Signed, chance: random.Random) -> bytes:
    victim = chance.choice(list(of.members))
    return of.with_old_signature({name: content for name, content in of.members.items() if name != victim})


def _other_threshold(of: Signed, chance: random.Random) -> bytes:
    document = json.loads(of.members[MANIFEST])
    document["thresholds"]["default"] = chance.random()
    return of.with_old_signature({**of.members, MANIFEST: json.dumps(document, indent=2).encode()})


def _other_model(of: Signed, chance: random.Random) -> bytes:
    """The model is another one, and the manifest says so."""
    model = bytearray(of.members[MODEL])
    model[chance.randrange(len(model))] ^= 1 << chance.randrange(8)
    document = json.loads(of.members[MANIFEST])
    document["members"][MODEL] = hashlib.sha256(model).hexdigest()
    return of.with_old_signature({**of.members, MANIFEST: json.dumps(document).encode(), MODEL: bytes(model)})


def _wrong_signature(of: Signed, chance: random.Random) -> bytes:
    content = zipped(of.members)
    forged = Signature(key=key_id(public_of(of.key)), ed25519=chance.randbytes(64).hex())
    return _appended(content, Signatures(signatures=(forged,)).model_dump_json().encode())


def _stolen_signature(of: Signed, chance: random.Random) -> bytes:
    """A right signature, of another bundle."""
    other = zipped({**of.members, "more.txt": chance.randbytes(8)})
    return of.with_old_signature(open_members(other, "b").members)


def _unknown_key(of: Signed, chance: random.Random) -> bytes:
    plain = zipped(of.members)
    return signed(plain, "b", Ed25519PrivateKey.from_private_bytes(chance.randbytes(32)))


def _unsigned(of: Signed, chance: random.Random) -> bytes:
    return zipped({**of.members, chance.choice(["a", "b"]): b""} if chance.random() < 0.5 else of.members)


def _signature_not_last(of: Signed, chance: random.Random) -> bytes:
    names = list(of.members)
    place = chance.randrange(len(names))
    order = [*names[:place], SIGNATURES, *names[place:]]
    return zipped({name: of.signatures if name == SIGNATURES else of.members[name] for name in order})


def _bomb(of: Signed, chance: random.Random) -> bytes:
    """Some hundred megabytes in a member of one, told as they are or as a few bytes; signed, so that it is unpacked."""
    packer = zlib.compressobj(9, 8, -15)
    size = chance.choice([300, 600]) << 20
    packed = b"".join([packer.compress(bytes(1 << 20)) for _ in range(size >> 20)] + [packer.flush()])
    told = chance.choice([size, 0, 1000, 0xFFFFFFFF])
    name = chance.choice([MODEL, "golden/9-ok.png", "more.bin"])
    plain = _raw([(name.encode(), packed, told)])
    covered = hashlib.sha256(plain[: plain.rindex(b"PK\1\2")]).digest()
    mine = Signature(key=key_id(public_of(of.key)), ed25519=of.key.sign(signed_message(covered)).hex())
    return _appended(plain, Signatures(signatures=(mine,)).model_dump_json().encode())


def _raw(members: list[tuple[bytes, bytes, int]], local: bytes = b"", external: int = 0o600 << 16) -> bytes:
    """A zip file of deflated members with whatever size is claimed."""
    body, directory = b"", b""
    for name, packed, told in members:
        fields = (20, 0, 0, 8, 0, 33, 0, len(packed), told, len(name), 0)
        entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, *fields[:2], *fields[2:], 0, 0, 0, external, len(body))
        body += struct.pack("<4s2B4HL2L2H", b"PK\3\4", *fields) + name + local + packed
        directory += entry + name
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return body + directory + end


NAMES = (
    "../evil", "../../etc/cron.d/evil", "/etc/passwd", "golden/../../evil", "..", ".", "./model.tflite", "a//b", "a/",
    "C:\\evil", "golden\\..\\evil", "~/evil", ".bashrc", "golden/.hidden", "a\0b", "a\nb", "ä", "model.tflite ",
    "a" * 300, "a/b/c/d/e/f/g", "", "-rf", "con:", "golden/\u202egnp.exe",
)  # fmt: skip


def _traversal(of: Signed, chance: random.Random) -> bytes:
    name = chance.choice(NAMES).encode()
    packed = zlib.compressobj(9, 8, -15)
    content = packed.compress(b"evil") + packed.flush()
    if chance.random() < 0.5:
        return _raw([(name, content, 4)])
    return zipped({**of.members, chance.choice([one for one in NAMES if one and "\0" not in one]): b"evil"})


def _double(of: Signed, chance: random.Random) -> bytes:
    whole = io.BytesIO(zipped(of.members))
    with zipfile.ZipFile(whole, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(zipfile.ZipInfo(chance.choice(list(of.members)), (1980, 1, 1, 0, 0, 0)), b"another one")
    return whole.getvalue()


def _link(of: Signed, chance: random.Random) -> bytes:
    kind = chance.choice([0o120777, 0o120600, 0o040755, 0o060600, 0o020600, 0o010600, 0o140600])
    return zipped({**of.members, "link": b"/etc/shadow"}, external_attr=kind << 16)


def _odd_header(of: Signed, chance: random.Random) -> bytes:
    oddity = chance.choice(
        [{"external_attr": 0o777 << 16}, {"create_system": 7}, {"internal_attr": 1}, {"flag_bits": 1}, {"extra": 1}]
    )
    if "extra" in oddity:
        return zipped(of.members, extra=b"\x55\x54\x05\x00\x03\x00\x00\x00\x00")  # type: ignore[arg-type]
    if "flag_bits" in oddity:
        content = bytearray(of.data)
        content[6] |= 1
        content[content.index(b"PK\1\2") + 8] |= 1
        return bytes(content)
    return zipped(of.members, **oddity)


def _comment(of: Signed, chance: random.Random) -> bytes:
    whole = io.BytesIO(of.data)
    with zipfile.ZipFile(whole, "a") as archive:
        archive.comment = chance.randbytes(chance.randint(1, 200))
    return whole.getvalue()


def _many(of: Signed, chance: random.Random) -> bytes:
    return zipped({**of.members, **{f"x{number}": b"" for number in range(chance.randint(260, 400))}})


def _huge_manifest(of: Signed, chance: random.Random) -> bytes:
    document = json.loads(of.members[MANIFEST])
    document["dataset"]["note"] = "x" * (chance.randint(9, 12) << 20)
    return _by_the_key(of, {**of.members, MANIFEST: json.dumps(document).encode()})


def _deep_manifest(of: Signed, chance: random.Random) -> bytes:
    depth = chance.choice([300, 5_000, 200_000])
    opened, closed = chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    text = b'{"schema_version":1,"dataset":' + opened * depth + b"1" + closed * depth + b"}"
    return _by_the_key(of, {**of.members, MANIFEST: text})


def _no_json(of: Signed, chance: random.Random) -> bytes:
    text = chance.choice([b"", b"{", b"[]", b"null", b"\xff\xfe", chance.randbytes(40), b'{"task":"paint"}'])
    return _by_the_key(of, {**of.members, MANIFEST: text})


def _signed_but_altered(of: Signed, chance: random.Random) -> bytes:
    """Signed by a trusted key, and yet a member is not what the manifest says."""
    victim = chance.choice([name for name in of.members if name != MANIFEST])
    content = bytearray(of.members[victim])
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return _by_the_key(of, {**of.members, victim: bytes(content)})


def _by_the_key(of: Signed, members: Members) -> bytes:
    return signed(zipped(members), "b", of.key) if len(members[MANIFEST]) < 1 << 23 else zipped(members)


def _appended(plain: bytes, signatures: bytes) -> bytes:
    whole = io.BytesIO(plain)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(SIGNATURES, (1980, 1, 1, 0, 0, 0)), signatures)
    return whole.getvalue()


KINDS: Mapping[str, tuple[int, Callable[[Signed, random.Random], bytes], str]] = {
    "bit flipped": (200, _flipped, ""),
    "bit flipped in the directory": (150, _flipped_in_the_directory, ""),
    "64 bytes overwritten": (50, _overwritten, ""),
    "cut short": (50, _cut, "is not a whole zip file"),
    "a piece missing": (50, _piece_missing, ""),
    "bytes behind": (25, _behind, "is not a whole zip file"),
    "bytes before": (25, _before, "is not a whole zip file"),
    "bytes between": (25, _between, "is not a whole zip file"),
    "comment": (10, _comment, "is not a whole zip file"),
    "members swapped": (40, _swapped, "the signature by the key"),
    "member renamed": (15, _renamed, "the signature by the key"),
    "member left out": (15, _left_out, "the signature by the key"),
    "threshold changed": (30, _other_threshold, "the signature by the key"),
    "model and its hash changed": (40, _other_model, "the signature by the key"),
    "wrong signature": (40, _wrong_signature, "the signature by the key"),
    "signature of another bundle": (15, _stolen_signature, "the signature by the key"),
    "signature by an unknown key": (30, _unknown_key, "is signed by the unknown key"),
    "no signature": (20, _unsigned, "is not signed"),
    "signature not last": (10, _signature_not_last, "is not signed"),
    "zip bomb": (10, _bomb, "member "),
    "path traversal": (40, _traversal, "has a name that no member may have"),
    "member doubled": (20, _double, "stands in it twice"),
    "symbolic link, device, folder": (20, _link, "is not a plain file"),
    "odd header": (20, _odd_header, "member "),
    "too many members": (10, _many, "at most 256 are allowed"),
    "huge manifest": (10, _huge_manifest, "allowed are 8388608"),
    "deep manifest": (10, _deep_manifest, "manifest.json: "),
    "manifest that is none": (10, _no_json, "manifest.json: "),
    "altered, but signed": (10, _signed_but_altered, "was altered: sha256"),
}
"""Kind → how many of a thousand, how it is made, and what the refusal must say."""
