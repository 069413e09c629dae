"""One run of the demo: a broker, the workers, the job, and what came of it.

Whatever ends the run (its end, an error, Ctrl-C), the workers and the server are stopped first.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from rich.text import Text

from celery_budgets.errors import BudgetsError
from examples.tools import report
from examples.tools.broker import broker
from examples.tools.interrupts import plain_interrupts
from examples.tools.page import page
from examples.tools.traces import DIRECTORY_VARIABLE, RecordedSpan, read_traces
from examples.tools.workers import LaneWorkers, WorkerFailed

if TYPE_CHECKING:
    from celery_budgets.telemetry.statistics import Statistics
    from examples.tools.job import Job

__all__ = ["Run"]

#: Seconds between two looks at workers or results.
LOOK_SECONDS = 0.1
#: The run gives up when no call has ended for so many seconds.
STALLED_SECONDS = 60.0


class Run:
    """One run over *files* below *root*.

    Args:
        files: The Python files.
        root: The directory that they are below.
        output: Directory for reports, logs and spans; ``None``: a fresh temporary one.
        web: Whether to serve the page of the lanes, and to go on after the job until Ctrl-C.
    """

    def __init__(
        self, files: Sequence[Path], root: Path, output: Path | None, *, web: bool = False
    ) -> None:
        self.files = files
        self.web = web
        self.root = root
        self.output = (output or Path(mkdtemp(prefix="celery-budgets-tools-"))).absolute()
        self.console = report.new_console()
        self.job: Job | None = None
        self._started_at = time.monotonic()

    def execute(self) -> bool:
        """Run it, show what came of it, and return whether every call has an outcome."""
        try:
            with plain_interrupts():
                statistics = self._execute()
        except KeyboardInterrupt:
            self._say(f"interrupted after {self._seconds()}; all processes have ended", "yellow")
            self._say(self._progress_so_far())
            raise
        except (BudgetsError, WorkerFailed, OperationalError, OSError) as exc:
            self._say(f"failed after {self._seconds()}: {exc}", "red")
            self._say(self._progress_so_far())
            return False
        self._show(statistics)
        return self._verdict(statistics)

    def _execute(self) -> Statistics:
        reports, logs, spans = (self._directory(name) for name in ("reports", "logs", "traces"))
        for old in spans.glob("*.jsonl"):
            old.unlink()
        os.environ[DIRECTORY_VARIABLE] = str(spans)
        with ExitStack() as stack:
            server = stack.enter_context(broker())
            # Only now: the app looks at these variables when it is imported.
            from examples.tools.job import Job

            self.job = Job(self.files, self.root, reports)
            workers = LaneWorkers(self.job.lanes.values(), logs)
            stack.callback(workers.stop)
            self._introduce(server)
            try:
                with plain_interrupts():
                    self._start(workers)
                    if self.web:
                        address = stack.enter_context(page())
                        self._say(f"The lanes are at {address}", "bold")
                    self.job.send()
                    self._follow(workers)
                    statistics = self.job.statistics()
                if self.web:
                    self._stay()
                return statistics
            except KeyboardInterrupt:
                self._say("stopping the workers; Ctrl-C again kills them", "yellow")
                with suppress(Exception):
                    self.job.look()
                raise

    def _directory(self, name: str) -> Path:
        directory = self.output / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _introduce(self, server: str) -> None:
        assert self.job is not None
        lanes = self.job.lanes.values()
        slots = sum(lane.concurrency for lane in lanes)
        self._say(f"{len(self.files)} Python files below {self.root}", "bold")
        self._say(f"{server}; {len(lanes)} workers, one per lane, with {slots} pool processes")

    def _start(self, workers: LaneWorkers) -> None:
        """Start the workers, and wait until all take calls."""
        workers.start()
        with report.new_progress(self.console, unit="workers", transient=True) as progress:
            bar = progress.add_task("starting", total=workers.count)
            while len(workers.ready) < workers.count:
                progress.update(bar, completed=len(workers.ready))
                workers.check()
                time.sleep(LOOK_SECONDS)
        self._say(f"workers ready after {self._seconds()}")

    def _follow(self, workers: LaneWorkers) -> None:
        """Move the progress bars until every call has ended."""
        assert self.job is not None
        totals = Counter(call.lane for call in self.job.calls.values())
        last = time.monotonic()
        with report.new_progress(self.console, unit="calls") as progress:
            bars = {lane: progress.add_task(lane, total=totals[lane]) for lane in self.job.lanes}
            whole = progress.add_task("all lanes", total=totals.total())
            for call in self.job.ended():
                if call is not None:
                    progress.advance(bars[call.lane])
                    progress.advance(whole)
                    last = time.monotonic()
                elif time.monotonic() - last > STALLED_SECONDS:
                    lanes = {call.lane for call in self.job.pending}
                    raise WorkerFailed(
                        f"no call has ended for {STALLED_SECONDS:g} s\n{workers.tail(*lanes)}"
                    )
                else:
                    workers.check()
                    time.sleep(LOOK_SECONDS)

    def _stay(self) -> None:
        """Leave the page open until Ctrl-C."""
        self._say("the job is done, and the page stays open; Ctrl-C ends it", "bold")
        with suppress(KeyboardInterrupt), plain_interrupts():
            while True:
                time.sleep(LOOK_SECONDS)

    def _show(self, statistics: Statistics) -> None:
        assert self.job is not None
        calls = list(self.job.calls.values())
        reviews = [call.result for call in calls if call.tool == "critics_run" and call.succeeded]
        self.console.print(report.lane_table(statistics, self.job.lanes))
        self.console.print(report.misbehaviour_table(statistics, calls))
        root = _richest(read_traces(self.output / "traces"), reviews)
        if root is not None:
            self.console.print(report.trace_tree(root))
            self._say("")
        forecast = next((call for call in calls if call.tool == "forecast_model"), None)
        if forecast is not None and forecast.succeeded:
            self.console.print(*report.forecast_lines(forecast.result), "", sep="\n")
        self.console.print(*report.findings_lines(reviews), "", sep="\n")

    def _verdict(self, statistics: Statistics) -> bool:
        assert self.job is not None
        sent = [call for call in self.job.calls.values() if call.was_sent]
        counted = statistics.total.total
        self._say(f"Reports in {self.output / 'reports'}", "bold")
        self._say("Logs of the workers in logs and spans in traces beside them.")
        every = counted >= len(sent)
        self._say(
            f"{min(counted, len(sent))} of {len(sent)} calls have an outcome, "
            f"after {self._seconds()}.",
            "green" if every else "red",
        )
        return every

    def _progress_so_far(self) -> str:
        calls = self.job.calls.values() if self.job is not None else ()
        if not calls:
            return "no call was sent"
        ended = sum(call.meta is not None for call in calls)
        written = sum(call.tool == "fs_write" and call.succeeded for call in calls)
        return (
            f"{ended} of {len(calls)} calls have ended; {written} reports are in "
            f"{self.output / 'reports'}"
        )

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._started_at:.1f} s"

    def _say(self, text: str, style: str = "") -> None:
        # A file name may have bytes that are no text, and a path is not to be cut into lines.
        printable = text.encode("utf-8", "backslashreplace").decode()
        self.console.print(Text(printable, style), soft_wrap=True)


def _richest(roots: Sequence[RecordedSpan], reviews: Sequence[Any]) -> RecordedSpan | None:
    """Return the trace of the file with the most findings, if it is whole."""
    worst = max(reviews, key=lambda review: len(review["findings"]), default=None)
    wanted = f"review {Path(worst['path']).name}" if worst is not None else ""
    return next((root for root in roots if root.name == wanted), None)
