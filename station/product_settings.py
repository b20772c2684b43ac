"""`[product.<name>]`: what the line makes, and how each camera judges it.

The keys stand in the product's own table for all cameras, or in `[product.<name>.camera.<camera>]` for one; what stands
there takes the place of the same key above.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Annotated, Self

from pydantic import Field, model_validator

from station.messages import Name
from station.section import ControlName, FilePath, Region, Section

Threshold = Annotated[float, Field(gt=0, lt=1)]
Area = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DefectRule(Section):
    """`[product.<name>.allow.<rule>]`: defects that are let pass. A defect that no rule covers counts, and so do all
    that a rule covers when they are too many."""

    label: str | None = Field(default=None, min_length=1)
    """Covers this class of the bundle only; default: every class."""
    min_area_px: Area | None = None
    """Covers defects of at least this area of their box, in pixels of the picture."""
    max_area_px: Area | None = None
    """Covers defects of at most this area of their box, in pixels of the picture."""
    min_area_mm2: Area | None = None
    """The same in mm²; each camera must name a calibration."""
    max_area_mm2: Area | None = None
    """The same in mm²; each camera must name a calibration."""
    max_count: int | None = Field(default=None, ge=0)
    """So many in one picture are let pass, at most; default: any number."""

    @property
    def in_mm2(self) -> str | None:
        """The key, with its value, that only a camera with a scale can obey; None: there is none."""
        for key, value in (("max_area_mm2", self.max_area_mm2), ("min_area_mm2", self.min_area_mm2)):
            if value is not None:
                return f"{key} = {value:g}"
        return None

    @model_validator(mode="after")
    def _covers_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("a rule without keys would let every defect pass; give label, an area or max_count")
        for least, most in (("min_area_px", "max_area_px"), ("min_area_mm2", "max_area_mm2")):
            low, high = getattr(self, least), getattr(self, most)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{least} = {low:g} is above {most} = {high:g}: the rule covers nothing")
        return self


class ProductView(Section):
    """How a product is judged."""

    bundle: FilePath | None = None
    """Bundle file; default: the camera's."""
    reference: FilePath | None = None
    """Picture of a good part of this product, for a bundle that compares; default: the camera's."""
    threshold: Threshold | None = None
    """For all classes without one of their own; default: `model.threshold`, else the bundle's."""
    thresholds: Mapping[str, Threshold] = Field(default_factory=dict)
    """`[product.<name>.thresholds]`, class = threshold; default: `threshold`, else the bundle's."""
    inspect: Mapping[Name, Region] = Field(default_factory=dict)
    """`[product.<name>.inspect.<region>]`: a defect counts only if its centre lies in one of these; default: the whole
    picture."""
    ignore: Mapping[Name, Region] = Field(default_factory=dict)
    """`[product.<name>.ignore.<region>]`: a defect whose centre lies in one of these does not count."""
    allow: Mapping[Name, DefectRule] = Field(default_factory=dict)
    """`[product.<name>.allow.<rule>]`: defects that are let pass, by size and number; default: none is."""
    controls: Mapping[ControlName, float] = Field(default_factory=dict)
    """Of a Video4Linux camera: takes the place of the same in the camera's own `controls`, which must name it."""

    @model_validator(mode="after")
    def _regions_are_apart(self) -> Self:
        for kind, regions in (("inspect", self.inspect), ("ignore", self.ignore)):
            for (one, first), (other, second) in combinations(regions.items(), 2):
                if first.overlaps(second):
                    raise ValueError(f"regions {kind}.{one} and {kind}.{other} overlap; make one of the two smaller")
        for one, inspected in self.inspect.items():
            for other, ignored in self.ignore.items():
                if ignored.covers(inspected):
                    raise ValueError(
                        f"region inspect.{one} lies in ignore.{other} as a whole: nothing in it would count"
                    )
        return self

    def regions(self) -> Iterator[tuple[str, Region]]:
        """Every region with its key."""
        for kind, regions in (("inspect", self.inspect), ("ignore", self.ignore)):
            for name, region in regions.items():
                yield f"{kind}.{name}", region


class ProductSettings(ProductView):
    """`[product.<name>]`"""

    number: int | None = Field(default=None, ge=0, le=2**32 - 1)
    """Number by which a Modbus register or a topic may call for it."""
    cameras: Annotated[tuple[Name, ...] | None, Field(strict=False)] = None
    """The cameras that this table concerns; the others judge by their own tables. Default: all."""
    camera: Mapping[Name, ProductView] = Field(default_factory=dict)
    """`[product.<name>.camera.<camera>]`: the keys from `bundle` to `controls`, for one camera."""

    def of(self, camera: str) -> ProductView:
        """How this camera judges the product."""
        if self.cameras is not None and camera not in self.cameras:
            return ProductView()
        own = {name: getattr(self, name) for name in ProductView.model_fields}
        special = self.camera.get(camera)
        if special is not None:
            own |= {name: getattr(special, name) for name in special.model_fields_set}
        return ProductView.model_construct(**own)
