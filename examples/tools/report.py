"""What the job shows: progress, a table per lane, the broken budgets, one trace as a tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from celery_budgets.model.lanes import Lane
from celery_budgets.model.outcomes import Outcome
from celery_budgets.telemetry import attributes as names
from celery_budgets.telemetry.statistics import CallStatistics, Statistics
from celery_budgets.units import MIB
from examples.tools.traces import RecordedSpan

if TYPE_CHECKING:
    from examples.tools.job import Call

__all__ = [
    "findings_lines", "forecast_lines", "lane_table", "misbehaviour_table", "new_console",
    "new_progress", "trace_tree",
]  # fmt: skip

#: Columns where there is no terminal to ask.
PIPED_WIDTH = 100
#: Columns of a span's name with its branches, and of the bar that shows when it ran.
NAME_COLUMNS = 54
BAR_COLUMNS = 20

_EIGHTHS = "▁▂▃▄▅▆▇█"
_WHAT = {
    "wait_too_long": "waits for 60 s",
    "ignore_soft_limit": "swallows the soft limit",
    "allocate_everything": "asks for 8 EiB",
}


def new_console() -> Console:
    """Return a console on standard output; without a terminal it prints plain text."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def new_progress(console: Console, *, unit: str, transient: bool = False) -> Progress:
    """Return progress bars that count *unit*; where there is no terminal, nothing is shown."""
    return Progress(
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=48),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )


def lane_table(statistics: Statistics, lanes: Mapping[str, Lane]) -> Table:
    """Return the table with a row per lane: calls, outcomes, durations, memory."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Lanes", title_justify="left")
    table.title_style = "bold"
    table.add_column("lane", style="bold")
    for column in ("slots", "calls"):
        table.add_column(column, justify="right")
    table.add_column("outcomes")
    for column in ("p50", "p95", "p99", "highest RSS"):
        table.add_column(column, justify="right")
    for name, lane in lanes.items():
        calls = statistics.lanes.get(name, CallStatistics())
        table.add_row(
            name,
            str(lane.concurrency),
            str(calls.total),
            _outcomes(calls.outcomes),
            *(_seconds(calls.duration.quantile(share)) for share in (0.5, 0.95, 0.99)),
            _size(calls.rss_peak_bytes),
        )
    return table


def _outcomes(outcomes: Mapping[str, int]) -> Text:
    """Return one line per outcome that occurred, in the order of the table of outcomes."""
    lines = [
        Text(f"{outcomes[word]:>4} {word}", "green" if word == "succeeded" else "yellow")
        for word in Outcome
        if outcomes.get(word)
    ]
    return Text("\n").join(lines) if lines else Text("   - none", "red")


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def _size(size: int | None) -> str:
    return "-" if size is None else f"{size / MIB:.0f} MiB"


def misbehaviour_table(statistics: Statistics, calls: Iterable[Call]) -> Table:
    """Return the table of the calls that broke their budget: how each ended, and when."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.title, table.title_style = "Misbehaving on purpose", "bold"
    for column in ("tool", "what it does", "outcome", "after", "what the caller gets"):
        table.add_column(column, justify="right" if column == "after" else "left")
    for call in calls:
        if call.tool not in _WHAT:
            continue
        seen = statistics.tasks.get(call.tool, CallStatistics())
        table.add_row(
            call.tool,
            _WHAT[call.tool],
            Text(", ".join(seen.outcomes) or "none", "yellow"),
            _seconds(seen.duration.maximum),
            "a result" if call.succeeded else type(call.result).__name__,
        )
    return table


def trace_tree(root: RecordedSpan) -> RenderableType:
    """Return one trace as a tree: name, duration and outcome of each span, and when it ran."""
    ends_at = max(span.ended_at for span, _ in root.walk())
    total = max(ends_at - root.started_at, 1e-6)

    def label(span: RecordedSpan, depth: int) -> Text:
        first = round((span.started_at - root.started_at) / total * BAR_COLUMNS)
        length = max(1, round((span.ended_at - span.started_at) / total * BAR_COLUMNS))
        first = min(first, BAR_COLUMNS - 1)
        bar = (" " * first + "━" * length)[:BAR_COLUMNS].ljust(BAR_COLUMNS)
        call = names.LANE in span.attributes
        name_columns = NAME_COLUMNS - 4 * depth
        name = span.name if len(span.name) <= name_columns else span.name[: name_columns - 1] + "…"
        outcome = span.attributes.get(names.OUTCOME, "")
        return Text.assemble(
            (name.ljust(name_columns), "bold" if call else "dim"),
            (bar, "cyan" if call else "dim"),
            f" {_seconds(span.ended_at - span.started_at):>8} ",
            (outcome, "green" if outcome == "succeeded" else "yellow"),
        )

    def grow(tree: Tree, span: RecordedSpan, depth: int) -> Tree:
        for child in sorted(span.children, key=lambda child: child.started_at):
            grow(tree.add(label(child, depth + 1)), child, depth + 1)
        return tree

    heading = Text.assemble(
        ("One file's trace".ljust(NAME_COLUMNS), "bold"),
        ("when".ljust(BAR_COLUMNS) + "    took  outcome", "dim"),
    )
    return Group(heading, grow(Tree(label(root, 0), guide_style="dim"), root, 0))


def forecast_lines(forecast: Mapping[str, Any]) -> list[Text]:
    """Return the forecast beside what came, as small bars, and its error."""
    low = 0.9 * min(*forecast["actual"], *forecast["forecast"])
    high = max(*forecast["actual"], *forecast["forecast"])
    first, last = forecast["months"][0], forecast["months"][-1]
    return [
        Text("Forecast", "bold"),
        Text(f"airline passengers, {first} to {last}, {forecast['seasonality']} Holt-Winters"),
        Text.assemble("  forecast  ", (_bars(forecast["forecast"], low, high), "cyan"),
                      f"  error {forecast['mape']:.1%}"),
        Text.assemble("  came      ", (_bars(forecast["actual"], low, high), "green"),
                      f"  error of repeating the year before {forecast['baseline_mape']:.1%}"),
    ]  # fmt: skip


def _bars(values: Sequence[float], low: float, high: float) -> str:
    steps = len(_EIGHTHS) - 1
    return "".join(_EIGHTHS[round((value - low) / (high - low) * steps)] for value in values)


def findings_lines(reviews: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Return how much was read, and the most frequent findings."""
    rules = Counter(rule for review in reviews for _, rule, _ in review["findings"])
    lines = sum(review["lines"] for review in reviews)
    worst = max(reviews, key=lambda review: len(review["findings"]), default=None)
    found = [
        Text("Findings", "bold"),
        Text(f"{rules.total():,} findings in {lines:,} lines of {len(reviews)} files"),
    ]
    if rules:
        found.append(Text("  " + ", ".join(f"{n} {rule}" for rule, n in rules.most_common(5))))
    if worst is not None and worst["findings"]:
        found.append(Text(f"  most in {worst['path']} ({len(worst['findings'])})"))
    return found
