"""Marks that several test files share."""

from __future__ import annotations

import pytest

__all__ = ["ON_RABBITMQ"]

#: Of what is shown on Redis by each run of the tests.
ON_RABBITMQ = (pytest.mark.rabbitmq, pytest.mark.slow)
