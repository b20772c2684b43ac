"""What every bundle is, whatever its task: one zip file whose members are checked before any byte of them is trusted.

A member is only used when the zip is whole, small enough and free of doubles, and when its sha256 is the one that
`manifest.json` states.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from station.errors import BundleError

MANIFEST = "manifest.json"
MODEL = "model.tflite"
GOLDEN = "golden/"

MAX_MEMBERS = 256
MAX_BYTES = 256 * 1024 * 1024
"""All members together, unpacked. A bundle is some MB; the limits keep a zip bomb from filling the memory."""


class Part(BaseModel):
    """Base of the manifests' parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnyManifest = TypeVar("AnyManifest", bound=Part)


def read_members(path: Path) -> tuple[dict[str, bytes], str]:
    """Unpack a bundle file.

    Returns:
        Name → content of each member, and the sha256 (hexadecimal) of the whole file.

    Raises:
        BundleError: the file is missing, cut short or too large.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise BundleError(f"bundle {path}: cannot be read: {exc.strerror}") from exc
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(archive, str(path))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as exc:
        raise BundleError(f"bundle {path}: is not a whole zip file: {exc}") from exc
    except (ValueError, UnicodeDecodeError) as exc:
        raise BundleError(f"bundle {path}: is damaged: {exc}") from exc
    return members, hashlib.sha256(data).hexdigest()


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


def _members(archive: zipfile.ZipFile, origin: str) -> dict[str, bytes]:
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise BundleError(f"bundle {origin}: has {len(infos)} members; at most {MAX_MEMBERS} are allowed")
    members: dict[str, bytes] = {}
    for info in infos:
        if info.filename in members:
            raise BundleError(f"bundle {origin}: member {info.filename} stands in it twice")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(f"bundle {origin}: member {info.filename} is neither stored nor deflated")
        left = MAX_BYTES - sum(map(len, members.values()))
        if info.file_size > left:
            raise BundleError(f"bundle {origin}: member {info.filename} makes it more than {MAX_BYTES} bytes")
        with archive.open(info) as stream:
            content = stream.read(left + 1)
        if len(content) != info.file_size:
            raise BundleError(f"bundle {origin}: member {info.filename} is not as long as the zip says")
        members[info.filename] = content
    return members
