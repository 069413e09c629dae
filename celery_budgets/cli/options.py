"""Options shared by several commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["seconds_option"]

MOST_SECONDS = 3600.0


def _above_zero(_ctx: click.Context, _parameter: click.Parameter, value: float) -> float:
    # click.FloatRange lets nan through.
    if not 0 < value <= MOST_SECONDS:
        raise click.BadParameter(f"{value:g} must be above 0 and at most {MOST_SECONDS:g} seconds")
    return value


def seconds_option(name: str, default: float, text: str) -> Callable[[Any], Any]:
    """Return a decorator that adds the option *name*, a number of seconds above 0."""
    return click.option(
        name, type=float, default=default, show_default=True, callback=_above_zero, help=text
    )
