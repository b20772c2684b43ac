"""The report of a model: one HTML file for people, its pictures as PNG beside it, metrics.json for machines."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export import page
from export.charts import DARK, LIGHT, Ink, precision_recall_chart, roc_chart, score_chart
from export.comparison import Comparison, doubts, losses, verdict
from export.dataset import SPLITS, Dataset, Sample
from export.evaluate import Scored, corners, match
from export.evaluation import ALL, FIGURE_NAMES, Evaluation, picture_score, score_floor
from export.metrics import Interval, clopper_pearson
from export.page import escape
from export.summary import counted
from export.thresholds import Counts, options, percent
from export.thumbnails import close_up, side_by_side
from station.judge import above_threshold
from station.manifest import Manifest
from station.messages import Defect, Scores
from station.whole_file import write_whole

REPORT = "report.html"
METRICS = "metrics.json"
"""Its keys are SPLIT_int8 and SPLIT_float, as in the manifest."""

PICTURES = "report"

MOST_MISTAKES = 12
MOST_CLOSE_UPS = 18
MOST_FLIPS = 8
MOST_GROUPS = 15
WEAKEST_LAYERS = 8
ENOUGH_PICTURES = 300
"""With so many, none of them wrong, the 95 % interval of the mistakes ends at about 1 %."""

WEAK_RECALL = 0.95
LOW_SQNR_DB = 15.0
"""Below this the noise of a layer is a fifth of its signal: the first place to look when int8 loses."""

GLOSSARY = (
    ("good, bad", "parts without and with a defect, as the labels of the test pictures say"),
    (
        "train, validation, test",
        "pictures that were learnt from, that were held out to choose the threshold, and that were only measured",
    ),
    ("false reject", "a good part that is not called ok"),
    ("miss", "a bad part that is called ok"),
    ("95 % interval", "where the true rate may well lie, given how few parts were tested; more parts make it narrower"),
    ("threshold", "the score from which a part is rejected; a lower one misses less and rejects more"),
    (
        "precision, recall",
        "of what was called this class, how much is right; of what is this class, how much was found",
    ),
    ("F1, macro-F1", "precision and recall in one number; their mean over the classes, however rare a class is"),
    ("AUROC", "the chance that a bad part scores higher than a good one; 0.5 is guessing, 1 is perfect"),
    (
        "average precision, mAP",
        "the mean precision while the threshold sinks until all is found; its mean over classes",
    ),
    ("int8", "the model that the station runs: whole numbers only, several times faster than the trained (float) one"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What a report is made of.

    Attributes:
        manifest, sha256, bundle_bytes: of the bundle.
        dataset: with the bundle's labels (`export.evaluation.for_bundle`).
        split: which pictures `scored` are, in words.
        scored: by the deployed int8 model.
        evaluation: of these.
        explain: scores a sample again, with the map, for the pictures of mistakes.
        trained: the data set is what the bundle was trained on, not another one that it is measured on.
        comparison: with the float model, where it is at hand.
        folds: headline figures of each fold of a cross-validation.
        others: name → headline figures of other models on the same pictures, as the plain presets.
        written: there is a bundle; a warning says why there is none.
        warnings: what a reader must know before trusting the figures, one sentence each.
        configuration: the resolved knobs.
        further: name → figures for `metrics.json` only, as those of other splits.
    """

    manifest: Manifest
    sha256: str
    bundle_bytes: int
    dataset: Dataset
    split: str
    scored: Sequence[Scored]
    evaluation: Evaluation
    explain: Callable[[Sample], Scores]
    trained: bool = True
    comparison: Comparison | None = None
    folds: Sequence[Mapping[str, float]] = ()
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    written: bool = True
    warnings: Sequence[str] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    further: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def write_report(folder: Path, report: Report) -> Path:
    """Write `report.html`, the PNG files in `report/`, and `metrics.json`; returns the path of the page.

    Raises:
        DatasetError: a picture of a mistake cannot be read any more.
        OSError: the folder cannot be written.
    """
    pictures: dict[str, bytes] = {}
    text = page.document(f"{report.manifest.name} {report.manifest.version}: report", _body(report, pictures))
    for stale in (folder / PICTURES).glob("*.png"):
        stale.unlink()
    for name, png in pictures.items():
        write_whole(folder / PICTURES / name, png)
    write_whole(folder / METRICS, (json.dumps(metrics_record(report), indent=2) + "\n").encode())
    write_whole(folder / REPORT, text.encode())
    return folder / REPORT


def metrics_record(report: Report) -> dict[str, Any]:
    """What `metrics.json` holds."""
    manifest = report.manifest
    record: dict[str, Any] = {
        "bundle": manifest.name,
        "version": manifest.version,
        "task": manifest.task,
        "sha256": report.sha256,
        "threshold": manifest.thresholds.default,
        "chosen_on": manifest.thresholds.chosen_on,
        "split": report.split,
        **report.further,
        f"{report.split}_int8": report.evaluation.record(),
    }
    if report.comparison is not None:
        record[f"{report.split}_float"] = report.comparison.before.record()
        record["comparison"] = report.comparison.record() | {
            "losses": losses(report.comparison),
            "doubts": doubts(report.comparison),
        }
    if report.folds:
        record["folds"] = [dict(fold) for fold in report.folds]
    if report.others:
        record["others"] = {name: dict(values) for name, values in report.others.items()}
    return record | {"warnings": list(report.warnings)}


def _body(report: Report, pictures: dict[str, bytes]) -> str:
    sections = [
        ("classes", "Classes", _classes(report)),
        ("threshold", "Threshold", _threshold(report, pictures)),
        ("curves", "Curves", _curves(report, pictures)),
        ("mistakes", "Worst mistakes", _mistakes(report, pictures)),
        ("next", "What to do next", _next(report)),
        ("groups", "Groups", _groups(report)),
        ("quantization", "Float against int8", _quantization(report, pictures)),
        ("folds", "Cross-validation", _folds(report)),
        ("others", "Beside plain networks", _others(report)),
        ("speed", "Speed", _speed(report)),
        ("data", "Data", _data(report)),
        ("configuration", "Configuration", _configuration(report)),
    ]
    shown = [(name, title, content) for name, title, content in sections if content]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown)
    head = [_head(report), f"<nav>{links}</nav>", _verdict(report)]
    return "\n".join([*head, *(page.section(name, title, content) for name, title, content in shown)])


def _head(report: Report) -> str:
    manifest, dataset = report.manifest, report.dataset
    kinds = {"detect": "finds and boxes defects", "classify": "names the class", "anomaly": "knows good parts only"}
    split = "" if report.split == ALL else f"{report.split} "
    line = (
        f"{manifest.task}: {kinds[manifest.task]} · made {manifest.created_at:%Y-%m-%d %H:%M} UTC · "
        f"measured on {counted(report.evaluation.pictures, f'{split}picture')} of {dataset.root.name}"
    )
    return f"<h1>{escape(manifest.name)} <span class='muted'>{escape(manifest.version)}</span></h1>" + page.paragraph(
        line, "muted"
    )


def _verdict(report: Report) -> str:
    result = report.evaluation
    cards = []
    if result.counts is not None:
        counts = result.counts
        cards += [
            _rate_card("good", "reject", "rejected", counts.rejected, counts.good),
            _rate_card("bad", "miss", "missed", counts.missed, counts.bad),
        ]
    if result.boxes is not None:
        boxes = result.boxes
        found = round(boxes.recall * boxes.defects)
        cards.append(_rate_card("defects", "overlook", "not boxed", boxes.defects - found, boxes.defects))
    elif result.confusion is not None and result.task.kind == "classify":
        right = int(np.trace(result.confusion))
        cards.append(_rate_card("pictures", "misname", "given a wrong class", result.pictures - right, result.pictures))
    glossary = page.folded("What the words mean", page.definitions(GLOSSARY))
    return (
        f'<div class="verdict">{"".join(cards)}</div>'
        + "".join(page.paragraph(text, "alert") for text in report.warnings)
        + _key_figures(report)
        + glossary
    )


def _rate_card(kind: str, verb: str, past: str, hits: int, total: int) -> str:
    if not total:
        return ""
    share, interval = hits / total, clopper_pearson(hits, total)
    what = f"{kind} parts" if kind in {"good", "bad"} else kind
    said = f"{_of_how_many(share, what, verb)}." if hits else f"None of {total} {what} was {past}."
    measured = f"{hits} of {total} {past}; 95 % interval {percent(interval.low)} to {percent(interval.high)}."
    return (
        f'<div class="card">{page.hundred(share, said)}<div><b>{escape(said)}</b>'
        f'<span class="small">{escape(measured)}</span></div></div>'
    )


def _of_how_many(share: float, what: str, verb: str) -> str:
    """The rate with so many parts that at least one is concerned."""
    parts = next((number for number in (100, 1000, 10_000) if number * share >= 1), 100_000)
    return f"Of {parts:,} {what} it would {verb} about {parts * share:.0f}"


def _key_figures(report: Report) -> str:
    result = report.evaluation
    intervals = {"auroc": result.auroc_interval, "ap": result.average_precision_interval}
    if result.task.kind == "classify" and result.confusion is not None:
        intervals["accuracy"] = clopper_pearson(int(np.trace(result.confusion)), result.pictures)
    tiles = [
        (FIGURE_NAMES[name], _figure(value), _range(intervals.get(name))) for name, value in result.headline().items()
    ]
    if result.peaks is not None:
        on_mask, of = result.peaks
        tiles.append(("map points at the defect", percent(on_mask / of), f"{on_mask} of {of} detected"))
    tiles.append(("per picture", f"{result.ms_p50:.2g} ms", f"{result.frames_per_s:.0f} a second"))
    return (
        '<div class="figures">'
        + "".join(
            f"<div><span>{escape(name)}</span><strong>{escape(value)}</strong><em>{escape(extra)}</em></div>"
            for name, value, extra in tiles
        )
        + "</div>"
    )


def _figure(value: float) -> str:
    return f"{value:.3f}"


def _range(interval: Interval | None) -> str:
    if interval is None:
        return ""
    low, high = _figure(interval.low), _figure(interval.high)
    # Resampled pictures without a mistake never show one: no width does not mean that the figure is certain.
    return "" if low == high else f"{low} to {high}"


def _classes(report: Report) -> str:
    result = report.evaluation
    parts = []
    kind = result.task.kind
    if result.confusion is not None and (kind == "classify" or 0 < result.pictures - _good(result) < result.pictures):
        what = "the class named" if kind == "classify" else "the verdict at the threshold"
        parts.append(page.paragraph(f"Rows: what the labels say. Columns: {what}. Numbers are pictures.", "small"))
        parts.append(_matrix(result))
    if result.boxes is not None:
        parts.append(_box_table(report))
    elif result.task.kind == "classify":
        parts.append(
            page.table(
                ["class", "pictures", "precision", "recall", "F1"],
                (
                    (one.label, str(one.pictures), f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}")
                    for one in result.classes
                ),
            )
        )
    if result.caught:
        parts.append("<h3>Bad parts caught, by kind of defect</h3>")
        parts.append(
            page.table(
                ["kind", "bad parts", "caught", "share", "95 % interval"],
                (
                    (
                        one.label,
                        str(one.pictures),
                        str(one.caught),
                        percent(one.caught / one.pictures),
                        _share_range(one),
                    )
                    for one in result.caught
                ),
            )
        )
    return "".join(parts)


def _good(result: Evaluation) -> int:
    return 0 if result.counts is None else result.counts.good


def _share_range(one: Any) -> str:
    interval = clopper_pearson(one.caught, one.pictures)
    return f"{percent(interval.low)} to {percent(interval.high)}"


def _matrix(result: Evaluation) -> str:
    assert result.confusion is not None
    labels, matrix = result.confusion_labels, result.confusion
    header = "<tr><th></th>" + "".join(f"<th>{escape(label)}</th>" for label in labels) + "</tr>"
    rows = []
    for row, label in enumerate(labels):
        total = max(int(matrix[row].sum()), 1)
        cells = []
        for column in range(len(labels)):
            count = int(matrix[row, column])
            share = count / total
            wrong = row != column and count > 0
            ink = "alert-shade" if wrong else "shade"
            style = f"background: rgb(var(--{ink}), {0.06 + 0.3 * share:.2f})" if count else ""
            mark = f'<span class="bad">▲ {count}</span>' if wrong else str(count) if count else "·"
            cells.append(f'<td class="cell" style="{style}">{mark}</td>')
        rows.append(f'<tr><th class="row">{escape(label)}</th>{"".join(cells)}</tr>')
    return f'<div class="scroll"><table class="matrix">{header}{"".join(rows)}</table></div>'


def _box_table(report: Report) -> str:
    result, thresholds = report.evaluation, report.manifest.thresholds
    assert result.boxes is not None
    rows = []
    for index, label in enumerate(result.task.labels):
        if label not in result.boxes.average_precision:
            continue
        truths = sum(int((item.truths == index).sum()) for item in report.scored)
        drawn = [
            bool(right)
            for item in report.scored
            for candidate, right in zip(item.candidates, item.right, strict=True)
            if candidate.label == label and candidate.score >= thresholds.of(label)
        ]
        hits = sum(drawn)
        rows.append(
            (
                label,
                str(truths),
                f"{hits / len(drawn):.3f}" if drawn else "–",
                f"{hits / truths:.3f}",
                f"{result.boxes.average_precision[label]:.3f}",
            )
        )
    text = "A box is right when it overlaps a labelled one of the same class by more than a third of their union."
    return (
        "<h3>Boxes</h3>"
        + page.paragraph(text, "small")
        + page.table(["class", "defects", "precision", "recall", "average precision"], rows)
    )


def _threshold(report: Report, pictures: dict[str, bytes]) -> str:
    result, manifest = report.evaluation, report.manifest
    parts = [
        page.paragraph(f"Chosen on: {manifest.thresholds.chosen_on}" if manifest.thresholds.chosen_on else "", "note")
    ]
    if (bad := result.bad) is not None:
        floor = score_floor(manifest)
        scores = np.array([picture_score(item, floor) for item in report.scored], np.float64)
        parts.append(
            _charted(
                "scores.png",
                "How the pictures score: grey above the line the good ones, coloured below it the bad ones. What "
                "stands right of the threshold is rejected.",
                lambda ink: score_chart(scores, bad, result.threshold, ink),
                pictures,
            )
        )
        rows, chosen = _trade_offs(scores, result, floor)
        if result.counts is not None and not result.counts.rejected + result.counts.missed:
            parts.append(page.paragraph("No other threshold would have judged these pictures better.", "small"))
        elif rows:
            parts.append(
                page.paragraph(
                    "What other thresholds would have done on these pictures. Choose another one with station-export "
                    "threshold, on pictures that are not the ones you report on.",
                    "small",
                )
            )
            parts.append(
                page.table(["threshold", "good rejected", "of good", "bad missed", "of bad"], rows, chosen=chosen)
            )
    return "".join(parts)


def _trade_offs(scores: Any, result: Evaluation, floor: float) -> tuple[list[tuple[str, ...]], int | None]:
    assert result.bad is not None
    if result.bad.all() or not result.bad.any() or result.counts is None:
        return [], None
    found = options(scores, result.bad, floor)
    rows: dict[float, Counts] = {}
    for limit in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        allowed = [one for one in found if one.counts.false_reject_rate <= limit]
        if allowed:
            best = min(allowed, key=lambda one: (one.counts.missed, one.counts.rejected))
            rows.setdefault(best.threshold, best.counts)
    catching_all = [one for one in found if not one.counts.missed]
    if catching_all:
        best = min(catching_all, key=lambda one: one.counts.rejected)
        rows.setdefault(best.threshold, best.counts)
    rows = {threshold: counts for threshold, counts in rows.items() if counts != result.counts}
    rows[result.threshold] = result.counts
    ordered = sorted(rows.items())
    texts: list[tuple[str, ...]] = [
        (
            f"{threshold:.3g}{'  (in use)' if threshold == result.threshold else ''}",
            str(counts.rejected),
            percent(counts.false_reject_rate),
            str(counts.missed),
            percent(counts.miss_rate),
        )
        for threshold, counts in ordered
    ]
    return texts, [threshold for threshold, _ in ordered].index(result.threshold)


def _curves(report: Report, pictures: dict[str, bytes]) -> str:
    result = report.evaluation
    if result.roc is None or result.precision_recall is None or result.counts is None:
        return ""
    counts = result.counts
    before = None if report.comparison is None else report.comparison.before
    rocs, prs = [("int8", result.roc)], [("int8", result.precision_recall)]
    if before is not None and before.roc is not None and before.precision_recall is not None:
        rocs.append(("float", before.roc))
        prs.append(("float", before.precision_recall))
    caught = counts.bad - counts.missed
    precision = caught / max(caught + counts.rejected, 1)
    return (
        '<div class="two">'
        + _charted(
            "roc.png",
            f"ROC curve of good against bad, area {_figure(result.auroc or 0)}: up and to the left is better.",
            lambda ink: roc_chart(rocs, (counts.false_reject_rate, counts.recall), ink),
            pictures,
        )
        + _charted(
            "precision-recall.png",
            f"Precision and recall, area (average precision) {_figure(result.average_precision or 0)}: up and to the "
            "right is better.",
            lambda ink: precision_recall_chart(prs, (counts.recall, precision), ink),
            pictures,
        )
        + "</div>"
    )


def _charted(name: str, text: str, draw: Callable[[Ink], bytes], pictures: dict[str, bytes]) -> str:
    light, dark = draw(LIGHT), draw(DARK)
    pictures[name] = light
    return page.chart(light, dark, text)


def _mistakes(report: Report, pictures: dict[str, bytes]) -> str:
    result = report.evaluation
    parts = []
    if result.wrong:
        shown = result.wrong[:MOST_MISTAKES]
        parts.append(
            page.paragraph(
                f"{len(result.wrong)} of {result.pictures} pictures are {_wrong_how(result)}; the surest mistakes come "
                "first. Left: the picture, labelled defects outlined in white where masks or boxes show them. Right: "
                f"where the model looks, and its boxes. Parts are rejected from a score of {result.threshold:.3g}.",
                "small",
            )
        )
        parts.append(_thumbs(report, shown, "mistake", pictures, lambda number: _said(report, number)))
    elif result.bad is not None or result.confusion is not None:
        parts.append(page.paragraph(f"None of the {result.pictures} pictures is judged wrongly."))
    if result.boxes is not None:
        parts.append(_close_ups(report, pictures))
    return "".join(parts)


def _wrong_how(result: Evaluation) -> str:
    rejected = "rejected though good, or passed though bad" if result.counts is not None else ""
    misnamed = "given a wrong class" if result.task.kind == "classify" else ""
    return ", or ".join(way for way in (rejected, misnamed) if way) or "judged wrongly"


def _said(report: Report, number: int) -> str:
    item = report.scored[number]
    said = verdict(item, report.evaluation.task, report.manifest.thresholds)
    return f"{_labelled(report, number)} · {said} · score {item.score:.3f}"


def _labelled(report: Report, number: int) -> str:
    sample, labels = report.scored[number].sample, report.evaluation.task.labels
    if sample.label is not None:
        truth = labels[sample.label]
    else:
        truth = ", ".join(sorted({labels[index] for index in sample.classes.tolist()})) or "no defect"
    return f"{sample.name} · labelled {truth}"


def _thumbs(
    report: Report,
    numbers: Sequence[int],
    prefix: str,
    pictures: dict[str, bytes],
    caption: Callable[[int], str],
) -> str:
    figures = []
    channels = report.manifest.preprocessing.channels
    for place, number in enumerate(numbers, start=1):
        sample = report.scored[number].sample
        scores = report.explain(sample)
        found: Sequence[Defect] = above_threshold(scores, report.manifest.thresholds)
        png = side_by_side(sample, channels, scores, found)
        pictures[f"{prefix}-{place:02}.png"] = png
        figures.append(page.thumbnail(png, caption(number)))
    return f'<div class="thumbs">{"".join(figures)}</div>'


def _close_ups(report: Report, pictures: dict[str, bytes]) -> str:
    """Boxes that are wrong and defects that have none, the surest first."""
    thresholds, labels = report.manifest.thresholds, report.evaluation.task.labels
    false: list[tuple[float, Sample, Any, str]] = []
    missed: list[tuple[float, Sample, Any, str]] = []
    for item in report.scored:
        kept = [one for one in item.candidates if one.score >= thresholds.of(one.label)]
        right = match(kept, item.sample.boxes_px, item.sample.classes, labels)
        false += [
            (one.score, item.sample, corners(one.box), f"box {one.label} {one.score:.2f}, {item.sample.name}")
            for one, hit in zip(kept, right, strict=True)
            if not hit
        ]
        missed += [
            (0.0, item.sample, box, f"{labels[kind]} not boxed, {item.sample.name}")
            for box, kind in _unfound(kept, right, item, labels)
        ]
    false.sort(key=lambda one: -one[0])
    parts = []
    for prefix, title, items in (
        ("false-box", f"Boxes without a labelled defect of that class: {len(false)}", false),
        ("missed-defect", f"Labelled defects without a box: {len(missed)}", missed),
    ):
        if not items:
            continue
        figures = []
        for place, (_, sample, box, caption) in enumerate(_spread(items, MOST_CLOSE_UPS // 2), start=1):
            png = close_up(sample, report.manifest.preprocessing.channels, box, labelled=prefix == "missed-defect")
            pictures[f"{prefix}-{place:02}.png"] = png
            figures.append(page.thumbnail(png, caption))
        parts.append(f'<h3>{escape(title)}</h3><div class="thumbs narrow">{"".join(figures)}</div>')
    return "".join(parts)


def _spread(items: list[tuple[float, Sample, Any, str]], count: int) -> list[tuple[float, Sample, Any, str]]:
    """At most so many, one a picture first: ten mistakes of one board say no more than one."""
    seen: dict[str, int] = {}
    ranked = []
    for place, item in enumerate(items):
        rank = seen.get(item[1].name, 0)
        seen[item[1].name] = rank + 1
        ranked.append((rank, place, item))
    ranked.sort(key=lambda one: one[:2])
    return [item for _, _, item in ranked[:count]]


def _unfound(kept: Sequence[Defect], right: Any, item: Scored, labels: tuple[str, ...]) -> list[tuple[Any, int]]:
    """Labelled boxes that none of the right candidates took."""
    found = [one for one, hit in zip(kept, right, strict=True) if hit]
    left = []
    for box, kind in zip(item.sample.boxes_px, item.sample.classes.tolist(), strict=True):
        taken = match(found, box[None], np.array([kind], np.int64), labels)
        if taken.any():
            found.pop(int(np.flatnonzero(taken)[0]))
        else:
            left.append((box, kind))
    return left


def _next(report: Report) -> str:
    """What a person who trains for the first time does with these figures."""
    result, manifest = report.evaluation, report.manifest
    steps = []
    if result.wrong:
        steps.append(
            "Look at the worst mistakes. Correct labels that are wrong; take more pictures of what is missed, and of "
            "good parts like those that are rejected; train again."
        )
    elif result.pictures < ENOUGH_PICTURES:
        steps.append(
            f"Nothing was judged wrongly, but {counted(result.pictures, 'picture')} cannot show much: the intervals "
            "above say how much. Take more, of other parts on other days, and measure with station-export evaluate."
        )
    tested = [one for one in result.classes if one.pictures and result.task.kind == "classify"]
    weakest = min(tested, key=lambda one: one.recall, default=None)
    if weakest is not None and weakest.recall < WEAK_RECALL:
        steps.append(
            f"{weakest.label} is recognized worst, {percent(weakest.recall)} of "
            f"{counted(weakest.pictures, 'picture')}: more training pictures of it help most."
        )
    if result.counts is not None and result.counts.good:
        steps.append(
            "Are too many good parts rejected, or too many bad ones missed? station-export threshold chooses another "
            "threshold in seconds, without training again."
        )
    if not report.written:
        steps.append(
            "There is no bundle yet. Train longer, or on more pictures. If the verdicts that change below can be "
            "accepted, --allow-regression writes one all the same."
        )
        return page.listed(steps)
    name = f"{manifest.name}.bundle"
    steps += [
        f"Try it on single pictures: station inspect PICTURES --bundle {name} --out marked",
        f'Use it: bundle = "{name}" in the table [model] of station.toml.',
    ]
    return page.listed(steps)


def _groups(report: Report) -> str:
    result = report.evaluation
    if result.groups >= result.pictures or result.groups < 2:  # noqa: PLR2004
        return ""
    shown = result.by_group[:MOST_GROUPS]
    spared = result.groups - len(result.by_group)
    text = (
        f"{result.groups} groups (pictures of the same part, board or lot); {spared} of them without a mistake. A "
        "group that stands out is worth a look: another lot, another light, a wrong label."
    )
    return page.paragraph(text, "small") + page.table(
        ["group", "pictures", "judged wrongly", "share"],
        ((one.group, str(one.pictures), str(one.wrong), percent(one.wrong / one.pictures)) for one in shown),
    )


def _quantization(report: Report, pictures: dict[str, bytes]) -> str:
    comparison = report.comparison
    if comparison is None:
        return ""
    found = losses(comparison)
    rows = []
    for name, before, after in comparison.changes():
        shown = FIGURE_NAMES.get(name, name)
        change = f"{after - before:+.4f}".replace("-", "−")
        mark = f"▲ {change}" if any(text.startswith(f"{shown} falls") for text in found) else change
        rows.append((shown, f"{before:.4f}", f"{after:.4f}", mark))
    parts = [
        page.paragraph(
            "The trained network computes with fractions (float), the station with whole numbers (int8). Both judged "
            "the same pictures, the int8 one through the very path that runs on the line."
        ),
        *(page.paragraph(text, "alert") for text in found),
        *(page.paragraph(text) for text in doubts(comparison)),
        page.table(["figure", "float", "int8", "change"], rows),
        page.paragraph(
            f"{len(comparison.flips)} of {comparison.after.pictures} verdicts or classes change "
            f"({percent(comparison.flip_share)}), {comparison.outcome_flips} of them between ok and rejected; 95 % of "
            "the scores move by less than "
            f"{max(comparison.score_shift, 0.001):.3f}."
        ),
    ]
    if comparison.flips:
        said = {flip.number: flip for flip in comparison.flips}
        parts.append(
            _thumbs(
                report,
                [flip.number for flip in comparison.flips[:MOST_FLIPS]],
                "flip",
                pictures,
                lambda number: (
                    f"{_labelled(report, number)} · float: {said[number].before} · int8: {said[number].after}"
                ),
            )
        )
    if comparison.layers:
        parts.append(_layers(comparison))
    return "".join(parts)


def _layers(comparison: Comparison) -> str:
    worst = sorted(comparison.layers, key=lambda one: one.sqnr_db)
    low = sum(one.sqnr_db < LOW_SQNR_DB for one in worst)
    text = (
        "Signal over quantization noise of each layer's output, the weakest first; 20 dB is an error of a tenth of the "
        f"signal. {low} of {len(worst)} layers are below {LOW_SQNR_DB:g} dB. A weak layer matters where a figure falls."
    )

    def rows(layers: Sequence[Any]) -> list[tuple[str, ...]]:
        return [
            (
                one.name,
                one.operation,
                f"▲ {one.sqnr_db:.1f}" if one.sqnr_db < LOW_SQNR_DB else f"{one.sqnr_db:.1f}",
                page.bar(one.sqnr_db / 50, low=one.sqnr_db < LOW_SQNR_DB),
            )
            for one in layers
        ]

    head = ["layer", "operation", "dB", ""]
    return (
        "<h3>Layer by layer</h3>"
        + page.paragraph(text, "small")
        + page.table(head, rows(worst[:WEAKEST_LAYERS]))
        + (
            page.folded(f"All {len(worst)} in the order of the graph", page.table(head, rows(comparison.layers)))
            if len(worst) > WEAKEST_LAYERS
            else ""
        )
    )


def _folds(report: Report) -> str:
    if not report.folds:
        return ""
    names = list(report.folds[0])
    rows = [
        (str(number), *(f"{fold[name]:.3f}" for name in names)) for number, fold in enumerate(report.folds, start=1)
    ]
    values = {name: np.array([fold[name] for fold in report.folds]) for name in names}
    rows.append(("mean", *(f"{values[name].mean():.3f}" for name in names)))
    rows.append(("± standard deviation", *(f"{values[name].std(ddof=1):.3f}" for name in names)))
    text = (
        "The data was divided into parts, whole groups together; each was judged once by a model that had not seen it. "
        "The spread says how much a figure depends on which pictures were drawn."
    )
    return page.paragraph(text, "small") + page.table(
        ["part", *(FIGURE_NAMES.get(name, name) for name in names)], rows, chosen=len(rows) - 2
    )


def _others(report: Report) -> str:
    if not report.others:
        return ""
    ours = report.evaluation.headline()
    models: dict[str, Mapping[str, float]] = {"this model, as deployed (int8)": ours}
    if report.comparison is not None:
        models["this model before quantization (float)"] = report.comparison.before.headline()
    models |= {f"{name} (float)": values for name, values in report.others.items()}
    names = [name for name in ours if any(name in values for values in report.others.values())]
    rows = [
        (
            model,
            *(f"{values[name]:.3f}" if name in values else "–" for name in names),
            f"{values['minutes']:.1f}{', cut short' if values.get('cut_short') else ''}"
            if "minutes" in values
            else "–",
        )
        for model, values in models.items()
    ]
    text = (
        "Networks that textbooks start from: two or three convolutions on small squares, trained on the same pictures "
        "until the validation pictures were told apart no better, or cut short when their small share of the time was "
        "up, and tested on the same pictures. Where they come close, these pictures are easy to tell apart. Where one "
        "of them is better, this model's training went wrong: look at the worst mistakes, and give it more minutes."
    )
    head = ["model", *(FIGURE_NAMES.get(name, name) for name in names), "minutes to train"]
    return page.paragraph(text, "small") + page.table(head, rows, chosen=0)


def _speed(report: Report) -> str:
    result = report.evaluation
    shape = report.manifest.inputs[0].shape
    rows = [
        ("per picture, median", f"{result.ms_p50:.2f} ms ({result.frames_per_s:.0f} a second)"),
        ("slowest twentieth from", f"{result.ms_p95:.2f} ms"),
        ("what is timed", "from the decoded picture to scores and boxes, one after the other, one thread"),
        ("network input", f"{shape[2]} × {shape[1]} × {shape[3]} ({report.manifest.preprocessing.geometry})"),
        ("bundle", f"{report.bundle_bytes / 1e6:.2f} MB"),
        ("machine", f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"),
    ]
    return page.definitions(rows) + page.paragraph(
        "Other programs that ran at the same time make these figures worse; station bench measures the whole station.",
        "small",
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _data(report: Report) -> str:
    dataset, manifest = report.dataset, report.manifest
    record = manifest.dataset
    rows = [
        ("folder", f"{dataset.root.name} ({dataset.layout})"),
        ("divided by", dataset.split_by),
        ("groups", dataset.grouped_by),
        ("trained on", _trained_on(record)),
        ("fingerprint", str(record.get("fingerprint_sha256", "–"))),
        ("bundle sha256", report.sha256),
        ("calibration", f"{len(manifest.calibration)} pictures set the ranges of the int8 model"),
        ("tools", ", ".join(f"{name} {number}" for name, number in manifest.versions.items())),
    ]
    parts = [page.definitions((name, value) for name, value in rows if value), _split_table(dataset)]
    if dataset.problems:
        counts: dict[tuple[str, str], int] = {}
        for problem in dataset.problems:
            counts[problem.severity, problem.kind] = counts.get((problem.severity, problem.kind), 0) + 1
        parts.append("<h3>What was found in the folder</h3>")
        parts.append(
            page.table(
                ["severity", "kind", "times"],
                (
                    (f"▲ {severity}" if severity == "error" else severity, kind, str(count))
                    for (severity, kind), count in counts.items()
                ),
            )
        )
        first = "".join(f"<li>{escape(str(problem))}</li>" for problem in dataset.problems[:40])
        parts.append(page.folded("The first of them", f'<ul class="small">{first}</ul>'))
    return "".join(parts)


def _trained_on(record: Mapping[str, Any]) -> str:
    pictures = record.get("train_pictures")
    return "" if pictures is None else f"{pictures} pictures, threshold on {record.get('validation_pictures', 0)}"


def _split_table(dataset: Dataset) -> str:
    def kinds(sample: Sample) -> set[str]:
        if sample.label is not None:
            return {dataset.labels[sample.label]}
        return {dataset.labels[index] for index in sample.classes.tolist()} or {"without defect"}

    names = [*dataset.labels, "without defect"]
    counts = {name: [0] * len(SPLITS) for name in names}
    for column, split in enumerate(SPLITS):
        for sample in dataset.splits[split]:
            for kind in kinds(sample):
                counts[kind][column] += 1
    rows = [(name, *map(str, values)) for name, values in counts.items() if any(values)]
    rows.append(("pictures", *(str(len(dataset.splits[split])) for split in SPLITS)))
    return page.table(["pictures with", "train", "validation", "test"], rows, chosen=len(rows) - 1)


def _configuration(report: Report) -> str:
    rows = list(_flattened(report.configuration))
    if not rows:
        return ""
    return page.folded("Every knob of the training", page.definitions(rows))


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flattened(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", json.dumps(value)))
    return rows
