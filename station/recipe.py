"""What a product says of a camera's pictures: which defects count. No clock, no state, no input or output."""

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import Field

from station.errors import ModelError
from station.manifest import Thresholds
from station.messages import Box, Defect, Message, Name
from station.product_settings import DefectRule, ProductView
from station.section import Region


class Recipe(Message):
    """A product as one camera judges it; without a product nothing is changed.

    Attributes:
        product: its name; None: there are no products.
        threshold, thresholds: for all classes and per class; what is not given is the bundle's.
        inspect: a defect counts only if its centre lies in one of these; empty: the whole picture.
        ignore: a defect whose centre lies in one of these does not count.
        allow: rules for what is let pass.
    """

    product: Name | None = None
    threshold: float | None = None
    thresholds: Mapping[str, float] = Field(default_factory=dict)
    inspect: Mapping[Name, Region] = Field(default_factory=dict)
    ignore: Mapping[Name, Region] = Field(default_factory=dict)
    allow: Mapping[Name, DefectRule] = Field(default_factory=dict)

    @classmethod
    def of(cls, product: str, view: ProductView) -> Self:
        """The recipe that the settings of a product describe for one camera."""
        return cls(
            product=product,
            threshold=view.threshold,
            thresholds=view.thresholds,
            inspect=view.inspect,
            ignore=view.ignore,
            allow=view.allow,
        )

    def check(self, labels: Sequence[str], bundle: str) -> None:
        """See that the bundle knows every class that is spoken of.

        Raises:
            ModelError: it does not; the text names the key and the classes that there are.
        """
        named = [(f"thresholds.{label}", label) for label in self.thresholds]
        named += [(f"allow.{name}.label", rule.label) for name, rule in self.allow.items() if rule.label is not None]
        for key, label in named:
            if label not in labels:
                raise ModelError(
                    f"product.{self.product}.{key}: bundle {bundle} has no class {label!r}; it has {', '.join(labels)}"
                )

    def without_scale(self, camera: str) -> str | None:
        """What it means that this camera's scale is not known, in one line; None: no rule asks for it."""
        keys = [f"allow.{name}.{rule.in_mm2}" for name, rule in self.allow.items() if rule.in_mm2 is not None]
        if not keys:
            return None
        return (
            f"product.{self.product}.{', '.join(keys)}: camera {camera} has no scale that fits; what only such a rule "
            "lets pass counts as a defect; `station calibrate scale` makes one"
        )

    def outside(self, width_px: int, height_px: int) -> str | None:
        """The region that a picture of this size does not hold, with what it needs; None: it holds them all."""
        for kind, regions in (("inspect", self.inspect), ("ignore", self.ignore)):
            for name, region in regions.items():
                if fault := region.not_held(f"product.{self.product}.{kind}.{name}", width_px, height_px):
                    return fault
        return None

    def thresholds_over(self, own: Thresholds) -> Thresholds:
        """The bundle's thresholds with this recipe's in their place; the band in which it is not sure stays its own."""
        if self.threshold is None and not self.thresholds:
            return own
        if self.threshold is not None:
            return own.model_copy(
                update={
                    "default": self.threshold,
                    "per_class": dict(self.thresholds),
                    "chosen_on": f"product {self.product}",
                }
            )
        per_class = {**own.per_class, **self.thresholds}
        return own.model_copy(update={"per_class": per_class, "chosen_on": f"product {self.product}"})

    def looks_at(self, box: Box) -> bool:
        """Whether what stands there counts: its centre lies in an inspected and in no ignored region."""
        centre = box.centre_px
        inspected = not self.inspect or any(region.holds(*centre) for region in self.inspect.values())
        return inspected and not any(region.holds(*centre) for region in self.ignore.values())

    def let_pass(self, defects: Sequence[Defect]) -> tuple[tuple[Defect, ...], tuple[Defect, ...]]:
        """Part the defects into those that count and those that are let pass, each in their order.

        A defect is let pass if at least one rule covers it and every rule that covers it covers no more than its
        `max_count`. One whose area in mm² is not known is covered by no rule that asks for it.
        """
        covered = {name: [covers(rule, one) for one in defects] for name, rule in self.allow.items()}
        holds = {
            name: rule.max_count is None or sum(covered[name]) <= rule.max_count for name, rule in self.allow.items()
        }
        counting: list[Defect] = []
        passing: list[Defect] = []
        for place, defect in enumerate(defects):
            rules = [holds[name] for name in self.allow if covered[name][place]]
            (passing if rules and all(rules) else counting).append(defect)
        return tuple(counting), tuple(passing)


NO_RECIPE = Recipe()
"""Judge as bundle and configuration say."""


def covers(rule: DefectRule, defect: Defect) -> bool:
    """Whether a rule speaks of a defect of this class and size; both bounds of an area are included."""
    if rule.label is not None and defect.label != rule.label:
        return False
    area_px = defect.box.width_px * defect.box.height_px
    return _within(area_px, rule.min_area_px, rule.max_area_px) and _within(
        defect.area_mm2, rule.min_area_mm2, rule.max_area_mm2
    )


def _within(area: float | None, least: float | None, most: float | None) -> bool:
    if least is None and most is None:
        return True
    return area is not None and (least is None or area >= least) and (most is None or area <= most)
