"""What every table of the configuration file is made of."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]


def _to_path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


FilePath = Annotated[Path, BeforeValidator(_to_path)]
"""A path, written as a string."""


class Section(BaseModel):
    """Base of every table of the file: frozen, no unknown keys, and nothing is converted: `port = true` is not 1."""

    # Validators are built when they are first used: most tables are in no configuration, and a camera's process, which
    # is handed its settings, uses none of them. That is 1.4 MB for each process.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, defer_build=True)


class Region(Section):
    """A rectangle of the picture in pixels, after rotation."""

    x_px: int = Field(ge=0)
    """Left edge."""
    y_px: int = Field(ge=0)
    """Top edge."""
    width_px: int = Field(ge=8)
    """Width."""
    height_px: int = Field(ge=8)
    """Height."""
