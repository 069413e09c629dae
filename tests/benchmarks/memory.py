"""Bytes that a call in hand takes in the worker main process, beyond Celery's own Request.

Requests are built as the worker builds them (celery.worker.strategy), handed to a pool that
does nothing, and accepted: so all that is kept of a running call is counted. What 1,000 of them
take is subtracted from what 10,000 take, so that nothing that is there once is counted.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
import uuid
from functools import partial
from types import SimpleNamespace
from typing import Any

from celery import Celery, Task
from celery.worker.request import Request, create_request_cls

from celery_budgets import BudgetedTask, Budgets
from celery_budgets.worker.request import BudgetedRequest
from celery_budgets.worker.runtime import WorkerRuntime, keep
from tests.benchmarks.ground import Ground
from tests.benchmarks.measure import Figure, Target, in_turn

_BODY = b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


class Message:
    """A message as kombu hands it over, with everything in it its own."""

    content_type, content_encoding, body = "application/json", "utf-8", _BODY

    def __init__(self, task: str) -> None:
        task_id = str(uuid.uuid4())
        self.payload: Any = ([], {}, {})
        self.delivery_info = {"routing_key": "tool_call", "exchange": ""}
        self.properties = {"reply_to": "reply", "correlation_id": task_id, "priority": 0}
        self.headers = {
            "id": task_id, "task": task, "lang": "py", "timelimit": [None, None],
            "root_id": task_id, "parent_id": None, "argsrepr": "()", "kwargsrepr": "{}",
            "origin": "benchmark", "eta": None, "expires": None, "retries": 0,
            "budgets_due_at": time.time(),
        }  # fmt: skip


class Pool:
    """Takes calls and runs none."""

    def apply_async(self, *args: Any, **kwargs: Any) -> None:
        return None


def run(ground: Ground) -> list[Figure]:
    few, many = ground.amount(1_000, 100), ground.amount(10_000, 300)
    app = Celery("memory", broker="redis://localhost/0", backend="disabled", set_as_current=False)
    Budgets(app)
    keep(app, _runtime(app))
    plain = app.task(name="plain", acks_late=True, base=Task)(_nothing)
    budgeted = app.task(name="budgeted", acks_late=True, base=BudgetedTask)(_nothing)
    app.finalize()
    kinds = {"Request": (plain, Request), "BudgetedRequest": (budgeted, BudgetedRequest)}
    ways = {name: partial(_bytes_per_call, app, *kind, few, many) for name, kind in kinds.items()}
    taken = in_turn(ways, ground.amount(5, 1))
    pairs = zip(taken["BudgetedRequest"], taken["Request"], strict=True)
    return [
        Figure("memory per call in hand", "bytes", taken, {"BudgetedRequest": "Request"}),
        Figure(
            "memory per call in hand of the budget", "bytes",
            {"BudgetedRequest - Request": [mine - theirs for mine, theirs in pairs]},
            targets={"BudgetedRequest - Request": Target(500)},
        ),
    ]  # fmt: skip


def _nothing(*_: Any) -> None:
    pass


def _runtime(app: Celery) -> WorkerRuntime:
    """Return that of a worker whose calls run in itself, with no consumer behind it."""
    controller = SimpleNamespace(
        pool_cls="celery.concurrency.solo:TaskPool", concurrency=1, autoscaler=None, semaphore=None
    )
    consumer = SimpleNamespace(
        app=app, controller=controller, hostname="host", pool=Pool(), add_task_queue=_nothing,
        call_soon=_nothing,
    )  # fmt: skip
    return WorkerRuntime(consumer, wake=_nothing)


def _bytes_per_call(app: Celery, task: Any, base: type, few: int, many: int) -> float:
    take = partial(_in_hand, app, task, base)
    take(few)  # what is made once, at the first call
    return (take(many) - take(few)) / (many - few)


def _in_hand(app: Celery, task: Any, base: type, count: int) -> int:
    """Return the bytes that *count* running calls take."""
    pool = Pool()
    kind = create_request_cls(base, task, pool, "host", None, app=app)
    gc.collect()
    tracemalloc.start()
    requests = []
    for _ in range(count):
        message = Message(task.name)
        request = kind(
            message, app=app, hostname="host", task=task, body=message.body,
            headers=message.headers, decoded=False, on_ack=_nothing, connection_errors=(),
        )  # fmt: skip
        request.execute_using_pool(pool)
        request.on_accepted(1, time.monotonic())
        requests.append(request)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for request in requests:
        request.on_success((0, "done", 0.1))
    return taken
