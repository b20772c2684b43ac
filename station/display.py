"""A verdict as one line for people, readable from two metres: outcome first, in words as well as in colour."""

from station.messages import Outcome, Verdict
from station.process_messages import Alarm, ChannelPart

_COLOURS = {Outcome.OK: "\x1b[32m", Outcome.NG: "\x1b[1;97;41m", Outcome.UNKNOWN: "\x1b[1;30;43m"}
_PLAIN = "\x1b[0m"
_WORDS = {Outcome.OK: "   ok   ", Outcome.NG: "   NG   ", Outcome.UNKNOWN: " UNKNOWN"}
MAX_DEFECTS = 3
"""More defects than this on one line are counted, not listed."""


def verdict_line(verdict: Verdict, latency_ms: float, *, colour: bool, historical: bool = False) -> str:
    """Return one line without a line break.

    Args:
        verdict: what to show.
        latency_ms: from the exposure to the arrival here.
        colour: whether the terminal understands ANSI colours.
        historical: the verdict was sent late, from the backlog.
    """
    word = _WORDS[verdict.outcome]
    if colour:
        word = f"{_COLOURS[verdict.outcome]}{word}{_PLAIN}"
    when = verdict.captured_at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    place = f"{verdict.camera} {verdict.sequence:>7}"
    marks = "".join(
        f"  [{mark}]"
        for mark, shown in (("historical", historical), ("late", verdict.late), ("not durable", not verdict.durable))
        if shown
    )
    return f"{word}  {when}  {place}  {latency_ms:7.1f} ms  {_what(verdict)}{marks}".rstrip()


def alarm_line(alarm: Alarm, *, colour: bool) -> str:
    """Return one line without a line break on a transition of a process alarm."""
    word = " ALARM  " if alarm.active else " over   "
    if colour and alarm.active:
        word = f"{_COLOURS[Outcome.UNKNOWN]}{word}{_PLAIN}"
    when = alarm.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    value = "" if alarm.value is None else f" {alarm.value:.2f}"
    parts = "; ".join(_part(part) for part in alarm.top)
    return (
        f"{word}  {when}  {alarm.group} {alarm.alarm}: {alarm.watches}{value}, limit {alarm.limit:g}; {parts}".rstrip(
            "; "
        )
    )


def _part(part: ChannelPart) -> str:
    actual = part.quality.value if part.actual is None else f"{part.actual:.4g} {part.unit}".rstrip()
    return f"{part.channel} {actual}" + ("" if part.expected is None else f" (expected {part.expected:.4g})")


def _what(verdict: Verdict) -> str:
    parts = [
        f"{defect.label} {defect.score:.2f} at {defect.box.centre_px[0]:.0f},{defect.box.centre_px[1]:.0f} px"
        for defect in verdict.defects[:MAX_DEFECTS]
    ]
    if len(verdict.defects) > MAX_DEFECTS:
        parts.append(f"and {len(verdict.defects) - MAX_DEFECTS} more")
    parts.extend(reason.value for reason in verdict.reasons if reason.value != "defect")
    if verdict.source and not verdict.owned_rows:
        parts.append(verdict.source)
    return ", ".join(parts)
