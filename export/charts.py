"""The report's charts, as PNG bytes: grey lines, one colour for defects, on a light and on a dark page."""

import io
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from export.metrics import Bools, Curve, Floats
from export.thresholds import logit


@dataclass(frozen=True, slots=True)
class Ink:
    """Colours of a page."""

    text: str
    muted: str
    line: str
    good: str
    defect: str


LIGHT = Ink(text="#24292f", muted="#6b737c", line="#d5dae0", good="#8b949e", defect="#c2410c")
DARK = Ink(text="#e4e7ea", muted="#98a1ab", line="#3a4149", good="#868f99", defect="#ff8a5c")

_DOTS_PER_INCH = 200
_WIDTH_INCH, _HEIGHT_INCH = 4.3, 3.3
_BINS = 40


def roc_chart(curves: list[tuple[str, Curve]], at: tuple[float, float] | None, ink: Ink) -> bytes:
    """ROC curves, the first one in full strength; `at` is the point of the threshold (false rejects, caught)."""
    figure, axes = _figure(ink)
    axes.plot([0, 1], [0, 1], color=ink.line, linewidth=1, linestyle=(0, (4, 4)))
    _lines(axes, curves, ink, step=False)
    _mark(axes, at, ink)
    axes.set_xlabel("share of good parts rejected")
    axes.set_ylabel("share of bad parts caught")
    return _png(figure)


def precision_recall_chart(curves: list[tuple[str, Curve]], at: tuple[float, float] | None, ink: Ink) -> bytes:
    """Precision over recall; `at` is the point of the threshold (recall, precision)."""
    figure, axes = _figure(ink)
    _lines(axes, curves, ink, step=True)
    _mark(axes, at, ink)
    axes.set_xlabel("recall: share of the bad ones caught")
    axes.set_ylabel("precision: share of the rejected that are bad")
    return _png(figure)


def score_chart(scores: Floats, bad: Bools, threshold: float, ink: Ink) -> bytes:
    """How good and bad pictures score, as two histograms above and below one line, over the log-odds of the score."""
    figure, axes = _figure(ink, width=8.8, height=2.6)
    odds = np.array([np.clip(logit(float(score)), -10, 10) for score in scores])
    cut = float(np.clip(logit(threshold), -10, 10))
    low, high = min(odds.min(), cut) - 0.3, max(odds.max(), cut) + 0.3
    edges = np.linspace(low, high, _BINS + 1)
    middles, width = (edges[1:] + edges[:-1]) / 2, float(edges[1] - edges[0]) * 0.86
    names: list[tuple[int, str]] = []
    for which, sign, colour, name in ((~bad, 1, ink.good, "good"), (bad, -1, ink.defect, "bad")):
        counts, _ = np.histogram(odds[which], edges)
        axes.bar(middles, sign * counts, width=width, color=colour)
        if which.any():
            names.append((sign, f"{name}\npictures"))
    top = max(np.abs(axes.get_ylim()))
    # Above the bars there is room for the threshold's name.
    axes.set_ylim(-top * 1.1, top * 1.4)
    axes.axhline(0, color=ink.line, linewidth=1)
    axes.axvline(cut, color=ink.text, linewidth=1.2)
    right = cut > (low + high) / 2
    axes.text(
        cut,
        top * 1.38,
        f" threshold {threshold:.3g} ",
        color=ink.text,
        ha="right" if right else "left",
        va="top",
        fontsize=9,
    )
    ticks = [value for value in (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999) if low <= logit(value) <= high]
    axes.set_xticks([logit(value) for value in ticks], [f"{value:g}" for value in ticks])
    axes.set_xlim(low, high)
    axes.set_yticks([sign * top / 2 for sign, _ in names], [text for _, text in names], fontsize=9)
    axes.grid(visible=False)
    axes.set_xlabel("score: from surely good (left) to surely bad (right)")
    return _png(figure)


def _figure(ink: Ink, width: float = _WIDTH_INCH, height: float = _HEIGHT_INCH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(ink.line)
    axes.tick_params(colors=ink.muted, labelsize=8, length=0)
    axes.xaxis.label.set_color(ink.muted)
    axes.yaxis.label.set_color(ink.muted)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    axes.grid(visible=True, color=ink.line, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _lines(axes: Axes, curves: list[tuple[str, Curve]], ink: Ink, *, step: bool) -> None:
    for number, (name, curve) in enumerate(curves):
        # Behind the first come the ones it is compared with.
        first = number == 0
        axes.plot(
            curve.x,
            curve.y,
            drawstyle="steps-pre" if step else "default",
            color=ink.text if first else ink.good,
            linewidth=1.8 if first else 1.1,
            linestyle="-" if first else (0, (2, 2)),
            label=name,
            zorder=3 if first else 2,
            clip_on=False,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    if len(curves) > 1:
        # Good ROC curves leave the lower right empty, good precision-recall curves the lower left.
        axes.legend(frameon=False, labelcolor=ink.muted, fontsize=8, loc="lower left" if step else "lower right")


def _mark(axes: Axes, at: tuple[float, float] | None, ink: Ink) -> None:
    if at is not None:
        axes.plot(*at, marker="o", color=ink.text, markersize=6, zorder=4, clip_on=False)
        side, shift = ("right", -8) if at[0] > 0.6 else ("left", 8)  # noqa: PLR2004
        axes.annotate(
            "at the threshold",
            at,
            (shift, -4),
            textcoords="offset points",
            color=ink.muted,
            fontsize=8,
            ha=side,
            va="top",
        )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without a date the same figures give the same file.
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, transparent=True, metadata={"Software": None})
    return buffer.getvalue()
