"""Draws a sequence diagram from text: ``python docs/diagrams/draw.py`` rewrites the SVG files.

A line ``1 -> 2: words`` is a solid arrow from the first column to the second, ``4 --> 3: words``
a dashed one, and ``3: words`` a note in the third column.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE.parent / "_static"
WIDTH, MARGIN, HEAD, STEP, LINE = 860, 100, 56, 50, 15

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2933; }
.head { font-weight: 600; }
.box { fill: #e8eef7; stroke: #4a6fa5; }
.note { fill: #fdf6e3; stroke: #b58900; }
.life { stroke: #9aa5b1; stroke-dasharray: 2 4; }
.arrow { stroke: #334e68; stroke-width: 1.5; fill: none; }
.dashed { stroke-dasharray: 6 4; }
"""


def draw(text: str) -> str:
    """Return the SVG of the diagram that *text* describes."""
    first, *steps = [line for line in text.splitlines() if line.strip()]
    columns = [name.strip() for name in first.partition(":")[2].split("|")]
    gap = (WIDTH - 2 * MARGIN) / (len(columns) - 1)
    places = [MARGIN + number * gap for number in range(len(columns))]
    height = HEAD + STEP * len(steps) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#334e68"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for place, name in zip(places, columns, strict=True):
        parts.append(f'<path class="life" d="M{place:g} {HEAD - 16}V{height - 8}"/>')
        parts.append(f'<rect class="box" x="{place - 82:g}" y="8" width="164" height="30" rx="4"/>')
        parts.append(_text(place, 28, name, "head"))
    for number, step in enumerate(steps):
        parts += _step(step, places, HEAD + STEP * number + STEP / 2)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _step(step: str, places: list[float], middle: float) -> Iterator[str]:
    found = re.fullmatch(r"(\d) (--?)> (\d): (.+)|(\d): (.+)", step)
    assert found, step
    start, line, end, words, alone, note = found.groups()
    if alone:
        lines = textwrap.wrap(note, 30)
        place, height = places[int(alone) - 1], LINE * len(lines) + 8
        left = min(max(place - 105, 4), WIDTH - 214)
        yield (
            f'<rect class="note" x="{left:g}" y="{middle - height / 2:g}" width="210" '
            f'height="{height}" rx="3"/>'
        )
        for number, words in enumerate(lines):
            yield _text(left + 105, middle - height / 2 + LINE * (number + 1), words)
        return
    left, right = places[int(start) - 1], places[int(end) - 1]
    dashed = " dashed" if line == "--" else ""
    way = f"M{left:g} {middle + 10:g}H{right:g}"
    yield f'<path class="arrow{dashed}" marker-end="url(#tip)" d="{way}"/>'
    lines = textwrap.wrap(words, 32 if abs(int(start) - int(end)) == 1 else 60)
    for number, words in enumerate(lines):
        yield _text((left + right) / 2, middle + 4 - LINE * (len(lines) - 1 - number), words)


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    of = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle"{of}>{escape(words)}</text>'


if __name__ == "__main__":
    for source in sorted(HERE.glob("*.txt")):
        (OUT / f"{source.stem}.svg").write_text(draw(source.read_text(encoding="utf-8")))
