"""Waiting for a condition, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T],
    what: str,
    *,
    timeout: float = 10.0,
    interval: float = 0.02,
    detail: Callable[[], str] | None = None,
) -> T:
    """Return the first true value of *predicate*.

    Args:
        predicate: Called again and again.
        what: What is waited for, for the message of the failure.
        timeout: Seconds after which the test fails.
        interval: Seconds between two calls.
        detail: Called for more of the message when it fails, such as the tail of a log.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline
        value = predicate()
        if value:
            return value
        if late:
            more = f"\n{detail()}" if detail else ""
            raise AssertionError(f"not within {timeout:g} s: {what}; last seen: {value!r}{more}")
        time.sleep(interval)


def values_of(
    results: Sequence[Any], timeout: float, detail: Callable[[], str] | None = None
) -> list[Any]:
    """Return what all of many *results* are, once all are there.

    Before Celery 5.7 ``get`` of one that is there already may wait for a second.
    """
    wait_until(
        lambda: all(result.ready() for result in results), "all end", timeout=timeout,
        interval=0.1, detail=detail,
    )  # fmt: skip
    return [result.get() for result in results]


def in_loop(test: Callable[..., Any]) -> Callable[..., None]:
    """Run a test that is a coroutine in an event loop of its own."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run
