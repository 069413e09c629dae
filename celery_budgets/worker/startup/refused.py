"""The error that refuses the start of a worker."""

from __future__ import annotations

from click import ClickException

from celery_budgets.errors import ConfigurationError

__all__ = ["WorkerRefused"]


class WorkerRefused(ConfigurationError, ClickException):
    """A worker must not start; the command line shows the message and exits with code 1."""

    def __init__(self, *problems: str) -> None:
        ClickException.__init__(self, "\n".join(problems))
        self.args = self.problems = problems

    def format_message(self) -> str:
        """Return the message for the terminal (called by click)."""
        return str(self)
