"""`[bundles]`: the library of bundles in the data folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from station.errors import ConfigurationError
from station.section import FilePath, Section

KEY_BYTES = 32


class BundleSettings(Section):
    """`[bundles]`"""

    max_bytes: int = Field(default=1_000_000_000, ge=1_000_000)
    """The library, at most; those longest unused go first, never one that is active or that could be gone back to."""
    faults_in_a_row: int = Field(default=5, ge=1, le=10_000)
    """An activated bundle whose model fails on this many frames in a row is taken back."""
    encrypt: bool = False
    """Keep every bundle in the library encrypted."""
    key_credential: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,255}$")
    """Name of a systemd credential with the key to encrypt with: 32 bytes, or 64 hexadecimal digits."""
    key_file: FilePath | None = None
    """File with that key, where there is no systemd."""

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.key_credential is not None and self.key_file is not None:
            raise ValueError("key_credential and key_file name two keys: set one")
        if self.encrypt and self.key_credential is None and self.key_file is None:
            raise ValueError("encrypt = true needs key_credential or key_file")
        return self

    def read_key(self, environment: Mapping[str, str]) -> bytes | None:
        """The key, 32 bytes; None: none is set, or only the service has the credential.

        Raises:
            ConfigurationError: it cannot be read, or is no key.
        """
        if self.key_credential is not None:
            folder = environment.get("CREDENTIALS_DIRECTORY")
            if folder is None:
                return None
            name, path = f"bundles.key_credential = {self.key_credential!r}", Path(folder) / self.key_credential
        elif self.key_file is not None:
            name, path = f"bundles.key_file = {str(self.key_file)!r}", self.key_file
        else:
            return None
        try:
            content = path.read_bytes()
        except OSError as exc:
            raise ConfigurationError(f"{name}: cannot read {path}: {exc.strerror}") from exc
        if len(content) != KEY_BYTES:
            try:
                content = bytes.fromhex(content.decode("ascii").strip())
            except ValueError:
                content = b""
        if len(content) != KEY_BYTES:
            raise ConfigurationError(f"{name}: {path} is no key: 32 bytes or 64 hexadecimal digits are needed")
        return content
