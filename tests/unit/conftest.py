"""Fixtures of tests that run in one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, signals

from celery_budgets import Budgets, Lane
from celery_budgets.blocks.process_slots import process_slots

#: Nobody answers there, and nobody is asked.
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def block_lanes() -> list[Lane]:
    """The lanes of ``budgets``; a file may have others."""
    return [Lane("lane", 2), Lane("one", 1), Lane("warned", 2, soft="warn")]


@pytest.fixture
def budgets(block_lanes: list[Lane]) -> Iterator[Budgets]:
    """An app whose blocks are tested; no slot outlives the test."""
    app = Celery("blocks", broker=NOWHERE, backend=NOWHERE, set_as_current=False)
    made = Budgets(app, lanes=block_lanes)
    yield made
    assert process_slots(app, made.settings.lanes).active() == 0


@pytest.fixture
def published() -> Iterator[list[Any]]:
    """The headers of all messages that are published in a test."""
    seen: list[Any] = []

    def note(headers: Any = None, **_: Any) -> None:
        seen.append(headers)

    signals.after_task_publish.connect(note)
    yield seen
    signals.after_task_publish.disconnect(note)
