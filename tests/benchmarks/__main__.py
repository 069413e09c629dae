"""``python -m tests.benchmarks [NAME ...] [--quick] [--json FILE] [--plot DIR]``."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.benchmarks import results
from tests.benchmarks.ground import Ground
from tests.benchmarks.measure import Figure, Finding
from tests.benchmarks.svg import bars

NAMES = (
    "overhead",
    "memory",
    "isolation",
    "together",
    "precision",
    "guard",
    "scale",
    "peers",
    "start",
    "wrapper",
    "deliveries",
    "crashes",
    "latency",
    "limits",
    "page",
    "restart",
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME",
                        help=f"one or more of {', '.join(NAMES)}; all by default")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="few calls: only to see that it works")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write pictures")
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    return parser.parse_args(arguments)


def measure(name: str, *, quick: bool) -> tuple[str, list[Figure | Finding]]:
    """Run one benchmark on ground of its own; return what it is about and what it measured."""
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")
    with Ground(quick=quick) as ground:
        return benchmark.__doc__ or "", list(benchmark.run(ground))


def plot(name: str, measured: Sequence[Figure | Finding], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for figure in measured:
        if isinstance(figure, Figure) and figure.plotted:
            words = "-".join(re.findall(r"[a-z0-9]+", figure.name.lower()))
            (directory / f"{name}-{words}.svg").write_text(bars(figure), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    console, everything = Console(), {}
    for name in options.names or NAMES:
        introduction, measured = measure(name, quick=options.quick)
        results.show(name, measured, console)
        everything[name] = [one.to_json() for one in measured]
        if options.plot:
            plot(name, measured, options.plot)
        if options.write:
            results.write(name, introduction, measured)
    if options.json:
        report = {**results.about(), "quick": options.quick, "benchmarks": everything}
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
