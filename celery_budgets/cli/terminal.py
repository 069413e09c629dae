"""Access to the terminal: its width and single key presses."""

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

#: Columns where the output is not a terminal, so that no line is folded.
PIPE_WIDTH = 240


def console(*, no_color: bool | None) -> Console:
    """Return the console of standard output."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, no_color=no_color or None)


def is_interactive() -> bool:
    """Return whether standard input and output are both a terminal."""
    return sys.stdout.isatty() and sys.stdin.isatty()


class Keys:
    """The keys pressed on a terminal that delivers each of them immediately.

    Args:
        descriptor: File descriptor of the terminal.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def pressed(self, timeout: float) -> str | None:
        """Return the keys typed within *timeout* seconds; ``None`` when the terminal is closed."""
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
    """Switch standard input to single keys without echo, and restore it afterwards."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        # Ctrl-C stays a signal.
        tty.setcbreak(descriptor)
        yield Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
