"""Keys for bundles, and signatures with them (Ed25519, RFC 8032); what is signed is in `station.trust`."""

import io
import os
import zipfile
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from station.bundle_file import SIGNATURES, open_members, without_signatures
from station.errors import ConfigurationError
from station.trust import Signature, Signatures, Trust, key_id, signed_message
from station.whole_file import write_whole

_DATE = (1980, 1, 1, 0, 0, 0)


def make_keys(stem: Path, passphrase: bytes | None = None) -> tuple[Path, Path, str]:
    """Make a pair of keys, `<stem>.key.pem` (for its owner's eyes only) and `<stem>.pub.pem`.

    Returns:
        Both files and the key's id.

    Raises:
        ConfigurationError: one of them is there already; a key is never written over.
    """
    private, public = Path(f"{stem}.key.pem"), Path(f"{stem}.pub.pem")
    for path in (private, public):
        if path.exists():
            raise ConfigurationError(f"{path}: is there already, and a key is never written over")
    key = Ed25519PrivateKey.generate()
    private.parent.mkdir(parents=True, exist_ok=True)
    hidden = BestAvailableEncryption(passphrase) if passphrase is not None else NoEncryption()
    with open(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:  # noqa: PTH123
        stream.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden))
        stream.flush()
        os.fsync(stream.fileno())
    write_whole(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public, key_id(key.public_key().public_bytes_raw())


def read_private_key(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Read a key that `make_keys` wrote.

    Raises:
        ConfigurationError: it cannot be read, is no such key, or the passphrase is missing or wrong.
    """
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be read: {exc.strerror}") from exc
    try:
        key = load_pem_private_key(text, passphrase)
    except TypeError as exc:
        needs = "needs --passphrase-file" if passphrase is None else "has no passphrase; leave --passphrase-file out"
        raise ConfigurationError(f"{path}: {needs}") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        told = "is no private key in PEM form" if passphrase is None else "cannot be opened with this passphrase"
        raise ConfigurationError(f"{path}: {told}") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path}: is no Ed25519 key; `station-export keygen` makes one")
    return key


def signed(data: bytes, origin: str, key: Ed25519PrivateKey) -> bytes:
    """Sign a bundle file; signatures by other keys stay, one by the same key is replaced.

    Raises:
        BundleError: it is no bundle file.
    """
    plain, covered_sha256, present = without_signatures(data, origin)
    public = key.public_key().public_bytes_raw()
    mine = Signature(key=key_id(public), ed25519=key.sign(signed_message(covered_sha256)).hex())
    all_of_them = Signatures(signatures=(*(one for one in present if one.key != mine.key), mine))
    whole = io.BytesIO(plain)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(SIGNATURES, _DATE), all_of_them.model_dump_json())
    result = whole.getvalue()
    open_members(result, origin, Trust({mine.key: public}, required=True))
    return result
