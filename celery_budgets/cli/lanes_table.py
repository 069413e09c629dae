"""The table of lanes on a terminal: bars, rates, memory, alerts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from celery_budgets.cli import queue_cells
from celery_budgets.cli.lane_commands import why_silent
from celery_budgets.sending.status.alerts import CRITICAL_SHARE
from celery_budgets.sending.status.overview import Overview, Row
from celery_budgets.units import MIB, format_duration

__all__ = ["drawn"]

#: What is left out where a terminal is too narrow, in this order: columns, and the bars.
_LEFT_OUT = ("p50", "bars", "history", "drain", "failed", "slo", "calls")
#: The column whose lines may be broken, and the characters that it needs.
_LAST = "alerts"
LAST_CELLS = 16
#: Characters between two columns.
GAP = 3
#: Characters of a bar; each has eight steps.
BAR_CELLS = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_STYLES = {"critical": "bold red", "warning": "yellow", "info": "cyan"}


def drawn(overview: Overview, width: int, *, live: bool = False) -> Group:
    """Return *overview* as a table, followed by lines about totals and silent workers.

    Args:
        overview: What to show.
        width: Columns of the terminal; on a narrow one some columns and the bars are left out.
        live: Whether to show the column of rates.
    """
    columns, bars = _fitting(overview.rows, width, live=live)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify=column.justify, no_wrap=column.heading != _LAST)
    told: set[str] = set()
    for row in overview.rows:
        table.add_row(
            *(
                Text() if column.of_lane and row.lane in told else column.cell(row, bars)
                for column in columns
            )
        )
        told.add(row.lane)
    return Group(*([table] if overview.rows else []), *_below(overview))


class _Column(NamedTuple):
    """One column; ``live`` limits it to live tables. A cell may have a bar, if there is room."""

    heading: str
    cell: Callable[[Row, bool], Text]
    justify: Literal["left", "right"] = "right"
    live: bool = False
    #: Whether it is about the lane, and so stands only in its first row.
    of_lane: bool = False
    #: Whether it is left out where no row has anything in it.
    spare: bool = False


def _fitting(rows: Sequence[Row], width: int, *, live: bool) -> tuple[list[_Column], bool]:
    """Return the columns that fit a terminal of *width*, and whether bars do."""
    columns = [
        column
        for column in _COLUMNS
        if (live or not column.live)
        and not (column.spare and not any(column.cell(row, False) for row in rows))
    ]
    for left_out in range(len(_LEFT_OUT) + 1):
        gone = _LEFT_OUT[:left_out]
        left, bars = [c for c in columns if c.heading not in gone], "bars" not in gone
        if sum(_cells(column, rows, bars) + GAP for column in left) <= width:
            break
    return left, bars


def _cells(column: _Column, rows: Sequence[Row], bars: bool) -> int:
    cells = [len(column.heading), *(column.cell(row, bars).cell_len for row in rows)]
    return min(max(cells), LAST_CELLS) if column.heading == _LAST else max(cells)


def _slots(row: Row, bars: bool) -> Text:
    # Green also when full: a lane with no free slot is busy, which is no problem.
    bar = _bar(row.active, row.limit, "green") if bars else Text()
    return bar + Text(f"{row.active}/{row.limit}")


def _memory(row: Row, bars: bool) -> Text:
    style = "green"
    if row.rss > CRITICAL_SHARE * row.max_rss:
        style = _STYLES["critical"]
    elif row.rss > row.rss_warning:
        style = _STYLES["warning"]
    bar = _bar(row.rss, row.max_rss, style) if bars else Text()
    return bar + Text(f"{row.rss / MIB:.0f} of {row.max_rss / MIB:.0f} MiB", style=style)


def _alerts(row: Row, _: bool) -> Text:
    return Text("\n").join(Text(alert.text, style=_STYLES[alert.level]) for alert in row.alerts)


_COLUMNS = (
    _Column("lane", lambda row, _: Text(row.lane), "left"),
    _Column("worker", lambda row, _: Text(row.worker), "left"),
    _Column("active", _slots, "left"),
    _Column("waiting", lambda row, _: Text(str(row.waiting))),
    _Column("backlog", lambda row, _: Text(queue_cells.backlog(row.queue)), of_lane=True),
    _Column(
        "history",
        lambda row, _: Text(queue_cells.sparkline(row.history), style="cyan"),
        live=True,
        of_lane=True,
    ),
    _Column("oldest", lambda row, _: Text(queue_cells.oldest(row.queue)), of_lane=True),
    _Column("drain", lambda row, _: Text(queue_cells.drain(row.queue)), of_lane=True),
    _Column("slo", lambda row, _: Text(queue_cells.kept(row.objective)), of_lane=True, spare=True),
    _Column("calls", lambda row, _: Text(str(row.calls))),
    _Column("calls/s", lambda row, _: Text(_rate(row.rate)), live=True),
    _Column("failed", lambda row, _: Text(str(row.failed))),
    _Column("killed", lambda row, _: Text(str(row.killed), style="red" if row.killed else "")),
    _Column("p50", lambda row, _: Text(_duration(row.p50))),
    _Column("p95", lambda row, _: Text(_duration(row.p95))),
    _Column("memory", _memory, "left"),
    _Column(
        "gate",
        lambda row, _: Text(row.gate, style="" if row.gate == "open" else _STYLES["critical"]),
        "left",
    ),
    _Column("alerts", _alerts, "left"),
)


def _bar(value: float, limit: float, style: str) -> Text:
    """Return a bar of :data:`BAR_CELLS` characters, full at *limit* and above."""
    share = min(1.0, value / limit) if limit else 0.0
    eighths = round(share * BAR_CELLS * 8)
    # Any value above 0 is visible.
    eighths = max(eighths, 1) if value else 0
    full, rest = divmod(eighths, 8)
    text = "█" * full + (_EIGHTHS[rest] if rest else "")
    return Text(text.ljust(BAR_CELLS, "·") + " ", style=style)


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    # Three significant digits, at most hundredths of a millisecond.
    return format_duration(round(float(f"{seconds:.3g}"), 5))


def _below(overview: Overview) -> Iterator[Text]:
    total = overview.total
    workers = len(overview.answered)
    yield Text(
        f"{workers} {'worker' if workers == 1 else 'workers'}, "
        f"{total.active} of {total.limit} slots active, {total.waiting} waiting"
    )
    for worker in overview.silent:
        style = _STYLES["warning" if worker in overview.plain else "critical"]
        yield Text(why_silent(worker, overview.plain), style=style)
    if overview.unserved:
        yield Text(f"no worker serves: {', '.join(overview.unserved)}", style=_STYLES["warning"])
