"""Makes the pictures of ``lanes top`` and of a trace from a real run: ``python docs/pictures.py``.

Runs the workers of ``examples/tools`` over files of the standard library, as the demo does, and
prints what it sees into SVG files. Needs the extra ``demo``; takes about a minute.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from celery_budgets.cli.lanes_table import drawn
from celery_budgets.cli.top import Looks
from celery_budgets.sending.remote_control import Inspection
from examples.tools import report
from examples.tools.broker import broker
from examples.tools.traces import DIRECTORY_VARIABLE, read_traces
from examples.tools.workers import LaneWorkers

OUT = ROOT / "docs" / "_static"
FILES = 300
#: Seconds between the two looks, for the rates.
INTERVAL = 1.0
#: Columns of the terminal that is drawn.
WIDTH = 180
#: Without the web fonts that rich would load: a page of the documentation loads nothing.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def main() -> None:
    """Run the job, and write ``lanes-top.svg`` and ``trace.svg``."""
    library = Path(os.__file__).parent
    files = sorted(library.glob("*.py"), key=lambda path: -path.stat().st_size)[:FILES]
    with ExitStack() as stack:
        output = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        spans, logs, reports = (output / name for name in ("traces", "logs", "reports"))
        for directory in (spans, logs, reports):
            directory.mkdir()
        os.environ[DIRECTORY_VARIABLE] = str(spans)
        stack.enter_context(broker())
        from examples.tools import app as tools
        from examples.tools.job import Job

        job = Job(files, library, reports)
        workers = LaneWorkers(job.lanes.values(), logs)
        stack.callback(workers.stop)
        workers.start()
        while len(workers.ready) < workers.count:
            workers.check()
            time.sleep(0.1)
        job.send()
        looks = Looks(Inspection(tools.app), job.lanes)
        _look_while_it_runs(job, looks)
        for _ in job.ended():
            time.sleep(0.1)
        time.sleep(1)  # the last spans are on their way
        save("trace", "One file through three lanes", 100, [report.trace_tree(_root(spans))])


def _look_while_it_runs(job: Any, looks: Looks) -> None:
    """Save the look at which most slots were taken."""
    best, most = looks.look(), -1
    while job.pending:
        time.sleep(INTERVAL)
        overview = looks.look()
        job.look()
        busy = sum(min(row.active, 3) for row in overview.rows) if overview else -1
        if busy > most:
            best, most = overview, busy
    assert best is not None
    heading = Text(f"celery lanes top  every {INTERVAL:g} s  q quits", style="bold")
    save("lanes-top", "celery -A tools lanes top", WIDTH, [heading, drawn(best, WIDTH, live=True)])


def _root(spans: Path) -> Any:
    """Return the whole trace of one file that waited least between its spans."""
    roots = [root for root in read_traces(spans) if root.name.startswith("review ")]
    whole = [root for root in roots if sum(1 for _ in root.walk()) >= 6]

    def share_at_work(root: Any) -> float:
        each = [span for span, _ in root.walk()]
        took = max(span.ended_at for span in each) - root.started_at
        return float(sum(span.ended_at - span.started_at for span in each) / took)

    return max(whole, key=share_at_work)


def save(name: str, title: str, width: int, parts: list[Any]) -> None:
    """Write *parts*, as a terminal of *width* columns shows them, into an SVG file."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True,
                          color_system="truecolor", highlight=False)  # fmt: skip
        for part in parts:
            console.print(part)
        svg = console.export_svg(title=title, code_format=FORMAT, unique_id=name)
    (OUT / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
