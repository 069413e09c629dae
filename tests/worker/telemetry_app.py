"""Calls that end in every way, with spans written to a file per process.

:func:`main` sends them, waits for all, and prints the deliveries that must have come of it, by
outcome, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

from celery import VERSION, Celery
from celery.exceptions import Reject
from celery.result import AsyncResult
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from celery_budgets import BudgetedTask, Budgets, Lane

SOFT = 0.5
FOLDER = Path(os.environ.get("SPANS", "."))


class FileExporter(SpanExporter):
    """Appends each span as a line of JSON to the file of its process."""

    def export(self, spans):
        trouble = os.environ.get("EXPORTER")
        if trouble == "slow":
            time.sleep(5)
        if trouble == "raising":
            raise RuntimeError("the exporter is broken")
        with (FOLDER / f"spans-{os.getpid()}.jsonl").open("a") as lines:
            for span in spans:
                lines.write(span.to_json(indent=None) + "\n")
        return SpanExportResult.SUCCESS


provider = TracerProvider(
    resource=Resource.create(
        {"service.name": "tools", "service.version": "7", "deployment.environment.name": "test"}
    )
)
provider.add_span_processor(BatchSpanProcessor(FileExporter(), schedule_delay_millis=100))
if "NO_PROVIDER" not in os.environ:
    trace.set_tracer_provider(provider)

app = Celery("telemetry")
app.conf.update(
    worker_max_tasks_per_child=int(os.environ.get("MAX_TASKS", "0")) or None,
    worker_prefetch_multiplier=1,
)
budgets = Budgets(app, lanes=[Lane("lane", concurrency=4, timeout=SOFT)])


@app.task(base=BudgetedTask, bind=True)
def succeeded(self, *secrets, **more_secrets):
    tracer = trace.get_tracer("inside")
    with tracer.start_as_current_span("inside"):
        pass


@app.task(base=BudgetedTask)
def failed(*secrets, **more_secrets):
    raise ValueError("on purpose")


@app.task(base=BudgetedTask, bind=True, default_retry_delay=0)
def retried(self):
    if not self.request.retries:
        raise self.retry(countdown=0)


@app.task(base=BudgetedTask)
def soft_time_limit():
    time.sleep(60)


@app.task(base=BudgetedTask)
def hard_time_limit():
    with trace.get_tracer("inside").start_as_current_span("inside"):
        pass
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


@app.task(base=BudgetedTask)
def hard_in_c():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000_000)


@app.task(base=BudgetedTask)
def worker_lost():
    provider.force_flush()  # what the calls before it have batched would be lost with it
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(base=BudgetedTask)
def memory_limit():
    raise MemoryError


@app.task(base=BudgetedTask)
def rejected():
    raise Reject("no", requeue=False)


@app.task(base=BudgetedTask, bind=True, timeout=60)
def endless(self):
    provider.force_flush()  # as above: it will be killed
    self.update_state(state="STARTED")
    time.sleep(60)


ENDS = {
    "succeeded": {"succeeded": 1},
    "failed": {"failed": 1},
    "retried": {"retried": 1, "succeeded": 1},
    "soft_time_limit": {"soft_time_limit": 1},
    "hard_time_limit": {"hard_time_limit": 1},
    "hard_in_c": {"hard_time_limit": 1},
    "worker_lost": {"worker_lost": 1},
    "memory_limit": {"memory_limit": 1},
    "rejected": {"rejected": 1},
    "revoked_waiting": {"revoked": 1},
    "revoked_running": {"revoked": 1},
}


def wait_for(results, seconds=120):
    until = time.monotonic() + seconds
    while not all(result.ready() for result in results):
        if time.monotonic() > until:
            raise SystemExit(f"not all ended: {Counter(result.state for result in results)}")
        time.sleep(0.05)


def send(kind, count):
    """Send *count* calls of *kind*, and return their results."""
    if kind == "revoked_waiting":
        ids = [f"revoked-{i}-{os.getpid()}" for i in range(count)]
        app.control.revoke(ids, reply=True)
        return [succeeded.apply_async(task_id=task_id) for task_id in ids]
    if kind == "revoked_running":
        return [revoke_running() for _ in range(count)]
    return [globals()[kind].delay() for _ in range(count)]


def revoke_running():
    result = endless.delay()
    until = time.monotonic() + 30
    while AsyncResult(result.id).state != "STARTED" and time.monotonic() < until:
        time.sleep(0.02)
    result.revoke(terminate=True)
    return result


def main(arguments):
    wanted = {kind: int(count) for kind, _, count in (a.partition("=") for a in arguments)}
    results = {kind: send(kind, count) for kind, count in wanted.items()}
    if VERSION < (5, 7):
        results.pop("rejected", None)  # that is no state
    wait_for([result for sent in results.values() for result in sent])
    expected = Counter()
    for kind, count in wanted.items():
        for outcome, ends in ENDS[kind].items():
            expected[outcome] += ends * count
    provider.force_flush()
    print(json.dumps(expected))
