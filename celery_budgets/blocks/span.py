"""The span of a block: a child of the current span, with the attributes of a task's span.

See also: :mod:`celery_budgets.telemetry.spans`, for tasks, whose spans Celery's instrumentation
creates.

Runs in the process that runs the call.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery_budgets.model import failures
from celery_budgets.telemetry import attributes as names
from celery_budgets.telemetry import spans

if TYPE_CHECKING:
    from celery_budgets.execution.call import Call
    from celery_budgets.model.outcomes import Outcome

__all__ = ["BlockSpan"]

logger = logging.getLogger(__name__)


class BlockSpan:
    """The span of one block; does nothing if the program has no tracer provider.

    Args:
        name: Name of the span.
        attributes: The attributes that are known before the block runs.
        wanted: ``False``: do not create a span.
    """

    def __init__(self, name: str, attributes: Mapping[str, Any], *, wanted: bool) -> None:
        self._activation: Any = None
        self._span: Any = None
        #: The trace id in hexadecimal; ``None`` without a recorded span.
        self.trace_id: str | None = None
        trace = sys.modules.get("opentelemetry.trace")
        if trace is None or not wanted:
            return
        try:
            span = trace.get_tracer("celery_budgets").start_span(name)
            if span.is_recording():
                shared = spans.shared_attributes(getattr(span, "resource", None))
                span.set_attributes({**shared, **attributes})
                self.trace_id = spans.span_ids(span)[0].hex()
            self._span = span
        except Exception:
            _failed()

    def start(self, slot: Mapping[str, int]) -> None:
        """Make it the current span, so that spans made in the block are its children.

        Args:
            slot: Open blocks including this one, and the limit.
        """
        if self._span is None:
            return
        try:
            trace = sys.modules["opentelemetry.trace"]
            self._span.set_attributes(slot)
            self._span.add_event(names.EVENT_SLOT, slot)
            self._span.add_event(names.EVENT_STARTED)
            activation = trace.use_span(
                self._span, record_exception=False, set_status_on_exception=False
            )
            activation.__enter__()
            self._activation = activation
        except Exception:
            _failed()

    def end(self, call: Call, outcome: Outcome, waited: float, error: BaseException | None) -> None:
        """Set the attributes for the end of the block, and end the span.

        Args:
            call: The call of the block, closed.
            outcome: How it ended.
            waited: Seconds that it waited for its slot.
            error: The exception that the block raised.
        """
        span = self._span
        if span is None:
            return
        try:
            self._leave()
            if span.is_recording():
                spans.end(span, call, outcome, waited, attributed=False)
                if error is not None:
                    self._fail(outcome.value, error)
            span.end()
        except Exception:
            _failed()

    def reject(self, outcome: Outcome, error: BaseException) -> None:
        """End the span of a block that did not get its slot."""
        if self._span is None:
            return
        try:
            self._leave()
            self._span.set_attribute(names.OUTCOME, outcome.value)
            self._span.add_event(names.EVENT_FAILED)
            self._fail(outcome.value, error)
            self._span.end()
        except Exception:
            _failed()

    def _leave(self) -> None:
        activation, self._activation = self._activation, None
        if activation is not None:
            activation.__exit__(None, None, None)

    def _fail(self, kind: str, error: BaseException) -> None:
        from opentelemetry.trace import Status, StatusCode

        known_by = type(error).__qualname__ if kind == "failed" else kind
        self._span.set_attribute(names.ERROR_TYPE, known_by)
        self._span.record_exception(error)
        self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))


def _failed() -> None:
    failures.count()
    logger.exception("budgets.telemetry_failed: a block has no whole span")
