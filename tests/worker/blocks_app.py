"""Tasks with blocks of other lanes inside, whose spans go to files: ``SPANS`` names the folder."""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celery_budgets import BudgetedTask, Budgets, Lane, RejectedByBudget

app = Celery("blocks")
budgets = Budgets(
    app,
    lanes=[
        Lane("lane", 2, timeout=1.0),
        Lane("patient", 2, timeout=60.0),
        Lane("critic", 1, timeout=600.0),
    ],
)
task = {"base": BudgetedTask, "bind": True, "lane": "patient", "shared": False}


def set_provider():
    """Set the program's provider, as its author would."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class FileExporter(SpanExporter):
        def export(self, spans):
            with Path(os.environ["SPANS"], f"{os.getpid()}.jsonl").open("a") as file:
                for span in spans:
                    file.write(json.dumps(json.loads(span.to_json())) + "\n")
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
    trace.set_tracer_provider(provider)


if "SPANS" in os.environ:
    set_provider()


def burn(seconds=20.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(100))


@app.task(**task)
def inside(self, **options):
    """Return what the task and the block have left, and whose record is in flight."""
    with budgets.call(
        "critic", task_id=f"{self.request.id}-in", input_size=1024, **options
    ) as call:
        return [
            [self.budget.remaining(), self.budget.hard_at - time.monotonic()],
            [call.remaining(), call.hard_at - time.monotonic()],
        ]


@app.task(**task)
def inside_async(self):
    async def main():
        async with budgets.call("critic") as call:
            await asyncio.sleep(0)
            return call.remaining()

    return self.budget.remaining(), asyncio.run(main())


@app.task(**task)
def block_too_long(self):
    """The block's limit is raised in the task, which goes on."""
    try:
        with budgets.call("critic", timeout=0.3):
            burn()
    except SoftTimeLimitExceeded:
        pass
    try:
        with budgets.call("critic", timeout=0.2, soft="warn"):
            burn()
    except TimeLimitExceeded:
        burn(0.3)
        return "went on"


@app.task(**(task | {"lane": "lane"}))
def task_too_long(self, how="burn"):
    """The task's limit is raised in the block; both end by it, once."""
    raised = 0
    try:
        with budgets.call("critic"):
            burn() if how == "burn" else asyncio.run(asyncio.sleep(20))
    except SoftTimeLimitExceeded:
        raised += 1
        with suppress(SoftTimeLimitExceeded):
            burn(0.3)
            return f"raised {raised} time"
    return "raised twice"


@app.task(**(task | {"lane": "lane"}))
def stubborn(self):
    """Past the hard limit of the task, in a block."""
    with budgets.call("critic"):
        while True:
            with suppress(Exception):
                burn()


@app.task(**task)
def full(self):
    """Both slots that there are of the lane are its own."""
    try:
        with budgets.call("critic"), budgets.call("critic", wait=None):
            return "ran"
    except RejectedByBudget as exc:
        return exc.reason


@app.task(**task)
def failing_inside(self):
    with budgets.call("critic"):
        raise ValueError("wrong")


@app.task(**task)
def local(self):
    """Return the blocks that this process has counted, with one of this call."""
    with budgets.call("critic"):
        pass
    return dict(budgets.local_statistics().lanes["critic"].outcomes)
