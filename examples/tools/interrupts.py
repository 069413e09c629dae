"""Ctrl-C, which may come at any place: also while a class is made, as imports do.

Runs in the demo's own process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["plain_interrupts"]


@contextmanager
def plain_interrupts() -> Iterator[None]:
    """Raise a ``KeyboardInterrupt`` as such.

    Before Python 3.12 one that comes in the middle of a class statement leaves it as the cause of a
    ``RuntimeError`` (type.__new__, which calls ``__set_name__``).
    """
    try:
        yield
    except RuntimeError as exc:
        if isinstance(exc.__cause__, KeyboardInterrupt):
            raise exc.__cause__ from None
        raise
