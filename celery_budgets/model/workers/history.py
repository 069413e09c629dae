"""What the history of a lane consists of. Values only."""

from __future__ import annotations

from celery_budgets.model.outcomes import Outcome

__all__ = ["COUNTED", "HOUR_STEPS", "LEVELS", "STEPS", "STEP_SECONDS"]

#: Length of a step, seconds; and how many are kept: two hours.
STEP_SECONDS = 5
STEPS = 2 * 3600 // STEP_SECONDS
HOUR_STEPS = 3600 // STEP_SECONDS
#: What is added up in a step: calls by outcome, and the seconds that they took.
COUNTED = (*(outcome.value for outcome in Outcome), "seconds")
#: Of what the highest in a step is kept. ``backlog`` is one more than it is: 0 is unknown.
LEVELS = ("active", "limit", "backlog", "rss", "paused")
