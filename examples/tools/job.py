"""The job: sends every call, and follows each until it has ended.

See also: :mod:`examples.tools.report`, which shows what came of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery.canvas import Signature
from opentelemetry import trace

from celery_budgets.telemetry.statistics import Statistics
from examples.tools import app as tools

__all__ = ["Call", "Job"]

#: The first files also have their words counted.
COUNTED_FILES = 40
#: Seconds in which the workers' statistics must have counted every result.
STATISTICS_SECONDS = 5.0


@dataclass
class Call:
    """One call of a tool, and its result when it has ended."""

    id: str
    tool: str
    lane: str
    #: The call before it in its chain.
    after: Call | None = None
    #: What the result backend holds: ``status``, and ``result`` (or the exception).
    meta: dict[str, Any] | None = None

    @property
    def succeeded(self) -> bool:
        """Whether it has a result, and no exception."""
        return self.meta is not None and self.meta["status"] == "SUCCESS"

    @property
    def was_sent(self) -> bool:
        """Whether it reached a worker: no call before it in its chain has failed."""
        return self.after is None or self.after.succeeded

    @property
    def result(self) -> Any:
        """What it returned, or its exception; ``None`` while it runs."""
        return self.meta["result"] if self.meta is not None else None


class Job:
    """Every file through read, critic and write; forecast, counts and misbehaviour beside it.

    Args:
        files: The Python files.
        root: The directory that they are below.
        reports: Directory of the reports, one per file.
    """

    def __init__(self, files: Sequence[Path], root: Path, reports: Path) -> None:
        self.files = files
        self.root = root
        self.reports = reports
        #: Lanes by name.
        self.lanes = tools.budgets.settings.lanes
        #: Calls by task id, in the order in which they were sent.
        self.calls: dict[str, Call] = {}
        self._tracer = trace.get_tracer(__name__)

    def send(self) -> None:
        """Send all calls; the workers need not run yet."""
        # The longest ones first: they run beside all the others.
        self._send(tools.forecast_model.s())
        self._send(tools.wait_too_long.s(60.0))
        self._send(tools.ignore_soft_limit.s(60.0))
        self._send(tools.allocate_everything.s())
        for number, path in enumerate(self.files):
            report = self.reports / path.relative_to(self.root).with_suffix(".py.md")
            with self._tracer.start_as_current_span(f"review {path.name}"):
                self._send(
                    tools.fs_read.s(str(path))
                    | tools.critics_run.s()
                    | tools.fs_write.s(str(report))
                )
            if number < COUNTED_FILES:
                self._send(tools.word_count.s(str(path)))

    def _send(self, signature: Signature) -> None:
        """Send a task, or a chain of tasks, and note each call."""
        results = [signature.apply_async()]
        while results[0].parent is not None:
            results.insert(0, results[0].parent)
        before = None
        for part, result in zip(getattr(signature, "tasks", [signature]), results, strict=True):
            task = tools.app.tasks[part.task]
            before = Call(result.id, task.name, task.home().name, before)
            self.calls[result.id] = before

    @property
    def pending(self) -> list[Call]:
        """The calls that are not known to have ended."""
        return [call for call in self.calls.values() if call.meta is None]

    def look(self) -> list[Call]:
        """Return the calls that have ended since the last look."""
        # One request for all of them, where AsyncResult.ready() makes one for each.
        pending = [call.id for call in self.pending]
        metas = dict(tools.app.backend.get_many(pending, interval=0, max_iterations=1))
        for task_id, meta in metas.items():
            self.calls[task_id].meta = meta
        return [self.calls[task_id] for task_id in metas]

    def ended(self) -> Iterator[Call | None]:
        """Yield each call once it has ended, and ``None`` between two looks for more."""
        while self.pending:
            yield from self.look()
            yield None

    def statistics(self) -> Statistics:
        """Return the statistics of all workers, once they have counted every result."""
        sent = sum(call.was_sent for call in self.calls.values())
        deadline = time.monotonic() + STATISTICS_SECONDS
        while True:
            statistics = tools.budgets.statistics(timeout=1.0)
            if statistics.total.total >= sent or time.monotonic() > deadline:
                return statistics
