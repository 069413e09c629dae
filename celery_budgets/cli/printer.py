"""Prints the output of several workers to one terminal, each line marked with its lane."""

from __future__ import annotations

from collections.abc import Iterable

import click

__all__ = ["Printer"]

_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_red")


class Printer:
    """Prints lines with the name of their lane as prefix, in the lane's colour.

    Args:
        names: The lanes.
        color: Whether to use colours.
    """

    def __init__(self, names: Iterable[str], *, color: bool) -> None:
        listed = list(names)
        self._color = color
        self._width = max(map(len, listed), default=0)
        self._colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(listed)}

    def say(self, name: str, line: str) -> None:
        """Print *line* of lane *name*; an empty *name* stands for the supervisor itself."""
        prefix = f"{name or 'lanes':<{self._width}} |"
        try:
            styled = click.style(prefix, fg=self._colours.get(name), bold=not name or None)
            click.echo(f"{styled} {line}", color=self._color)
        except OSError:
            # A closed terminal or pipe must not stop the supervisor.
            return
