"""State machines of hypothesis against the scripts in Redis, which are shown to find faults."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from celery_budgets.shared_state import limit_store

#: The clock of the scripts is a number that the test sets.
CLOCK = "local now = tonumber(redis.call('GET', 'clock'))\n"
SETTINGS = settings(
    max_examples=60, stateful_step_count=40, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def plant(monkeypatch: pytest.MonkeyPatch, script: str, right: str, wrong: str) -> None:
    """Put *wrong* in place of *right* in one of the scripts."""
    text = getattr(limit_store, script)
    assert right in text
    monkeypatch.setattr(limit_store, script, text.replace(right, wrong))


def expect_a_fault(machine: type[RuleBasedStateMachine] | Any) -> None:
    """Run *machine* until it finds a fault; it ends with the first."""
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            machine, settings=settings(SETTINGS, phases=[Phase.generate], max_examples=1000)
        )
