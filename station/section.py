"""What every table of the configuration file is made of."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]


def _to_path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


FilePath = Annotated[Path, BeforeValidator(_to_path)]
"""A path, written as a string."""


ControlName = Literal["exposure", "gain", "white_balance", "focus", "brightness", "contrast", "saturation"]
"""What can be set of a Video4Linux camera."""


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

    def covers(self, other: "Region") -> bool:
        """Whether the other one lies in this one as a whole."""
        return (
            self.x_px <= other.x_px
            and self.y_px <= other.y_px
            and other.x_px + other.width_px <= self.x_px + self.width_px
            and other.y_px + other.height_px <= self.y_px + self.height_px
        )

    def overlaps(self, other: "Region") -> bool:
        """Whether the two have a pixel in common."""
        return (
            self.x_px < other.x_px + other.width_px
            and other.x_px < self.x_px + self.width_px
            and self.y_px < other.y_px + other.height_px
            and other.y_px < self.y_px + self.height_px
        )

    def holds(self, x_px: float, y_px: float) -> bool:
        """Whether a point lies in it; of two regions side by side, one does."""
        return self.x_px <= x_px < self.x_px + self.width_px and self.y_px <= y_px < self.y_px + self.height_px

    def not_held(self, key: str, width_px: int, height_px: int) -> str | None:
        """Why a picture of this size does not hold it, in one line; None: it does."""
        right, bottom = self.x_px + self.width_px, self.y_px + self.height_px
        if right <= width_px and bottom <= height_px:
            return None
        return f"{key} reaches to x = {right}, y = {bottom}; the picture has {width_px}×{height_px} px"
