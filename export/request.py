"""What a task's training is asked to do; each task's module has `train(request) -> Path`, which returns the bundle."""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.samples import Dataset
from export.thresholds import Rule


@dataclass(frozen=True, slots=True)
class Request:
    """One training.

    Attributes:
        dataset: what to train on; its splits are final.
        out: folder for checkpoints, `NAME.bundle` and `metrics.json`; a run that was interrupted goes on from it.
        name, version: of the bundle.
        minutes: time budget of the training itself; None where `options` give a number of steps.
        seed: of weights and augmentation.
        size_px: input size that was asked for; None leaves it to the task.
        preset: network that was asked for; None leaves it to the task.
        options: the task's own knobs that were given, by the name of their option.
        allow_regression: write the bundle even if its int8 model is worse than the float one by more than the limits.
        rule: how the threshold is to be chosen; None: by what the held-out pictures allow.
        synthesis: way of synthesis, and pictures of each class that it makes for this training; None: none are made.
        compare: train the plain networks besides, for the report, where the task has some.
        say: takes lines for people; one with "min left" is progress, and on a terminal the next takes its place.
        kept: what trainings on parts of the same data may share, by a name of the task\'s own.
    """

    dataset: Dataset
    out: Path
    name: str
    version: str
    minutes: float | None
    seed: int
    size_px: int | None = None
    preset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    allow_regression: bool = False
    rule: Rule | None = None
    synthesis: tuple[str, int] | None = None
    compare: bool = True
    say: Callable[[str], None] = print
    kept: MutableMapping[str, Any] = field(default_factory=dict)
