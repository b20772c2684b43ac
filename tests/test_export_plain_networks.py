"""The plain networks that a classifier's report compares with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_parts import write_parts

from export.classifier import Preset
from export.dataset import read_dataset
from export.fit_classify import knobs_of
from export.plain_networks import PLAIN, plain_figures, plain_minutes
from export.request import Request
from export.samples import DatasetError
from export.train_classifier import ClassifierKnobs

pytestmark = [
    pytest.mark.training,
    pytest.mark.timeout(600),
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def request_for(tmp_path: Path, said: list[str]) -> Request:
    dataset = read_dataset(write_parts(tmp_path / "data", {"good": 14, "hole": 14}))
    out = tmp_path / "out"
    out.mkdir()
    return Request(dataset, out, "parts", "1", 30.0, 0, say=said.append)


def knobs_for(request: Request, preset: Preset) -> ClassifierKnobs:
    return knobs_of(replace(request, preset=preset))


def test_both_are_tested_in_float_and_not_trained_again(request_for: Request, said: list[str]) -> None:
    wanted = [replace(knobs_for(request_for, preset), plain_epochs=2) for preset in PLAIN]
    found = plain_figures(request_for, wanted, {})
    assert list(found) == ["plain-a", "plain-b"]
    for figures in found.values():
        assert set(figures) == {"accuracy", "macro_f1", "auroc", "ap", "minutes", "cut_short"}
        assert figures["cut_short"] == 0
        assert all(0 <= value <= 1 for name, value in figures.items() if name != "minutes")
    assert all(line.startswith("for comparison, plain-") for line in said)
    said.clear()
    assert plain_figures(replace(request_for, minutes=60.0), wanted, {}) == found
    assert said == []
    # A record of a version that knew fewer knobs is one of the same comparison.
    record = request_for.out / "plain.json"
    known = json.loads(record.read_text(encoding="utf-8"))
    for one in known.values():
        del one["knobs"]["fine_tunings"]
    record.write_text(json.dumps(known), encoding="utf-8")
    assert plain_figures(request_for, wanted, {}) == found
    assert said == []
    # Ctrl-C between the two: the first one stays, the other is trained.
    record.write_text(json.dumps({"plain-a": known["plain-a"]}), encoding="utf-8")
    assert plain_figures(request_for, wanted, {})["plain-a"] == found["plain-a"]
    assert {line.split(":")[0] for line in said} == {"for comparison, plain-b"}
    # Other knobs are another comparison.
    said.clear()
    plain_figures(request_for, [replace(wanted[1], optimizer="sgd")], {})
    assert said


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"plain-a": 3}', '{"plain-a": {"figures": []}}', '{"plain-a": {"figures": {}, "knobs": 3}}']
)
def test_a_damaged_record_is_made_anew(request_for: Request, said: list[str], content: str) -> None:
    (request_for.out / "plain.json").write_text(content, encoding="utf-8")
    assert plain_figures(request_for, [replace(knobs_for(request_for, "plain-b"), plain_epochs=1)], {})
    assert said


def test_what_cannot_be_compared_is_said(request_for: Request, said: list[str]) -> None:
    wanted = [knobs_for(request_for, "plain-b")]
    splits = request_for.dataset.splits
    one_class = [sample for sample in splits["test"] if sample.label == 0]
    few = replace(request_for.dataset, splits={**splits, "test": one_class})
    assert plain_figures(replace(request_for, dataset=few), wanted, {}) == {}
    assert plain_figures(replace(request_for, minutes=2.0), wanted, {}) == {}
    assert said == [
        "plain networks: left out of the report, since the split test has pictures of fewer than two classes",
        "plain networks: left out of the report, since 2 minutes of training leave no time for them; 4 or more do",
    ]
    assert not (request_for.out / "plain.json").exists()


def test_a_loss_that_is_not_finite_costs_the_comparison_and_not_the_training(
    request_for: Request, said: list[str]
) -> None:
    wanted = [replace(knobs_for(request_for, "plain-b"), plain_rate=1e30, optimizer="sgd")]
    assert plain_figures(request_for, wanted, {}) == {}
    assert "left out of the report: the loss is not finite" in said[-1]


def test_they_take_a_small_share_of_the_time() -> None:
    assert plain_minutes(30.0, 100) == pytest.approx(0.9)
    assert plain_minutes(300.0, 100) == 1
    assert plain_minutes(300.0, 10_000) == 5
    assert plain_minutes(None, 100) == 1


def test_they_are_what_textbooks_start_from(request_for: Request) -> None:
    facts = {name: replace(one, channels=3) for name, one in request_for.dataset.facts.items()}
    colour = replace(request_for, dataset=replace(request_for.dataset, facts=facts))
    for preset in PLAIN:
        knobs = knobs_for(colour, preset)
        assert (knobs.optimizer, knobs.plain_rate) == ("adam", 1e-3)
        assert (knobs.dropout, knobs.weight_decay, knobs.smoothing) == (0, 0, 0)
        # Twenty pictures are two steps an epoch.
        assert knobs.plain_epochs == 1600
        assert knobs.patience == 400
        assert knobs.channels == (1 if preset == "plain-b" else 3)
    given = replace(colour, options={"colour": True, "dropout": 0.3, "weight_decay": 0.1, "patience": 2})
    knobs = knobs_for(given, "plain-b")
    assert (knobs.dropout, knobs.weight_decay, knobs.patience, knobs.channels) == (0.3, 0.1, 2, 3)
    with pytest.raises(DatasetError, match="--epochs 0: the preset plain-b has no pretrained features"):
        knobs_for(replace(request_for, options={"epochs": 0}), "plain-b")
