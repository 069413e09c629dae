"""Marks that several test files share."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["ON_RABBITMQ", "first_of"]

#: Of what is shown on Redis by each run of the tests.
ON_RABBITMQ = (pytest.mark.rabbitmq, pytest.mark.slow)


def first_of(*values: Any, everyday: int = 1) -> list[Any]:
    """Return parameters of a test of which each run takes the first, and the slow run the others.

    Args:
        values: The parameters; a tuple where a test has several.
        everyday: How many of them each run takes.
    """
    ours = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        pytest.param(*each, marks=pytest.mark.slow if place >= everyday else ())
        for place, each in enumerate(ours)
    ]
