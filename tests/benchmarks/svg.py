"""Bars with their spread, as plain SVG: one picture per figure."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from tests.benchmarks.measure import Figure

_WIDTH, _LABELS, _NUMBERS = 760, 210, 120
_TOP, _ROW, _BAR, _BOTTOM = 56, 36, 20, 14
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 16px; font-weight: 600 } .unit { fill: #57606a }
  .bar { fill: #8c959f } .ours { fill: #1f883d } .spread { stroke: #24292f; stroke-width: 1.5 }
  .back { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .unit { fill: #8b949e } .back { fill: #0d1117 }
    .bar { fill: #6e7681 } .ours { fill: #3fb950 } .spread { stroke: #e6edf3 }
  }"""
#: Ways that are ours, by the beginning of their name.
_OURS = ("lanes", "budget", "everything", "celery-budgets", "gate")


def bars(figure: Figure) -> str:
    """Return *figure* as SVG: a bar per way up to its median, a line over its quartiles."""
    height = _TOP + _ROW * len(figure.samples) + _BOTTOM
    title, unit = escape(figure.name), escape(figure.unit)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}" role="img" aria-label="{title}">',
            f"<style>{_STYLE}\n</style>",
            f'<rect class="back" width="{_WIDTH}" height="{height}"/>',
            f'<text class="title" x="12" y="26">{title}</text>',
            f'<text class="unit" x="12" y="44">{unit}; median and quartiles</text>',
            *_rows(figure),
            "</svg>\n",
        ]
    )


def _rows(figure: Figure) -> Iterator[str]:
    highest = max(max(figure.middle(way), figure.spread(way)[1]) for way in figure.samples)
    scale = (_WIDTH - _LABELS - _NUMBERS) / (highest or 1.0)
    for number, way in enumerate(figure.samples):
        middle, (low, high) = figure.middle(way), figure.spread(way)
        top = _TOP + number * _ROW
        line = top + _BAR / 2
        kind = "bar ours" if way.startswith(_OURS) else "bar"
        right = _LABELS + scale * max(middle, high) + 8
        yield f'<text x="{_LABELS - 8}" y="{top + 15}" text-anchor="end">{escape(way)}</text>'
        yield (
            f'<rect class="{kind}" x="{_LABELS}" y="{top}" height="{_BAR}" rx="2" '
            f'width="{max(1.0, scale * middle):.1f}"/>'
        )
        yield (
            f'<line class="spread" x1="{_LABELS + scale * max(0.0, low):.1f}" y1="{line}" '
            f'x2="{_LABELS + scale * high:.1f}" y2="{line}"/>'
        )
        yield f'<text x="{right:.1f}" y="{top + 15}">{number_text(middle)} {figure.unit}</text>'


def number_text(value: float) -> str:
    """Return *value* with three digits that count: ``1,234``, ``12.3``, ``0.0123``."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
