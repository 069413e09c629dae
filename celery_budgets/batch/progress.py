"""Progress of a batch: its figures, and a progress bar for terminals.

See also: :mod:`celery_budgets.batch.batch`, whose ``on_progress`` accepts any callable.

Runs in the process that sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "ProgressBar"]


class Progress(NamedTuple):
    """How far a batch has come."""

    #: Calls that have ended, with any outcome.
    done: int
    #: Those of them that did not succeed.
    failed: int
    #: Calls that are sent and have not ended.
    in_flight: int
    #: Number of calls; ``None`` if unknown.
    total: int | None


class ProgressBar:
    """A progress bar on a terminal; elsewhere, one line at the end.

    Args:
        description: Text before the bar.
        console: Console to draw on; standard error by default.

    Example:
        >>> with ProgressBar("reading") as bar:
        ...     for item in budgets.batch(calls, max_in_flight=16, on_progress=bar):
        ...         print(item.value)
    """

    def __init__(self, description: str = "calls", console: Console | None = None) -> None:
        # Imported late: only programs that draw a bar should pay for it.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed, {task.fields[in_flight]} in flight"),
            TimeElapsedColumn(),
            console=console or Console(stderr=True),
        )
        self._task: Any = self._bar.add_task(description, total=None, failed=0, in_flight=0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show *progress*; pass the bar itself as ``on_progress``."""
        self._bar.update(
            self._task,
            completed=progress.done,
            total=progress.total,
            failed=progress.failed,
            in_flight=progress.in_flight,
        )
