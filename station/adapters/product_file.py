"""Which product runs, over a restart: one small file in the data folder."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from station.errors import StorageError
from station.messages import Message, Name
from station.whole_file import write_whole

FILE = "product.json"
"""In the data folder."""


class _Noted(Message):
    schema_version: Literal[1] = 1
    product: Name


class ProductFile:
    """Notes the product that runs.

    Args:
        data_dir: the data folder.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE

    def load(self) -> str | None:
        """The product that was noted last; None: none was.

        Raises:
            StorageError: there is a note, and it cannot be read.
        """
        try:
            return _Noted.model_validate_json(self._path.read_bytes()).product
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StorageError(f"{self._path}: cannot be read: {exc.strerror}") from exc
        except ValidationError as exc:
            raise StorageError(f"{self._path}: does not name a product") from exc

    def save(self, product: str) -> None:
        """Note a product; it is on the disk when this returns.

        Raises:
            StorageError: the former note is still there.
        """
        try:
            write_whole(self._path, _Noted(product=product).model_dump_json().encode() + b"\n")
        except OSError as exc:
            raise StorageError(f"{self._path}: cannot be written: {exc.strerror}") from exc
