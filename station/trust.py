"""Who is trusted to sign bundles: Ed25519 (RFC 8032) over the bytes that a bundle's members stand in.

A key is known by its id, the first 16 hexadecimal digits of the SHA-256 of the 32 bytes of the public key. Several keys
may be trusted at a time, so that they can change; a revoked one counts for nothing, whatever it has signed.

`cryptography` is imported where a key is read or a signature checked, and not before: it takes 7 MB of memory, which a
station that trusts everyone can do without.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from station.errors import BundleError, ConfigurationError

KeyId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_PURPOSE = b"inspection-station bundle v1\n"
"""Stands before what is signed: a signature made for anything else is none for a bundle."""


class Signature(BaseModel):
    """One signature.

    Attributes:
        key: id of the key that made it.
        ed25519: its 64 bytes, hexadecimal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    key: KeyId
    ed25519: str = Field(pattern=r"^[0-9a-f]{128}$")


class Signatures(BaseModel):
    """The member `signatures.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    signatures: tuple[Signature, ...] = Field(min_length=1, max_length=16)


def key_id(public: bytes) -> str:
    """The id of a public key, given by its 32 bytes."""
    return hashlib.sha256(public).hexdigest()[:16]


def signed_message(covered_sha256: bytes) -> bytes:
    """What is signed, given the SHA-256 (32 bytes) of the bytes that the signature covers."""
    return _PURPOSE + covered_sha256


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose bundles are used.

    Attributes:
        keys: id → public key, 32 bytes.
        required: a bundle without a signature by one of `keys` is refused.
        revoked: ids of keys that count for nothing any more.
    """

    keys: Mapping[str, bytes] = field(default_factory=dict)
    required: bool = False
    revoked: frozenset[str] = frozenset()

    def check(self, signatures: Sequence[Signature], covered_sha256: bytes, origin: str) -> str | None:
        """Look at a bundle's signatures.

        Returns:
            The id of a trusted key that signed it; None: it has no signature, or no key is known to check one with.

        Raises:
            BundleError: a signature is wrong, none is by a trusted key, or there is none where one is required.
        """
        if not signatures:
            if self.required:
                raise BundleError(
                    f"bundle {origin}: is not signed, and trust.require_signature is set; `station-export sign` signs"
                )
            return None
        known = [one for one in signatures if one.key in self.keys and one.key not in self.revoked]
        for one in known:
            if not _is_right(self.keys[one.key], bytes.fromhex(one.ed25519), signed_message(covered_sha256)):
                raise BundleError(f"bundle {origin}: the signature by the key {one.key} is wrong: it was altered")
        if known:
            return known[0].key
        if revoked := [one.key for one in signatures if one.key in self.revoked]:
            raise BundleError(f"bundle {origin}: is signed by the key {revoked[0]}, which trust.revoked names")
        if self.keys:
            raise BundleError(
                f"bundle {origin}: is signed by the unknown key {signatures[0].key}; trusted are "
                f"{', '.join(key for key in self.keys if key not in self.revoked) or 'none'}"
            )
        return None


ANYONE = Trust()
"""Signatures are not asked for, and no key is known to check one with."""


def read_public_key(path: Path) -> bytes:
    """Read an Ed25519 public key from a PEM file.

    Returns:
        Its 32 bytes.

    Raises:
        ConfigurationError: the file cannot be read, or holds no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # see above
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    try:
        text = path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be read: {exc.strerror}") from exc
    if b"PRIVATE KEY" in text:
        raise ConfigurationError(f"{path}: is a private key; a station needs the public one, NAME.pub.pem")
    try:
        key = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigurationError(f"{path}: is no public key in PEM form") from exc
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(f"{path}: is no Ed25519 key; `station-export keygen` makes one")
    return key.public_bytes_raw()


def _is_right(public: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # see above
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True
