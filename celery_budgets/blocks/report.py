"""Reports one block: its span, its log record, its entry in the statistics.

A failure of that is logged, and never fails the block.

Runs in the process that runs the call.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery.utils.nodenames import anon_nodename

from celery_budgets.blocks.ledger import ledger_of
from celery_budgets.blocks.span import BlockSpan
from celery_budgets.config.settings import settings_of
from celery_budgets.errors import RejectedByBudget
from celery_budgets.execution.context import worker_request
from celery_budgets.execution.flight.recorder import ENVIRONMENT
from celery_budgets.execution.limits.async_exception import shielded
from celery_budgets.execution.memory import rss as memory
from celery_budgets.model import failures
from celery_budgets.model.lanes import Lane
from celery_budgets.telemetry import attributes as names

if TYPE_CHECKING:
    from celery_budgets.blocks.limited_slots import LimitedSlots
    from celery_budgets.blocks.process_slots import ProcessSlots
    from celery_budgets.execution.call import Call
    from celery_budgets.model.outcomes import Outcome

__all__ = ["BlockReport", "rss_if_known"]

logger = logging.getLogger(__name__)


def rss_if_known() -> int:
    """Return the RSS of this process, bytes; 0 if it cannot be read."""
    try:
        return memory.rss()
    except Exception:
        failures.count()
        logger.exception("budgets.telemetry_failed: a block's memory is not measured")
        return 0


class BlockReport:
    """Reports the start and the end of one block.

    Args:
        app: The Celery app.
        lane: The block's lane.
        task: Name of the code, like a task's name.
        task_id: Id of the call.
        scope: Path of its request scope; ``None`` outside of one.
        input_size: Size of its input, bytes; ``None`` if unknown.
        asked_at: Monotonic instant at which a slot was requested.
    """

    def __init__(
        self,
        app: Any,
        lane: Lane,
        task: str,
        task_id: str,
        scope: str | None,
        input_size: int | None,
        asked_at: float,
    ) -> None:
        self._app = app
        self._lane = lane
        self._task = task
        self.task_id = task_id
        self._scope = scope
        self._input_size = input_size
        self._asked_at = asked_at
        self._waited = 0.0
        self._span: BlockSpan | None = None
        around = worker_request()
        self._ledger = ledger_of(app)
        if self._ledger.worker is None and ENVIRONMENT not in os.environ:
            json_lines = settings_of(app).json_logs
            with shielded():
                self._ledger.start(json_lines=json_lines)
        self._worker = (around.hostname if around is not None else None) or anon_nodename()

    @shielded()
    def started(self, call: Call, slots: ProcessSlots | LimitedSlots) -> None:
        """Report that the block has its slot, and its limits."""
        self._waited = call.started_mono - self._asked_at
        limits = slots.names
        span = self._span = self._new_span(
            {
                names.SOFT_LIMIT: call.soft_at - call.started_mono,
                names.HARD_LIMIT: call.hard_at - call.started_mono,
                **({names.LIMITS: limits, names.LIMIT_WAIT: slots.waited} if limits else {}),
            }
        )
        span.start(
            {
                names.LANE_ACTIVE: slots.active(call.lane),
                names.LANE_LIMIT: slots.limits[call.lane],
                names.GLOBAL_ACTIVE: slots.active(),
                names.GLOBAL_LIMIT: slots.limit,
            }
        )

    @shielded()
    def ended(self, call: Call, outcome: Outcome, error: BaseException | None) -> None:
        """Report the end and the usage of the block; closes *call*."""
        call.outcome = outcome
        call.close(monotonic(), rss_if_known())
        if self._span is not None:
            self._span.end(call, outcome, self._waited, error)
        self._count(outcome, call, self._span.trace_id if self._span is not None else None)

    @shielded()
    def given_up(self, outcome: Outcome, error: BaseException) -> None:
        """Report that the block was not entered."""
        self._waited = monotonic() - self._asked_at
        span = self._span or self._new_span({})
        span.reject(outcome, error)
        reason = error.reason if isinstance(error, RejectedByBudget) else None
        self._count(outcome, None, span.trace_id, reason)

    def _new_span(self, limits: Mapping[str, Any]) -> BlockSpan:
        settings = settings_of(self._app)
        name = settings.span_name or f"run/{self._task}"
        attributes: dict[str, Any] = {
            names.TASK_ID: self.task_id,
            names.TASK_NAME: self._task,
            names.LANE: self._lane.name,
            names.WORKER: self._worker,
            **limits,
        }
        if self._scope is not None:
            attributes[names.SCOPE] = self._scope
        if self._input_size is not None:
            attributes[names.INPUT_SIZE] = self._input_size
        return BlockSpan(
            name.format(lane=self._lane.name, task=self._task), attributes, wanted=settings.tracing
        )

    def _count(
        self,
        outcome: Outcome,
        call: Call | None,
        trace_id: str | None,
        reason: str | None = None,
    ) -> None:
        self._ledger.count(
            {
                "outcome": outcome.value,
                "lane": self._lane.name,
                "task": self._task,
                "task_id": self.task_id,
                "worker": self._worker,
                "scope": self._scope,
                "twin": False,
                "seconds": call.wall_seconds if call is not None else None,
                "wait_seconds": self._waited,
                "soft_limit_exceeded": call is not None and call.soft_exceeded,
                "rss_before_bytes": call.rss_before if call is not None else None,
                "rss_peak_bytes": call.rss_peak if call is not None else None,
                "trace_id": trace_id,
            },
            reason,
        )
