"""The results of a batch: an item per call, and a summary.

See also: :mod:`celery_budgets.batch.batch`.

Runs in the process that sends.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BatchItem", "BatchSummary"]

#: Failed items that a summary names.
FAILURES_NAMED = 100


@dataclass(frozen=True, slots=True)
class BatchItem:
    """The result of one call of a batch."""

    #: Its place in the batch, from 0.
    index: int
    #: Name of its task.
    task: str
    task_id: str
    #: Return value of the call; ``None`` if it failed.
    value: Any = None
    #: Its exception; ``celery.exceptions.TimeoutError`` if no result arrived in time.
    error: BaseException | None = None

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.error is None


@dataclass(slots=True)
class BatchSummary:
    """The totals of a batch, over the items that were read."""

    succeeded: int = 0
    failed: int = 0
    #: Failed calls by the name of their error's class.
    errors: Counter[str] = field(default_factory=Counter)
    #: The first 100 failed items.
    failures: list[BatchItem] = field(default_factory=list)
    #: Calls that were sent and whose item was not read: revoked, or left running.
    unread: int = 0

    def add(self, item: BatchItem) -> None:
        """Count one item."""
        if item.error is None:
            self.succeeded += 1
            return
        self.failed += 1
        self.errors[type(item.error).__name__] += 1
        if len(self.failures) < FAILURES_NAMED:
            self.failures.append(item)

    def __str__(self) -> str:
        words = ", ".join(f"{count} {name}" for name, count in self.errors.most_common())
        errors = f" ({words})" if words else ""
        unread = f"; {self.unread} unread" if self.unread else ""
        return f"{self.succeeded} succeeded, {self.failed} failed{errors}{unread}"
