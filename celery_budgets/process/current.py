"""Which call runs here: that of the task, and the blocks under a budget inside or outside of it.

See also: :mod:`celery_budgets.block`, which enters and leaves blocks.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from celery._state import get_current_worker_task

from celery_budgets.telemetry.names import HEADER_DUE_AT

if TYPE_CHECKING:
    from celery_budgets.process.call import Call

__all__ = ["call_of", "enter_block", "note_call", "running_block", "running_call"]

#: Attribute of a task's request that has its call.
_CALL = "budgets_call"
_block: ContextVar[Call | None] = ContextVar("celery_budgets_block", default=None)


def note_call(request: Any, call: Call) -> None:
    """Note that *call* is what runs under *request*, and so under which message."""
    call.due_at = getattr(request, HEADER_DUE_AT, None)
    setattr(request, _CALL, call)


def call_of(request: Any) -> Call | None:
    """Return the call of a task's request; ``None`` where it runs under no budget."""
    return cast("Call | None", getattr(request, _CALL, None))


def running_block() -> Call | None:
    """Return the call of the innermost block that is open here.

    A coroutine may have been started in a block that is closed by now.
    """
    call = _block.get()
    while call is not None and not call.open:
        call = call.parent
    return call if call is not None and call.is_block else None


def running_call() -> Call | None:
    """Return the innermost call that runs here: a block's, else the task's."""
    block = running_block()
    if block is not None:
        return block
    task = get_current_worker_task()
    call = call_of(task.request) if task is not None else None
    return call if call is not None and call.open else None


def enter_block(call: Call | None) -> None:
    """Make *call* the innermost block here; ``None`` or its parent to leave it."""
    _block.set(call)
