"""The errors that this package raises.

    BudgetsError
     ├─ ConfigurationError     a setting, lane, budget or worker that cannot work
     ├─ NoServerError          no broker is configured and none could be started
     ├─ MemoryLimitExceeded    a call went over its memory limit
     ├─ RejectedByBudget       a call that was not admitted
     └─ Throttled              raised by a call: what it has called lets nobody in for a while

Time limits keep Celery's own ``SoftTimeLimitExceeded`` and ``TimeLimitExceeded``,
because users already catch those.

Errors that cross the pool or the result backend carry all their data in positional ``args``:
Celery rebuilds an exception from these alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from celery.exceptions import Ignore, ImproperlyConfigured

from celery_budgets.units import format_duration, format_size, parse_duration

__all__ = [
    "BudgetsError",
    "ConfigurationError",
    "MemoryLimitExceeded",
    "NoServerError",
    "RejectedByBudget",
    "Throttled",
    "nearest",
    "words_of",
]


class BudgetsError(Exception):
    """Base of every error that this package raises."""


class ConfigurationError(BudgetsError, ImproperlyConfigured):
    """The configuration is invalid; :attr:`problems` lists everything wrong with it.

    Args:
        problems: One message per problem, each with the object, the numbers and the remedy.
    """

    def __init__(self, *problems: str) -> None:
        Exception.__init__(self, *problems)
        #: One message per problem.
        self.problems: tuple[str, ...] = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        return f"{len(self.problems)} problems in the configuration:{lines}"

    @classmethod
    def raise_if(cls, problems: Iterable[str]) -> None:
        """Raise one error for all *problems*; do nothing if there are none."""
        found = tuple(problems)
        if found:
            raise cls(*found)


class NoServerError(BudgetsError):
    """No broker is configured and no server could be started in its place."""


class MemoryLimitExceeded(BudgetsError):
    """A call went over its memory limit.

    Args:
        rss: Resident set size of the process when the breach was detected, bytes.
        limit: The limit, bytes; ``None`` where Python itself ran out of memory first.
    """

    def __init__(self, rss: int, limit: int | None = None) -> None:
        super().__init__(rss, limit)
        self.rss = rss
        self.limit = limit

    def __str__(self) -> str:
        if self.limit is None:
            return f"out of memory: MemoryError in the call at {format_size(self.rss)} RSS"
        return (
            f"memory limit exceeded: {format_size(self.rss)} RSS, limit {format_size(self.limit)}"
        )


class RejectedByBudget(BudgetsError):
    """A call was not admitted, and so never ran.

    Args:
        reason: One of the reasons listed in ``docs/concepts/outcomes.md``.
        lane: Name of the lane that would have run it.
    """

    def __init__(self, reason: str, lane: str = "") -> None:
        super().__init__(reason, lane)
        self.reason = reason
        self.lane = lane

    def __str__(self) -> str:
        where = f" by lane {self.lane!r}" if self.lane else ""
        return f"rejected{where}: {self.reason}"


class Throttled(BudgetsError, Ignore):
    """Raise it in a call: whoever is at the other end lets nobody in for a while, as with a 429.

    The limit closes for that time over the fleet, then lets one call through, and opens when that
    one has ended without it. The call goes back, as ``retried``; it counts against no
    ``max_retries``. Of a limit with keys the key of this call closes alone.

    Celery's own ``autoretry_for`` leaves it alone, because it is an ``Ignore``.

    Args:
        limit: Name of the limit.
        retry_after: For how long it closes, seconds.
        all_keys: Close the limit for all its keys.

    Raises:
        ValueError: *retry_after* is no duration above 0.

    Example:
        >>> if response.status == 429:
        ...     raise Throttled("openai", retry_after=float(response.headers["Retry-After"]))
    """

    def __init__(self, limit: str, retry_after: float | str, all_keys: bool = False) -> None:
        seconds = parse_duration(retry_after)
        if not seconds > 0:
            raise ValueError(f"Throttled({limit!r}): retry_after {retry_after!r} must be above 0 s")
        super().__init__(limit, seconds, all_keys)
        self.limit = limit
        self.retry_after = seconds
        self.all_keys = all_keys
        #: Whether a block that it has left has closed the limit.
        self.closed = False

    def close(self) -> None:
        """Note that the limit is closed."""
        self.closed = True

    def __str__(self) -> str:
        keys = ", for all its keys" if self.all_keys else ""
        return f"limit {self.limit!r} is closed for {format_duration(self.retry_after)}{keys}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown *name*: the closest known name, and all known names."""
    from difflib import get_close_matches  # only needed for an error

    names = sorted(known)
    close = get_close_matches(str(name), names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names) or 'none'}"


def words_of(error: BaseException) -> str:
    """Return the message of *error*, or its type when its ``__str__`` fails.

    User code may raise an exception whose ``__str__`` raises, exits, or returns ``None``.
    """
    try:
        return str.__str__(str(error))
    except BaseException as exc:
        return f"<{type(error).__name__} without words: its __str__ raised {type(exc).__name__}>"
