"""One app in two forms, by ``TWIN``: of plain Celery tasks, or of budgeted ones in lanes.

Everything below the base class is the same, so whatever differs is this package's doing.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task, signals
from celery.exceptions import Ignore, Reject

from celery_budgets import BudgetedTask, Budgets

BUDGETED = os.environ.get("TWIN") == "budgeted"

app = Celery("twin")
app.conf.update(
    # So that no test waits for a poll of its own: results come by publish and subscribe.
    result_extended=True,
    task_track_started=True,
)
if BUDGETED:
    Budgets(app)


class Told(BudgetedTask if BUDGETED else Task):
    """A task whose hooks are written down under ``told:ID``."""

    abstract = True
    lane = "file_read"

    def before_start(self, task_id, args, kwargs):
        tell(task_id, "before_start")

    def on_success(self, retval, task_id, args, kwargs):
        tell(task_id, "on_success", retval)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        tell(task_id, "on_failure", type(exc).__name__)

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        tell(task_id, "on_retry", type(exc).__name__)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        tell(task_id, "after_return", status)


def redis() -> Any:
    return app.backend.client


def tell(task_id: str, *words: Any) -> None:
    redis().rpush(f"told:{task_id}", " ".join(map(str, words)))


def told(task_id: str) -> list[str]:
    return [line.decode() for line in redis().lrange(f"told:{task_id}", 0, -1)]


@signals.task_prerun.connect
@signals.task_postrun.connect
@signals.task_success.connect
@signals.task_failure.connect
@signals.task_retry.connect
@signals.task_revoked.connect
def on_signal(signal=None, task_id=None, sender=None, request=None, **_: Any) -> None:
    task_id = task_id or (request.id if request is not None else sender.request.id)
    redis().rpush(f"signals:{task_id}", signal.name)


def signalled(task_id: str) -> list[str]:
    return [line.decode() for line in redis().lrange(f"signals:{task_id}", 0, -1)]


task = {"base": Told, "shared": False}


@app.task(**task, name="add")
def add(x: Any, y: Any) -> Any:
    return x + y


@app.task(**task, name="total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(**task, name="nothing", ignore_result=True)
def nothing() -> int:
    return 5


@app.task(**task, name="nap")
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


class Odd(Exception):
    """An error of the app's own, with several arguments."""


@app.task(**task, name="fail", throws=(LookupError,))
def fail(kind: str = "ValueError", *args: Any) -> None:
    raise {"ValueError": ValueError, "LookupError": LookupError, "Odd": Odd}[kind](*args)


@app.task(**task, name="end", bind=True)
def end(self: Any, how: str) -> None:
    raise {"ignore": Ignore(), "reject": Reject("no", requeue=False), "exit": SystemExit(3)}[how]


@app.task(**task, name="again", bind=True, max_retries=3, default_retry_delay=0)
def again(self: Any, times: int, cause: str = "") -> int:
    if self.request.retries < times:
        raise self.retry(exc=LookupError(cause) if cause else None, countdown=0)
    return self.request.retries


@app.task(**task, name="automatic", bind=True, autoretry_for=(LookupError,), max_retries=2,
          default_retry_delay=0)  # fmt: skip
def automatic(self: Any, times: int) -> int:
    if self.request.retries < times:
        raise LookupError(f"attempt {self.request.retries}")
    return self.request.retries


@app.task(**task, name="become", bind=True)
def become(self: Any, x: int) -> None:
    raise self.replace(add.s(x, 10))


@app.task(**task, name="progress", bind=True)
def progress(self: Any) -> dict[str, Any]:
    self.update_state(state="PROGRESS", meta={"done": 3, "of": 7})
    meta = self.backend.get_task_meta(self.request.id, cache=False)
    return {"state": meta["status"], "meta": meta["result"]}


#: Of a request: what a task may look at, and what does not depend on when and where it runs.
FIELDS = (
    "id", "args", "kwargs", "task", "retries", "is_eager", "called_directly", "shadow", "eta",
    "expires", "correlation_id", "parent_id", "root_id", "group", "chain", "chord", "callbacks",
    "errbacks", "ignore_result", "replaced_task_nesting", "stamps", "stamped_headers",
    "timelimit", "priority",
)  # fmt: skip


@app.task(**task, name="who", bind=True)
def who(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    request = self.request
    found = {name: getattr(request, name, "absent") for name in FIELDS}
    # What this package adds to the headers has its name on it.
    found["headers"] = {
        name: value
        for name, value in (request.headers or {}).items()
        if not name.startswith("budgets_")
    }
    found["reply_to"] = bool(request.reply_to)
    found["hostname"] = bool(request.hostname)
    found["redelivered"] = (request.delivery_info or {}).get("redelivered")
    return found


@app.task(**task, name="callback")
def callback(*args: Any) -> None:
    key, *words = reversed(args)
    redis().rpush(f"called:{key}", repr(words))


@app.task(**task, name="errback")
def errback(request: Any, exc: Any, traceback: Any, key: str) -> None:
    known = "Traceback" in str(traceback) or traceback is None
    redis().rpush(f"called:{key}", f"{request.task} {type(exc).__name__} {exc} {known}")


def called(key: str) -> list[str]:
    return [line.decode() for line in redis().lrange(f"called:{key}", 0, -1)]
