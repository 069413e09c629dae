"""The interface of a budgeted task, for packages that must not import ``BudgetedTask``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from celery_budgets.model.budget import Budget
    from celery_budgets.model.lanes import Lane

__all__ = ["Budgeted"]


class Budgeted(Protocol):
    """A budgeted task; undocumented attributes are those of celery.app.task.Task."""

    name: str
    app: Any
    request: Any
    request_stack: Any
    _get_app: Any

    @property
    def run(self) -> Any:
        """The body."""

    def home(self) -> Lane:
        """Return the lane of its calls that name none."""

    def budget_in(self, lane: Lane) -> Budget:
        """Return its budget in a lane."""
