"""The look of the demo's report: its style sheet and the HTML of its parts, without any file or measurement."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STYLE = """
:root { --ink: #1d222b; --soft: #5d6675; --line: #e2e6ec; --good: #1b7f4b; --good-bg: #e4f5ec; --bad: #b3302b;
  --bad-bg: #fbe9e8; --accent: #1f4e96; --panel: #ffffff; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 20px 64px; }
h1 { font-size: 1.75rem; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.15rem; margin: 40px 0 12px; }
p.lead { color: var(--soft); margin: 0 0 24px; max-width: 72ch; }
.scores { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 16px; }
.panel { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; }
.score .name { color: var(--soft); text-transform: capitalize; }
.score .value { font-size: 2.3rem; font-weight: 650; line-height: 1.15; font-variant-numeric: tabular-nums; }
.score .of { color: var(--soft); font-size: 0.9rem; }
.bar { position: relative; height: 8px; border-radius: 4px; background: #e8ecf1; margin: 12px 0 6px; }
.bar .fill { position: absolute; inset: 0 auto 0 0; border-radius: 4px; background: var(--accent); }
.bar .chance { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink); opacity: 0.55; }
.wide { display: grid; grid-template-columns: minmax(0, 1fr) minmax(320px, 400px); gap: 16px; align-items: start; }
.wide.single { grid-template-columns: minmax(0, 1fr); }
.wide img { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
td { padding: 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
td:first-child { color: var(--soft); padding-right: 16px; white-space: nowrap; overflow-wrap: normal; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 540px), 1fr)); gap: 16px; }
.sample { display: grid; grid-template-columns: 132px minmax(0, 1fr); gap: 6px 16px;
  align-content: start; }
.sample .clip { grid-row: 1 / span 3; width: 132px; height: 132px; display: flex; align-items: center;
  justify-content: center; background: #eef1f5; border-radius: 6px; overflow: hidden; }
.sample .clip img { max-width: 100%; max-height: 100%; width: 100%; height: 100%; object-fit: contain; }
.sample .prompt { font-weight: 600; }
.sample .strip img { width: 100%; max-height: 64px; object-fit: contain; object-position: left; display: block; }
.sample img { image-rendering: pixelated; }
.marks { display: flex; flex-wrap: wrap; gap: 6px; align-self: end; }
.mark { border-radius: 999px; padding: 1px 10px; font-size: 0.84rem; white-space: nowrap; }
.mark.good { background: var(--good-bg); color: var(--good); }
.mark.bad { background: var(--bad-bg); color: var(--bad); }
footer { color: var(--soft); font-size: 0.88rem; margin-top: 36px; max-width: 80ch; }
@media (max-width: 760px) { .wide { grid-template-columns: minmax(0, 1fr); } }
"""


@dataclass(frozen=True)
class Mark:
    """Whether one attribute is right: its name, what was asked for and what is shown ('nothing' where unclear)."""

    name: str
    asked: str
    shown: str

    @property
    def right(self) -> bool:
        """Whether what is shown was asked for."""
        return self.asked == self.shown


def score_panel(name: str, share: float, number: int, chance: float) -> str:
    """Return the panel of one share (0..1) of `number` prompts, with a line at `chance`."""
    right = round(share * number)
    return (
        f'<div class="panel score"><div class="name">{html.escape(name)}</div>'
        f'<div class="value">{100 * share:.0f} %</div>'
        f'<div class="bar"><div class="fill" style="width:{100 * share:.1f}%"></div>'
        f'<div class="chance" style="left:{100 * chance:.1f}%"></div></div>'
        f'<div class="of">{right} of {number} right &middot; chance {100 * chance:.0f} %</div></div>'
    )


def facts_table(facts: Mapping[str, str]) -> str:
    """Return a two-column table of names and values."""
    rows = "".join(f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in facts.items())
    return f"<table>{rows}</table>"


def sample_card(prompt: str, clip_uri: str, strip_uri: str, marks: Sequence[Mark]) -> str:
    """Return the card of one sample: moving clip, prompt, still frames and a mark for each attribute."""
    text = html.escape(prompt)
    return (
        f'<div class="panel sample"><div class="clip"><img src="{clip_uri}" alt="sample for: {text}"></div>'
        f'<div class="prompt">{text}</div>'
        f'<div class="strip"><img src="{strip_uri}" alt="frames of the sample from first to last"></div>'
        f'<div class="marks">{"".join(_mark(mark) for mark in marks)}</div></div>'
    )


def _mark(mark: Mark) -> str:
    """Return a green mark with what is shown, or a red one with what is shown and what was asked for."""
    if mark.right:
        return f'<span class="mark good">&#10003; {html.escape(mark.shown)}</span>'
    text = f"{mark.name}: {mark.shown}, asked {mark.asked}"
    return f'<span class="mark bad">&#10007; {html.escape(text)}</span>'


def page(title: str, lead: str, parts: Sequence[str], note: str) -> str:
    """Return the whole document; `parts` are HTML, the other texts are escaped."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n{body}\n'
        f"<footer>{html.escape(note)}</footer>\n</main>\n</body>\n</html>\n"
    )
