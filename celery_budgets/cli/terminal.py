"""The terminal: how wide it is, and which key was pressed."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["Keys", "console", "is_interactive", "single_keys"]

#: Columns, where the output is not a terminal and nothing need be folded.
PIPE_WIDTH = 240


def console(*, no_color: bool | None) -> Console:
    """Return the console of standard output."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, no_color=no_color or None)


def is_interactive() -> bool:
    """Is there somebody who sees the output and can press a key?"""
    return sys.stdout.isatty() and sys.stdin.isatty()


class Keys:
    """The keys that are pressed, from a terminal that hands on each at once.

    Args:
        descriptor: Of the terminal.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def pressed(self, timeout: float) -> str | None:
        """Return what was typed within *timeout* seconds; ``None`` when the terminal is gone."""
        readable, _, _ = select.select([self._descriptor], [], [], timeout)
        if not readable:
            return ""
        try:
            typed = os.read(self._descriptor, 64)
        except OSError:
            return None
        return typed.decode(errors="replace") or None


@contextmanager
def single_keys() -> Iterator[Keys]:
    """Let standard input hand on single keys, unseen, and put it back as it was."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        # Ctrl-C stays a signal.
        tty.setcbreak(descriptor)
        yield Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
