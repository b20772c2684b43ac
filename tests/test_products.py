"""Products: their settings, their rules, and what holds when."""

import gc
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.errors import ConfigurationError, ModelError
from station.manifest import Thresholds
from station.messages import Box, Defect
from station.product_settings import DefectRule
from station.recipe import NO_RECIPE, Recipe, covers
from station.section import Region
from station.settings import Settings, from_document
from station.succession import KEPT, Succession

CAMERA = {"kind": "folder", "path": "in"}


def load(product: dict[str, Any], camera: dict[str, Any] | None = None, **more: Any) -> Settings:
    document = {"camera": {"c": {**CAMERA, **(camera or {})}}, "product": product, **more}
    return from_document(document, "station.toml", Path("/line"), {})


def region(x: int, y: int, width: int = 10, height: int = 10) -> dict[str, int]:
    return {"x_px": x, "y_px": y, "width_px": width, "height_px": height}


def test_a_product_names_bundle_thresholds_regions_rules_and_reference() -> None:
    settings = load(
        {
            "bolt": {
                "bundle": "bolt.bundle",
                "reference": "/good/bolt.png",
                "number": 17,
                "threshold": 0.6,
                "thresholds": {"spot": 0.7},
                "inspect": {"head": region(0, 0), "thread": region(10, 0)},
                "ignore": {"mark": region(2, 2, 8, 8)},
                "allow": {"small": {"label": "spot", "max_area_px": 40.0, "max_count": 3}},
                "camera": {"c": {"threshold": 0.5}},
            },
            "nut": {"cameras": []},
        }
    )
    bolt = settings.product["bolt"].of("c")
    assert bolt.bundle == Path("/line/bolt.bundle")
    assert bolt.reference == Path("/good/bolt.png")
    assert (bolt.threshold, bolt.thresholds) == (0.5, {"spot": 0.7})
    assert settings.product["bolt"].of("another").threshold == 0.6
    assert settings.product["nut"].of("c").bundle is None


@pytest.mark.parametrize(
    ("product", "camera", "told"),
    [
        (
            {"p": {"inspect": {"left": region(0, 0), "right": region(9, 9)}}},
            {},
            "product.p: regions inspect.left and inspect.right overlap",
        ),
        (
            {"p": {"camera": {"c": {"ignore": {"a": region(0, 0), "b": region(0, 0)}}}}},
            {},
            "product.p.camera.c: regions ignore.a and ignore.b overlap",
        ),
        (
            {"p": {"ignore": {"a": region(95, 0)}}},
            {"region": region(0, 0, 100, 50)},
            "camera.c: product.p.ignore.a reaches to x = 105, y = 10; the picture has 100×50 px",
        ),
        (
            {"p": {"number": 1}, "q": {"number": 1}},
            {},
            "product.q.number = 1: product.p has that number already",
        ),
        ({"p": {"cameras": ["d"]}}, {}, "product.p: there is no table [camera.d]; known: c"),
        ({"p": {"camera": {"d": {}}}}, {}, "product.p: there is no table [camera.d]; known: c"),
        ({"p": {"cameras": [], "camera": {"c": {}}}}, {}, "product.p.camera.c: product.p.cameras does not name it"),
        ({"p": {"controls": {"exposure": 5.0}}}, {}, "product.p.controls.exposure: camera.c must set"),
        ({"p": {"allow": {"r": {}}}}, {}, "product.p.allow.r: a rule without keys would let every defect pass"),
        (
            {"p": {"allow": {"r": {"min_area_px": 5.0, "max_area_px": 4.0}}}},
            {},
            "min_area_px = 5 is above max_area_px = 4",
        ),
        ({"p": {"thresholds": {"spot": 1.0}}}, {}, "product.p.thresholds.spot = 1.0: Input should be less than 1"),
        ({"p": {"bundel": "x"}}, {}, "product.p.bundel = 'x': unknown key"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_it(product: dict[str, Any], camera: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(product, camera)
    assert told in str(caught.value)


def test_a_device_of_known_size_is_compared_after_it_was_turned() -> None:
    device = {"kind": "v4l2", "path": None, "width_px": 640, "height_px": 480, "rotate_degrees": 90}
    document = {"camera": {"c": {key: value for key, value in device.items() if value is not None}}}
    with pytest.raises(ConfigurationError, match="the picture has 480×640 px"):
        from_document({**document, "product": {"p": {"inspect": {"a": region(475, 0)}}}}, "f", Path("/"), {})


def test_a_start_that_has_no_table_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"changeover.start = 'b' has no table \[product.b\]; known: a"):
        load({"a": {}}, changeover={"start": "b"})


def defect(label: str, width: float, height: float, x: float = 0.0, y: float = 0.0, mm2: float | None = None) -> Defect:
    return Defect(label=label, score=0.9, box=Box(x_px=x, y_px=y, width_px=width, height_px=height), area_mm2=mm2)


def recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate({"product": "p", **keys})


def test_no_spot_larger_than_a_fifth_of_a_square_millimetre() -> None:
    rules = recipe(allow={"small": {"label": "spot", "max_area_mm2": 0.2}})
    small, large, unknown = defect("spot", 3, 3, mm2=0.2), defect("spot", 3, 3, mm2=0.21), defect("spot", 3, 3)
    scratch = defect("scratch", 1, 1, mm2=0.01)
    assert rules.let_pass([small, large, unknown, scratch]) == ((large, unknown, scratch), (small,))


def test_at_most_three_small_pin_holes() -> None:
    rules = recipe(allow={"few": {"label": "pin-hole", "max_area_px": 20.0, "max_count": 3}})
    holes = [defect("pin-hole", 4, 5, x=float(place)) for place in range(4)]
    assert rules.let_pass(holes[:3]) == ((), tuple(holes[:3]))
    assert rules.let_pass(holes) == (tuple(holes), ())
    large = defect("pin-hole", 5, 5)
    assert rules.let_pass([*holes[:3], large]) == ((large,), tuple(holes[:3]))


def test_every_rule_that_covers_a_defect_must_hold() -> None:
    rules = recipe(allow={"spots": {"label": "spot"}, "any": {"max_count": 2}})
    spots = [defect("spot", 2, 2) for _ in range(3)]
    assert rules.let_pass(spots[:2]) == ((), tuple(spots[:2]))
    assert rules.let_pass(spots) == (tuple(spots), ())


areas = st.floats(0, 1000, allow_nan=False)
rules_of = st.builds(
    lambda label, least, span, count: DefectRule(
        label=label, min_area_px=least, max_area_px=least + span, max_count=count
    ),
    st.none() | st.sampled_from(["a", "b"]),
    areas,
    areas,
    st.none() | st.integers(0, 5),
)
defects_of = st.builds(
    defect,
    st.sampled_from(["a", "b", "c"]),
    st.floats(0, 40),
    st.floats(0, 40),
)


@given(rules=st.dictionaries(st.sampled_from(["r", "s", "t"]), rules_of), found=st.lists(defects_of, max_size=12))
def test_each_defect_counts_or_is_let_pass_and_never_more_than_a_rule_allows(
    rules: dict[str, DefectRule], found: list[Defect]
) -> None:
    counting, passing = Recipe(product="p", allow=rules).let_pass(found)
    assert sorted(map(repr, (*counting, *passing))) == sorted(map(repr, found))
    for one in passing:
        assert any(covers(rule, one) for rule in rules.values())
    for rule in rules.values():
        if rule.max_count is not None:
            assert sum(covers(rule, one) for one in passing) <= rule.max_count
    assert NO_RECIPE.let_pass(found) == (tuple(found), ())


@given(x=st.floats(-20, 60), y=st.floats(-20, 60))
def test_a_defect_counts_if_its_centre_is_inspected_and_not_ignored(x: float, y: float) -> None:
    rules = recipe(inspect={"a": region(0, 0, 20, 20), "b": region(20, 0, 20, 20)}, ignore={"c": region(15, 5)})
    box = Box(x_px=x - 1, y_px=y - 2, width_px=2, height_px=4)
    centre_x, centre_y = box.centre_px
    inside = 0 <= centre_x < 40 and 0 <= centre_y < 20
    ignored = 15 <= centre_x < 25 and 5 <= centre_y < 15
    assert rules.looks_at(box) == (inside and not ignored)
    assert NO_RECIPE.looks_at(box)


def test_thresholds_of_a_product_stand_over_those_of_the_bundle() -> None:
    own = Thresholds(default=0.5, per_class={"spot": 0.4, "cut": 0.3}, unsure_from=0.2, chosen_on="900 frames")
    assert NO_RECIPE.thresholds_over(own) is own
    per_class = recipe(thresholds={"spot": 0.8}).thresholds_over(own)
    assert [per_class.of(label) for label in ("spot", "cut", "other")] == [0.8, 0.3, 0.5]
    both = recipe(threshold=0.6, thresholds={"spot": 0.8}).thresholds_over(own)
    assert [both.of(label) for label in ("spot", "cut", "other")] == [0.8, 0.6, 0.6]
    assert (both.unsure_from, both.chosen_on) == (0.2, "product p")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"thresholds": {"dent": 0.5}},
            r"product\.p\.thresholds\.dent: bundle b has no class 'dent'; it has spot, cut",
        ),
        ({"allow": {"r": {"label": "dent"}}}, r"product\.p\.allow\.r\.label: bundle b has no class 'dent'"),
    ],
)
def test_a_class_that_the_bundle_does_not_know_is_an_error(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        recipe(**keys).check(("spot", "cut"), "b")


def test_a_recipe_survives_its_way_through_json() -> None:
    full = recipe(
        threshold=0.1 + 0.2,
        thresholds={"spot": 1 / 3},
        inspect={"a": region(0, 0)},
        ignore={"b": region(1, 1)},
        allow={"r": {"label": "spot", "max_area_mm2": 0.2, "max_count": 1}},
    )
    assert Recipe.model_validate_json(full.model_dump_json(exclude_defaults=True)) == full


def test_a_region_that_the_picture_does_not_hold_is_named() -> None:
    rules = recipe(ignore={"b": region(95, 0)})
    assert rules.outside(105, 10) is None
    assert rules.outside(104, 10) == "product.p.ignore.b reaches to x = 105, y = 10; the picture has 104×10 px"


@given(st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=KEPT + 40))
def test_what_held_when_is_what_was_told_then(steps: list[tuple[float, bool]]) -> None:
    """Against a plain list of spans; one half of the changes is abandoned."""
    succession = Succession("0")
    spans: list[tuple[float, str, bool]] = [(-math.inf, "0", False)]
    now = 0.0
    for number, (step, completes) in enumerate(steps):
        now += step
        succession.begin(now)
        spans.append((now, spans[-1][1], True))
        now += step
        if completes:
            succession.complete(now, f"{number + 1}")
        else:
            succession.abandon(now)
        spans.append((now, succession.newest.thing, False))
    forgotten = spans[-KEPT][0] if len(spans) > KEPT else -math.inf
    for at, _, _ in spans:
        for moment in (at, at + 0.1):
            if moment < forgotten:
                assert succession.at(moment).between
            else:
                _, thing, between = max((s for s in enumerate(spans) if s[1][0] <= moment), key=lambda s: s[0])[1]
                assert (succession.at(moment).thing, succession.at(moment).between) == (thing, between)


@given(st.integers(0, 40), st.floats(-1, 100))
def test_what_nobody_asks_for_any_more_is_let_go_of(changes: int, before: float) -> None:
    whole, short = Succession("0"), Succession("0")
    for number in range(changes):
        for one in (whole, short):
            one.begin(2.0 * number)
            one.complete(2.0 * number + 1.0, f"{number + 1}")
    short.forget(before)
    for quarter in range(int(4 * before), 4 * 100):
        assert short.at(max(before, quarter / 4)) == whole.at(max(before, quarter / 4))


def test_a_thing_that_was_let_go_of_can_be_collected() -> None:
    class Thing:
        pass

    succession = Succession(Thing())
    former = weakref.ref(succession.newest.thing)
    succession.begin(1.0)
    succession.complete(2.0, Thing())
    succession.forget(1.9)
    gc.collect()
    assert former() is not None
    succession.forget(2.0)
    gc.collect()
    assert former() is None


def test_a_change_is_begun_once_and_ended_once() -> None:
    succession = Succession("a")
    with pytest.raises(ValueError, match="no change is under way"):
        succession.complete(1.0, "b")
    succession.begin(1.0)
    with pytest.raises(ValueError, match="a change is under way"):
        succession.begin(2.0)
    succession.replace("A")
    succession.abandon(2.0)
    assert [succession.at(moment).thing for moment in (0.5, 1.5, 2.5)] == ["A", "A", "A"]
    assert [succession.at(moment).between for moment in (0.5, 1.5, 2.5)] == [False, True, False]


def test_regions_side_by_side_share_no_point() -> None:
    left, right = Region(**region(0, 0)), Region(**region(10, 0))
    assert not left.overlaps(right)
    assert not right.overlaps(left)
    assert [one.holds(10, 5) for one in (left, right)] == [False, True]
