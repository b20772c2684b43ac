"""Pieces of a report's HTML: one file that needs nothing else, in light and dark, on screen and on paper.

Grey is the baseline, one colour marks what is abnormal, and a shape or a word always stands beside the colour.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape as escape_html

STYLE = """
:root { color-scheme: light dark;
  --ink: #24292f; --muted: #646c75; --line: #dde1e6; --paper: #fff; --panel: #f5f6f8; --alert: #b23a0a;
  --alert-paper: #fdf1ea; --shade: 70, 80, 92; --alert-shade: 220, 90, 30; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e4e7ea; --muted: #98a1ab; --line: #31373e; --paper: #15181b; --panel: #1d2125; --alert: #ff9566;
  --alert-paper: #33221b; --shade: 190, 200, 212; --alert-shade: 255, 130, 80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1020px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 52px 0 6px; padding-top: 14px; border-top: 1px solid var(--line);
  letter-spacing: -.005em; }
h3 { font-size: 15px; margin: 26px 0 6px; }
p { margin: 6px 0 12px; max-width: 74ch; }
ul { margin: 6px 0 12px; padding-left: 20px; max-width: 78ch; } li { margin: 4px 0; overflow-wrap: anywhere; }
.muted, figcaption, .small { color: var(--muted); }
.small, figcaption { font-size: 13px; line-height: 1.4; }
nav { margin: 14px 0 0; font-size: 13px; color: var(--muted); }
nav a { color: inherit; margin-right: 14px; display: inline-block; }
a { color: inherit; text-underline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0 14px; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: baseline; }
th { font-weight: 500; color: var(--muted); font-size: 13px; vertical-align: bottom; }
th:first-child, td:first-child, .left { text-align: left; }
td.text { text-align: left; max-width: 60ch; overflow-wrap: anywhere; }
tr.chosen td { font-weight: 650; }
.scroll { overflow-x: auto; }
.verdict { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 14px; margin: 22px 0 6px; }
.card { background: var(--panel); border-radius: 10px; padding: 18px; display: flex; gap: 16px; }
.card svg { flex: none; width: 96px; height: 96px; }
.card b { display: block; font-size: 19px; line-height: 1.3; font-weight: 620; letter-spacing: -.005em;
  margin-bottom: 6px; }
.dot { fill: rgb(var(--shade), .22); } .dot.hit { fill: var(--alert); }
.figures { display: flex; flex-wrap: wrap; gap: 8px 34px; margin: 18px 0 4px; }
.figures div { min-width: 84px; } .figures span { display: block; font-size: 13px; color: var(--muted); }
.figures strong { font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; letter-spacing: -.01em; }
.figures em { font-style: normal; font-size: 12px; color: var(--muted); display: block; }
.note { border-left: 3px solid var(--line); padding: 2px 0 2px 12px; margin: 10px 0; max-width: 78ch; }
.alert { border-left: 3px solid var(--alert); background: var(--alert-paper); padding: 8px 12px; margin: 10px 0;
  max-width: 82ch; border-radius: 0 6px 6px 0; }
.alert::before { content: "▲ "; color: var(--alert); }
.bad { color: var(--alert); font-weight: 600; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 8px 28px; align-items: start; }
figure { margin: 8px 0 14px; } figure img { max-width: 100%; height: auto; display: block; }
.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 18px 20px; margin: 12px 0; }
.thumbs.narrow { grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); }
.thumbs figure { margin: 0; } .thumbs img { border-radius: 4px; background: var(--panel); }
.thumbs figcaption { margin-top: 5px; overflow-wrap: anywhere; }
.matrix td, .matrix th { text-align: center; padding: 6px 10px; min-width: 52px; border: 0; }
.matrix th.row, .matrix td:first-child { text-align: right; }
.matrix td.cell { border: 2px solid var(--paper); border-radius: 6px; }
.bar { display: inline-block; height: 9px; background: rgb(var(--shade), .45); border-radius: 2px; }
.bar.low { background: var(--alert); }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--muted); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 8px 0; max-width: 90ch; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--panel); padding: 1px 5px;
  border-radius: 4px; overflow-wrap: anywhere; }
@media print { main { max-width: none; padding: 0; } nav { display: none; } body { font-size: 11pt; }
  h2 { break-after: avoid; } figure, tr, .card, .alert { break-inside: avoid; } }
"""


def escape(text: str, *, quote: bool = False) -> str:
    """Plain text as HTML; a percent sign stays with its number."""
    return escape_html(text.replace(" %", "\u00a0%"), quote=quote)


def document(title: str, body: str) -> str:
    """A whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>\n{body}\n</main></body></html>\n"
    )


def section(name: str, title: str, *parts: str) -> str:
    """A section with an anchor; nothing when it is empty."""
    content = "\n".join(part for part in parts if part)
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n{content}</section>' if content else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; kind is a class, as `note`, `alert` or `muted`."""
    if not text:
        return ""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], chosen: int | None = None, kind: str = "") -> str:
    """A table of plain text; a cell that starts with ▲ is marked as abnormal. No rows, no table."""
    lines = [
        f'<tr class="{"chosen" if number == chosen else "plain"}">{"".join(map(_cell, row))}</tr>'
        for number, row in enumerate(rows)
    ]
    if not lines:
        return ""
    header = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="scroll"><table class="{kind}"><tr>{header}</tr>\n' + "\n".join(lines) + "</table></div>"


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """Names with their values."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows) + "</dl>"


def listed(items: Iterable[str]) -> str:
    """Plain sentences, one below the other; nothing when there are none."""
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<ul>{lines}</ul>" if lines else ""


def folded(title: str, content: str) -> str:
    """Something that opens at a click; nothing when it is empty."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def image(png: bytes, text: str) -> str:
    """An embedded picture."""
    return f'<img alt="{escape(text, quote=True)}" src="{_data(png)}">'


def chart(light: bytes, dark: bytes, text: str) -> str:
    """An embedded chart that follows the page's colours; half its pixels wide, so that it is sharp on any screen."""
    return (
        f'<figure><picture><source srcset="{_data(dark)}" media="(prefers-color-scheme: dark)">'
        f'<img alt="{escape(text, quote=True)}" src="{_data(light)}"></picture>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def thumbnail(png: bytes, caption: str) -> str:
    """A small picture with its caption."""
    return f"<figure>{image(png, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def hundred(share: float, text: str) -> str:
    """A hundred squares of which a share is marked, the last one in part: a rate as what happens to a hundred parts."""
    squares = []
    for number in range(100):
        place = f'x="{number % 10 * 10}" y="{number // 10 * 10}" height="8" rx="1.5"'
        squares.append(f'<rect class="dot" {place} width="8"/>')
        marked = min(1.0, 100 * share - number)
        if marked > 0:
            squares.append(f'<rect class="dot hit" {place} width="{max(1.2, 8 * marked):.1f}"/>')
    return f'<svg viewBox="0 0 98 98" role="img" aria-label="{escape(text, quote=True)}">{"".join(squares)}</svg>'


def bar(share: float, *, low: bool) -> str:
    """A bar of up to 160 px."""
    return f'<span class="bar{" low" if low else ""}" style="width:{160 * min(1.0, max(0.0, share)):.0f}px"></span>'


def _cell(text: str) -> str:
    if text.startswith("<span"):
        return f'<td class="left">{text}</td>'
    return f'<td class="bad">{escape(text)}</td>' if text.startswith("▲") else f"<td>{escape(text)}</td>"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
