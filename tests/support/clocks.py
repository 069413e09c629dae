"""A clock that is wrong, as that of a machine may be."""

from __future__ import annotations

import sys
import time

__all__ = ["put_clock_forward"]


def put_clock_forward(seconds: float) -> None:
    """Have this process, and those that it forks, read a wall clock that is *seconds* ahead."""
    right, right_ns = time.time, time.time_ns

    def wrong() -> float:
        return right() + seconds

    def wrong_ns() -> int:
        return right_ns() + round(seconds * 1e9)

    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if value is right:
                setattr(module, name, wrong)
            elif value is right_ns:
                setattr(module, name, wrong_ns)
