"""What was measured, for people: a table in the terminal, a section in RESULTS.md."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console
from rich.table import Table

from tests.benchmarks.measure import Figure, Finding, spread
from tests.benchmarks.svg import number_text

RESULTS = Path(__file__).parent / "RESULTS.md"
COLUMNS = ("figure", "way", "median", "quartiles", "ratio", "target")
_PACKAGES = ("celery", "kombu", "redis", "opentelemetry-sdk", "dramatiq", "rq")


def about() -> dict[str, str]:
    """Return when, on what and with what this was measured."""
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    memory = psutil.virtual_memory().total / 2**30
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "versions": ", ".join(versions),
        "machine": f"{os.cpu_count()} CPUs, {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()}, load {os.getloadavg()[0]:.1f} at the end",
    }


def rows(measured: Sequence[Figure | Finding]) -> Iterator[tuple[str, ...]]:
    """Yield a row per figure and way, with a cell per column."""
    for figure in measured:
        if isinstance(figure, Finding):
            continue
        for number, way in enumerate(figure.samples):
            low, high = figure.spread(way)
            numbers = f"{number_text(low)} to {number_text(high)}"
            name = f"{figure.name}, {figure.unit}" if not number else ""
            middle = number_text(figure.middle(way))
            yield name, way, middle, numbers, _ratio(figure, way), _target(figure, way)


def _ratio(figure: Figure, way: str) -> str:
    ratios = figure.ratios(way)
    if not ratios:
        return ""
    low, high = spread(ratios)
    return f"{median(ratios):.3g} x {figure.against[way]} ({low:.3g} to {high:.3g})"


def _target(figure: Figure, way: str) -> str:
    met = figure.judge(way)
    return "" if met is None else f"{figure.targets[way]}: {'met' if met else 'missed'}"


def show(name: str, measured: Sequence[Figure | Finding], console: Console) -> None:
    """Print a table of one benchmark, and what was seen below it."""
    table = Table(*COLUMNS, title=name, title_justify="left")
    for row in rows(measured):
        table.add_row(*row)
    if table.row_count:
        console.print(table)
    for finding in measured:
        if isinstance(finding, Finding):
            console.print(f"[bold]{finding.name}[/bold]")
            for way, seen in finding.seen.items():
                console.print(f"  {way}: {seen}", highlight=False)


def write(name: str, introduction: str, measured: Sequence[Figure | Finding]) -> None:
    """Put the section *name* into RESULTS.md in place of the one before."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else _HEAD
    section = "\n".join(_section(name, introduction, measured))
    found = re.compile(rf"^## {re.escape(name)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if found.search(text):
        text = found.sub(lambda _: section, text)
    else:
        text = f"{text.rstrip()}\n\n{section}"
    RESULTS.write_text(f"{text.rstrip()}\n", encoding="utf-8")


_HEAD = """# Results

Measured by `python -m tests.benchmarks`, each way in turn in one run. Medians and quartiles;
ratios are of pairs measured one after the other, and are what counts: the rest is the machine's.
"""


def _section(name: str, introduction: str, measured: Sequence[Figure | Finding]) -> Iterator[str]:
    facts = about()
    yield f"## {name}\n"
    yield f"{introduction.strip()}\n"
    yield f"{facts['date']}; {facts['versions']}; {facts['machine']}.\n"
    listed = list(rows(measured))
    if listed:
        yield f"| {' | '.join(COLUMNS)} |"
        yield f"|{' --- |' * len(COLUMNS)}"
        yield from (f"| {' | '.join(row)} |" for row in listed)
        yield ""
    for finding in measured:
        if isinstance(finding, Finding):
            yield f"{finding.name}:\n"
            yield from (f"- {way}: {seen}" for way, seen in finding.seen.items())
            yield ""
    yield ""
