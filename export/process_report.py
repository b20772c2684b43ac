"""The report of a process bundle: what it forecasts, what risk it saw, what the plain charts would have seen."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from export.process_arguments import AUTO
from export.process_evaluation import Played
from station.process_bundle import ProcessBundle, ProcessManifest

mpl.use("Agg")

from matplotlib import pyplot as plt

TRIAL = "trial_"
FOUND = "_found"
MOST_POINTS = 4000
MOST_CHANNELS = 8


def write_process_report(folder: Path, bundle: ProcessBundle, played: Sequence[Played]) -> Path:
    """Write `report.html` with its two pictures beside it.

    Args:
        folder: exists.
        bundle: with its figures.
        played: logs that went through it; the longest is drawn.
    """
    longest = max(played, key=lambda one: len(one.ticks.at_s))
    _draw_risk(folder / "risk.png", bundle, longest)
    _draw_channels(folder / "channels.png", bundle, longest)
    page = folder / "report.html"
    page.write_text(_page(bundle, longest))
    return page


def trials_of(manifest: ProcessManifest) -> list[tuple[str, Mapping[str, float], dict[str, float]]]:
    """Of each monitor that was tried: its name, all its figures, and kind of fault → share that it found."""
    return [
        (
            name.removeprefix(TRIAL),
            figures,
            {key.removesuffix(FOUND): value for key, value in figures.items() if key.endswith(FOUND)},
        )
        for name, figures in manifest.metrics.items()
        if name.startswith(TRIAL)
    ]


def choice_of(manifest: ProcessManifest) -> str:
    """Which monitor the bundle has, and why, in one line."""
    shipped, asked = str(manifest.configuration["shipped"]), manifest.configuration["model"]
    scores = {name: figures["score"] for name, figures, _ in trials_of(manifest)}
    best = max(scores, key=lambda name: scores[name], default=shipped)
    if asked != AUTO:
        why = "as asked for"
    elif scores:
        why = "of network and level it does better on these logs"
    else:
        why = "the logs are too short to compare it with others"
    if scores and best != shipped:
        why += f"; {best} finds more ({scores[best]:.2f} against {scores[shipped]:.2f}), --model {best} ships it"
    return f"{shipped}: {why}"


def _trials(manifest: ProcessManifest) -> str:
    trials = trials_of(manifest)
    if not trials:
        return ""
    kinds = list(trials[0][2])
    heading = "".join(f"<th>{html.escape(kind)}" for kind in kinds)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{found.get(kind, 0.0):.0%}</td>" for kind in kinds)
        + f"<td>{figures['false']:.1%}</td><td>{figures['score']:.2f}</td></tr>"
        for name, figures, found in trials
    )
    return (
        "<p>Faults of known size were put into stretches of the logs that the monitor had not learned from: the share "
        "of their ticks on which it alarms, and the share of all other ticks. The score is the mean of the first less "
        f"the second.</p><table><tr><th>{heading}<th>other ticks<th>score</tr>{rows}</table>"
    )


def _page(bundle: ProcessBundle, played: Played) -> str:
    manifest = bundle.manifest
    rows = "".join(
        f"<tr><td>{html.escape(channel.name)}</td><td>{html.escape(channel.unit)}</td><td>{channel.center:.6g}</td>"
        f"<td>{channel.scale:.4g}</td></tr>"
        for channel in manifest.channels
    )
    left_out = "".join(
        f"<li>{html.escape(name)} is left out: it {html.escape(why)}</li>" for name, why in manifest.excluded.items()
    )
    tables = "".join(
        f"<h3>{html.escape(name.replace('_', ' '))}</h3><table>"
        + "".join(f"<tr><td>{html.escape(key)}</td><td>{value:.4g}</td></tr>" for key, value in figures.items())
        + "</table>"
        for name, figures in manifest.metrics.items()
        if not name.startswith(TRIAL)
    )
    return (
        "<!doctype html><meta charset=utf-8><title>Early warning</title>"
        "<style>body{font:15px sans-serif;max-width:70em;margin:2em auto}"
        "td{padding:.1em .8em}img{max-width:100%}</style>"
        f"<h1>{html.escape(manifest.name)} {html.escape(manifest.version)}</h1>"
        f"<p>{html.escape(manifest.monitor.kind)}, step {manifest.step_s:g} s. "
        f"<b>{html.escape(manifest.bound.text)}</b></p>"
        f"<h2>Which monitor</h2><p>{html.escape(choice_of(manifest))}.</p>{_trials(manifest)}"
        f"<h2>Risk in {html.escape(Path(played.log.origin).name)}</h2><img src=risk.png>"
        "<h2>What came and what was expected</h2><img src=channels.png>"
        f"<h2>Channels</h2><table><tr><th>name<th>unit<th>centre<th>scale</tr>{rows}</table><ul>{left_out}</ul>"
        f"<h2>Figures</h2>{tables}"
    )


def _draw_risk(path: Path, bundle: ProcessBundle, played: Played) -> None:
    figure, axes = plt.subplots(figsize=(10, 2.6))
    hours = _hours(played)
    axes.plot(hours, played.risk[:MOST_POINTS], color="0.3", linewidth=0.8)
    axes.axhline(bundle.manifest.limits.risk, color="tab:red", linewidth=0.8, linestyle="--", label="limit")
    axes.fill_between(hours, 0, 1, where=played.alarm[:MOST_POINTS], color="tab:red", alpha=0.15, label="alarm")
    faulty = played.ticks.faulty[:MOST_POINTS] == 1
    if faulty.any():
        axes.fill_between(hours, 0, 1, where=faulty, color="tab:blue", alpha=0.12, label="labelled fault")
    axes.set(ylim=(0, 1), xlabel="hours", ylabel="risk")
    axes.legend(loc="upper left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_channels(path: Path, bundle: ProcessBundle, played: Played) -> None:
    channels = bundle.manifest.channels[:MOST_CHANNELS]
    figure, rows = plt.subplots(len(channels), 1, figsize=(10, 1.4 * len(channels)), sharex=True, squeeze=False)
    hours = _hours(played)
    for place, channel in enumerate(channels):
        axes = rows[place, 0]
        mask = played.ticks.mask[:MOST_POINTS, place]
        axes.plot(hours, np.where(mask, played.ticks.values[:MOST_POINTS, place], np.nan), color="0.5", linewidth=0.7)
        axes.plot(hours, played.expected[:MOST_POINTS, place], color="tab:orange", linewidth=0.8)
        axes.set_ylabel(f"{channel.name[:18]}\n{channel.unit}", fontsize=7)
        axes.tick_params(labelsize=7)
    rows[-1, 0].set_xlabel("hours (grey: what came, orange: what was expected)", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _hours(played: Played) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    at_s = played.ticks.at_s[:MOST_POINTS]
    return np.asarray((at_s - at_s[0]) / 3600)
