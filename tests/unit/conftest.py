"""Fixtures of tests that run in one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import signals


@pytest.fixture
def published() -> Iterator[list[Any]]:
    """The headers of all messages that are published in a test."""
    seen: list[Any] = []

    def note(headers: Any = None, **_: Any) -> None:
        seen.append(headers)

    signals.after_task_publish.connect(note)
    yield seen
    signals.after_task_publish.disconnect(note)
