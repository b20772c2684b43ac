"""Bundles that cannot be read without a key: AES-256-GCM (NIST SP 800-38D), authenticated before they are unzipped.

A sealed bundle is the mark, the key's id (so that a wrong key is told from a damaged file), a nonce that is random for
each sealing, and the ciphertext with its tag; mark, id and the SHA-256 of the plain file are authenticated with it.
"""

import hashlib
import os

from station.errors import BundleError, BundleLocked

MARK = b"ISBSEAL1"
NO_KEY = "there is no key: set bundles.key_credential (only the service sees a credential) or bundles.key_file"
_ID_BYTES, _NONCE_BYTES, _TAG_BYTES = 8, 12, 16
_HEAD_BYTES = len(MARK) + _ID_BYTES + _NONCE_BYTES


def seal(data: bytes, key: bytes, sha256: str) -> bytes:
    """Encrypt a bundle file whose SHA-256 (hexadecimal) this is, with a key of 32 bytes."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  # 8 MB that few stations need

    nonce = os.urandom(_NONCE_BYTES)
    head = MARK + _key_id(key)
    return head + nonce + AESGCM(key).encrypt(nonce, data, head + bytes.fromhex(sha256))


def unseal(sealed: bytes, key: bytes | None, sha256: str, origin: str) -> bytes:
    """Decrypt what `seal` made of the bundle file whose SHA-256 (hexadecimal) this is.

    Raises:
        BundleLocked: there is no key, or another one.
        BundleError: it was altered, or belongs to another bundle.
    """
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415  # see above
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    if len(sealed) < _HEAD_BYTES + _TAG_BYTES or not sealed.startswith(MARK):
        raise BundleError(f"bundle {origin}: is no sealed bundle, or cut short")
    head, nonce = sealed[: _HEAD_BYTES - _NONCE_BYTES], sealed[_HEAD_BYTES - _NONCE_BYTES : _HEAD_BYTES]
    if key is None:
        raise BundleLocked(f"bundle {origin}: is encrypted, and {NO_KEY}")
    if head != MARK + _key_id(key):
        raise BundleLocked(
            f"bundle {origin}: is encrypted with the key {head[len(MARK) :].hex()}, the one given is "
            f"{_key_id(key).hex()}"
        )
    try:
        return AESGCM(key).decrypt(nonce, sealed[_HEAD_BYTES:], head + bytes.fromhex(sha256))
    except InvalidTag as exc:
        raise BundleError(f"bundle {origin}: was altered in the library") from exc


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"inspection-station bundle key\n" + key).digest()[:_ID_BYTES]
