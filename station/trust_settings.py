"""`[trust]`: whose bundles a station uses."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from station.section import FilePath, Section
from station.trust import KeyId, Trust, key_id, read_public_key


class TrustSettings(Section):
    """`[trust]`"""

    keys: Annotated[tuple[FilePath, ...], Field(strict=False)] = ()
    """Files with the public keys (PEM, Ed25519) of those whose bundles are trusted; several while keys change."""
    require_signature: bool = False
    """Use no bundle without a signature by one of `keys`, wherever it comes from; the shipped ones have none."""
    revoked: Annotated[tuple[KeyId, ...], Field(strict=False)] = ()
    """Ids of keys that count for nothing any more; what only they have signed is refused."""

    @model_validator(mode="after")
    def _somebody_is_trusted(self) -> Self:
        if self.require_signature and not self.keys:
            raise ValueError("require_signature = true needs at least one file in keys")
        return self

    def read(self) -> Trust:
        """Read the keys.

        Raises:
            ConfigurationError: a file cannot be read or holds no such key.
        """
        public = [read_public_key(Path(path)) for path in self.keys]
        return Trust({key_id(key): key for key in public}, self.require_signature, frozenset(self.revoked))
