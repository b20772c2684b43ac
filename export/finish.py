"""The last part of every training, whatever its task: threshold, figures, comparison, golden set, bundle and report."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.comparison import Comparison, LayerError, QuantizationLoss, compare, doubts, losses
from export.cross_validation import RECORD
from export.dataset import Dataset, DatasetError, Sample
from export.evaluate import Detector, Scored, rescore, score_samples
from export.evaluation import FIGURE_NAMES, Evaluation, Task, choose_for, evaluate
from export.package import (
    Draft,
    dataset_record,
    golden_candidates,
    golden_set,
    held_out_thresholds,
    write_bundle,
)
from export.progress import ProgressLine
from export.report import REPORT, Report, write_report
from export.samples import with_references
from export.summary import counted
from export.thresholds import Rule, percent
from station.adapters.litert_model import LitertModel
from station.manifest import Manifest, QualityLimits, Thresholds

NEVER_OK = Thresholds(default=0.5, unsure_from=0.0, chosen_on="none: every class is a kind of defect, nothing is ok")
"""Of a classifier without a class of good parts."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A quantized model with what it takes to make a bundle of it.

    Attributes:
        draft: the int8 model and how it is used.
        exact: the float model that it was made from.
        quality: limits of the station's quality gate.
        configuration: the resolved knobs.
        layers: measures the layers, called once; None where nobody asks.
    """

    draft: Draft
    exact: Detector
    quality: QualityLimits
    configuration: Mapping[str, Any]
    layers: Callable[[], Sequence[LayerError]] | None = None


@dataclass(frozen=True, slots=True)
class Demands:
    """What the person who trains asks for.

    Attributes:
        allow_regression: write the bundle even if int8 is worse than float by more than the limits.
        rule: how the threshold is chosen; None: by what the held-out pictures allow.
        others: name → headline figures of other models on the test pictures, for the report.
    """

    allow_regression: bool = False
    rule: Rule | None = None
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def finish(
    candidate: Candidate,
    dataset: Dataset,
    out: Path,
    say: Callable[[str], None],
    demands: Demands | None = None,
) -> Path:
    """Choose the threshold on held-out pictures, measure on test pictures, and write bundle, metrics.json and report.

    Where there are no test pictures the held-out ones serve for both, and the report says so.

    Returns:
        Path of the bundle, `OUT/NAME.bundle`.

    Raises:
        DatasetError: there are no held-out pictures, or none that can stand in the golden set; in that case the report
            is written, the bundle not.
        QuantizationLoss: int8 costs more than the limits and nobody allowed it; the report is written, the bundle not.
        BundleError, GoldenMismatch: the deployed path does not take the model.
    """
    demands = demands or Demands()
    draft = candidate.draft
    held_out = with_references(dataset.splits["validation"])
    if not held_out:
        raise DatasetError(
            f"{dataset.root}: too few pictures to hold some out for the threshold; at least 10 a class or group"
        )
    created_at = datetime.now(UTC)
    task = Task(draft.task, dataset.labels, dataset.good)
    shown = draft.deployed(created_at, heatmap=True)
    # The map takes time that the station does not spend; only masks need it for the figures.
    deployed = shown if any(sample.mask for sample in dataset.samples) else draft.deployed(created_at)
    channels = draft.preprocessing.channels

    def score(model: Detector, samples: Sequence[Sample], what: str) -> list[Scored]:
        return score_samples(model, samples, dataset.labels, channels, ProgressLine(what), compares=draft.compares)

    say(f"scoring {len(held_out)} held-out pictures")
    scored = {("validation", "int8"): score(deployed, held_out, "int8, held out")}
    scored["validation", "float"] = score(candidate.exact, held_out, "float, held out")
    thresholds, of_threshold = _thresholds(scored["validation", "int8"], task, draft.manifest(created_at), demands.rule)
    warnings = _of_the_data(dataset) + of_threshold
    if test := dataset.splits["test"]:
        say(f"scoring {len(test)} test pictures")
        scored["test", "int8"] = score(deployed, test, "int8, test")
        scored["test", "float"] = score(candidate.exact, test, "float, test")
        split = "test"
    else:
        split = "validation"
        warnings.append(
            "there are no test pictures: these figures are from the pictures that the threshold was chosen on, "
            "and are too good"
        )
    figures = {
        f"{name}_{kind}": evaluate(items, task, thresholds, intervals=False)
        for (name, kind), items in scored.items()
        if name != split
    }
    layers = candidate.layers() if candidate.layers is not None else ()
    comparison = compare(scored[split, "float"], scored[split, "int8"], task, thresholds, layers)
    figures |= {f"{split}_float": comparison.before, f"{split}_int8": comparison.after}
    found = losses(comparison)
    warnings += _of_quantization(comparison, found)
    manifest = draft.manifest(created_at).model_copy(
        update={
            "thresholds": thresholds,
            "quality": candidate.quality,
            "metrics": {name: one.flat() for name, one in figures.items()},
            "dataset": dataset_record(dataset),
            "configuration": dict(candidate.configuration),
        }
    )
    path = out / f"{draft.name}.bundle"
    sha256, size = "(not written)", len(draft.model)
    refusal = None if demands.allow_regression else _refusal(found, out)
    if refusal is None:
        try:
            manifest, sha256 = _write(path, manifest, draft, deployed, dataset)
            size = path.stat().st_size
        except DatasetError as exc:
            # How poor the model is shows in the report: it is what the person who trains needs now.
            refusal = DatasetError(f"{exc}; no bundle is written; see {out / REPORT}")
    if refusal is not None:
        warnings.insert(0, str(refusal).removesuffix(f"; see {out / REPORT}"))
    write_report(
        out,
        Report(
            manifest=manifest,
            sha256=sha256,
            bundle_bytes=size,
            dataset=dataset,
            split=split,
            scored=scored[split, "int8"],
            evaluation=comparison.after,
            explain=lambda sample: rescore(shown, sample, channels, compares=draft.compares),
            comparison=comparison,
            folds=_folds(out),
            others=demands.others,
            written=refusal is None,
            warnings=warnings,
            configuration=candidate.configuration,
            further={name: one.record() for name, one in figures.items() if not name.startswith(split)},
        ),
    )
    _tell(say, figures, thresholds, warnings)
    say(f"report: {out / REPORT}")
    if refusal is not None:
        raise refusal
    say(f"wrote {path}, {size} bytes, sha256 {sha256}")
    return path


def _thresholds(
    scored: Sequence[Scored], task: Task, manifest: Manifest, rule: Rule | None
) -> tuple[Thresholds, list[str]]:
    """The bundle's thresholds, and what the held-out pictures cannot support."""
    if rule is None and task.kind == "detect":
        return held_out_thresholds(scored), []
    if rule is None and task.good is None:
        return NEVER_OK, []
    if rule is None and not any(item.sample.label == task.good for item in scored):
        text = "no good parts were held out: the threshold is one half and not chosen on anything"
        return Thresholds(default=0.5, chosen_on=text), [text]
    choice = choose_for(scored, task, manifest, rule)
    text = f"{len(scored)} held-out pictures, {choice.text}"
    # The page speaks of the test pictures: these are about other ones.
    told = "; ".join(choice.warnings)
    warnings = [f"threshold, chosen on held-out pictures: {told}"] if told else []
    return Thresholds(default=choice.threshold, chosen_on=text), warnings


def _write(
    path: Path, manifest: Manifest, draft: Draft, deployed: LitertModel, dataset: Dataset
) -> tuple[Manifest, str]:
    """Write the bundle with a golden set; returns its manifest and its sha256."""
    candidates = golden_candidates(
        dataset.splits["validation"],
        draft.preprocessing.channels,
        compares=draft.compares,
        marked=draft.task == "anomaly",
    )
    cases, golden = golden_set(deployed, candidates, manifest.thresholds)
    manifest = manifest.model_copy(update={"golden": cases})
    return manifest, write_bundle(path, manifest, draft.model, golden, draft.extra).sha256


def _refusal(found: Sequence[str], out: Path) -> QuantizationLoss | DatasetError | None:
    if not found:
        return None
    return QuantizationLoss(
        f"the int8 model is worse than the float one: {'; '.join(found)}; train longer or calibrate on more pictures, "
        f"or accept it with --allow-regression; no bundle is written; see {out / REPORT}"
    )


def _of_quantization(comparison: Comparison, found: Sequence[str]) -> list[str]:
    """What int8 costs for certain, which a refusal repeats in one line, and what it may cost."""
    warnings = [f"int8 is worse than float: {text}" for text in found]
    if doubtful := doubts(comparison):
        warnings.append(f"int8 may be worse than float: {'; '.join(doubtful)}")
    return warnings


def _of_the_data(dataset: Dataset) -> list[str]:
    """What was found in the folder that a reader must know before trusting any figure."""
    doubtful = [problem for problem in dataset.problems if problem.severity == "warning"]
    warnings = [problem.what for problem in doubtful if problem.kind in {"few", "groups"}]
    if leaks := sum(problem.kind == "leak" for problem in doubtful):
        warnings.append(
            f"the split leaks in {counted(leaks, 'place')}: the same part, or one that looks like it, stands in two "
            "splits; the figures are better than the truth (Data lists the pictures)"
        )
    return warnings


def _folds(out: Path) -> Sequence[Mapping[str, float]]:
    """Headline figures of a cross-validation that stands in the folder."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        folds = record["test_int8"]
        return [{name: float(fold[name]) for name in FIGURE_NAMES if name in record["summary"]} for fold in folds]
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _tell(
    say: Callable[[str], None], figures: Mapping[str, Evaluation], thresholds: Thresholds, warnings: Sequence[str]
) -> None:
    for name, one in figures.items():
        values = ", ".join(f"{FIGURE_NAMES[key]} {value:.4f}" for key, value in one.headline().items())
        counts = "" if one.counts is None else f"; {one.counts}"
        pointing = "" if one.peaks is None else f"; map on the mask {percent(one.peaks[0] / one.peaks[1])}"
        say(f"{name}: {values}{counts}{pointing}")
    say(f"threshold {thresholds.default:.3f}: {thresholds.chosen_on}")
    for text in warnings:
        say(f"warning: {text}")
