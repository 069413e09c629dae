"""An app whose workers answer what the page asks, without any."""

from __future__ import annotations

import pytest
from celery import Celery

from celery_budgets import Budgets, Lane
from tests.support.answers import WorkersOfPage


@pytest.fixture
def app() -> Celery:
    made = Celery("page", set_as_current=False, broker="memory://")
    Budgets(made, lanes=[Lane("quick", 2)])
    return made


@pytest.fixture
def workers() -> WorkersOfPage:
    return WorkersOfPage()
