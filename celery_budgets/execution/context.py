"""The current call: that of the task, and the blocks under a budget inside or around it.

See also: :mod:`celery_budgets.blocks.block`, which enters and leaves blocks.

Runs in the process that runs the call.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from celery._state import _task_stack

from celery_budgets.model.headers import HEADER_DUE_AT

if TYPE_CHECKING:
    from celery_budgets.execution.call import Call

__all__ = [
    "call_of",
    "enter_block",
    "note_call",
    "running_block",
    "running_call",
    "running_task",
    "takes_its_place",
    "worker_request",
]

#: Attribute of a task's request that holds its call.
_CALL = "budgets_call"
_block: ContextVar[Call | None] = ContextVar("celery_budgets_block", default=None)


def note_call(request: Any, call: Call) -> None:
    """Store *call* on its *request*, and so with its message."""
    call.due_at = getattr(request, HEADER_DUE_AT, None)
    setattr(request, _CALL, call)


def call_of(request: Any) -> Call | None:
    """Return the call of a task's request; ``None`` if it runs under no budget."""
    return cast("Call | None", vars(request).get(_CALL))


def worker_request() -> Any | None:
    """Return the request of the task that the worker runs here; ``None`` outside a task.

    Differs from celery._state.get_current_worker_task, which inside an eager call
    (``other.apply()``) returns the eager task; this function does so only outside a worker.
    """
    eager = None
    seen: dict[int, int] = {}
    for task in reversed(_task_stack.stack):
        # A task that calls itself has several requests, and is on the stack as often.
        depth = seen[id(task)] = seen.get(id(task), 0) + 1
        requests = task.request_stack.stack
        request = requests[-depth] if depth <= len(requests) else task.request
        if request.called_directly:
            continue
        if not request.is_eager:
            return request
        eager = eager or request
    return eager


def takes_its_place(task_id: Any) -> bool:
    """Return whether a message of that id goes on for the call running here: by retry, replace."""
    request = worker_request()
    return request is not None and task_id is not None and request.id == task_id


def running_block() -> Call | None:
    """Return the call of the innermost open block.

    Closed blocks are skipped: a coroutine may outlive the block in which it was started.
    """
    call = _block.get()
    while call is not None and not call.open:
        call = call.parent
    return call if call is not None and call.is_block else None


def running_call() -> Call | None:
    """Return the innermost running call: a block's, else the task's."""
    return running_block() or running_task()


def running_task() -> Call | None:
    """Return the call of the task whose body runs here, ignoring blocks."""
    request = worker_request()
    call = call_of(request) if request is not None else None
    return call if call is not None and call.open else None


def enter_block(call: Call | None) -> None:
    """Make *call* the innermost block; pass ``None`` or its parent to leave it."""
    _block.set(call)
