"""What is asked of the places of limits in Redis, and what they answer.

Values only, in each process that runs calls with limits. See also:
:mod:`celery_budgets.shared_state.limit_store`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from celery_budgets.model.limit import Demand

__all__ = ["Answer", "Aside", "Ask", "Release"]


class Answer(NamedTuple):
    """The answer to a holder that asks for its limits."""

    granted: bool
    #: The demand that is not granted.
    refused: Demand | None = None
    #: Seconds until its rate allows it; 0: it waits in line, and is told.
    wait: float = 0.0
    #: Since when it waits, by the clock of Redis; passed on when it asks again.
    since: int = 0
    #: Seconds until the first lease there ends, unless it is renewed.
    ends: float = 0.0
    #: Whether the caller is to put it aside.
    aside: bool = False
    #: How long it has waited that is granted, also aside, seconds.
    waited: float = 0.0


class Ask(NamedTuple):
    """A holder that asks for what it needs; see :meth:`LimitStore.acquire`."""

    holder: str
    demands: Sequence[Demand]
    since: int = 0
    aside: str = ""


class Release(NamedTuple):
    """A holder that gives back what it has, or ends its wait."""

    holder: str
    demands: Sequence[Demand]
    #: Its name if it could be put aside and has not started.
    aside: str = ""
    #: For how long it has held its places since that was counted last, seconds.
    held: float = 0.0


class Aside(NamedTuple):
    """A message that was put aside, and is to be sent back to its queue."""

    name: str
    message: bytes
    #: Until when nobody else sends it, by the clock of Redis.
    ends: bytes
