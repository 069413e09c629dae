"""A program with its own tracer provider: each process appends its spans to a file of its own.

``SPANS`` names the folder; without it the program has no provider at all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery, signals

from celery_budgets import BudgetedTask, Budgets, Limit

app = Celery("spans")
if "SPAN_NAME_NONE" in os.environ:
    app.conf.budgets_span_name = None
if "POOL_START_METHOD" in os.environ:
    app.conf.worker_pool_start_method = os.environ["POOL_START_METHOD"]
LIMITED = "LIMITED" in os.environ
budgets = Budgets(
    app, limits=[Limit("tenant", 1, key="tenant"), Limit("api", 5)] if LIMITED else []
)
task = {"base": BudgetedTask, "shared": False}


def set_provider() -> None:
    """Set the program's provider, as its author would."""
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class FileExporter(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            with Path(os.environ["SPANS"], f"{os.getpid()}.jsonl").open("a") as file:
                for span in spans:
                    file.write(json.dumps(json.loads(span.to_json())) + "\n")
            return SpanExportResult.SUCCESS

    resource = Resource.create(
        {
            "service.name": "tools",
            "service.version": "1.2.3",
            "deployment.environment.name": "test",
        }
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
    trace.set_tracer_provider(provider)


if "SPANS" in os.environ:
    if os.environ.get("PROVIDER_SET") == "in each pool process":
        signals.worker_process_init.connect(lambda **_: set_provider(), weak=False)
    else:
        set_provider()
if "INSTRUMENT" in os.environ:
    from opentelemetry.instrumentation.celery import CeleryInstrumentor

    CeleryInstrumentor().instrument()


@app.task(**task, name="fs_read")
def fs_read(size: int) -> int:
    """Take *size* bytes of memory, keep them, and make a span of its own."""
    if "opentelemetry" in sys.modules:
        from opentelemetry import trace

        with trace.get_tracer("tool").start_as_current_span("inside"):
            _kept.append(b"x" * size)
    return size


_kept: list[bytes] = []


@app.task(**task, name="critics_run", bind=True, max_retries=1, default_retry_delay=0)
def critics_run(self: Any, how: str) -> None:
    if how == "retry":
        raise self.retry(countdown=0)
    if how == "memory":
        raise MemoryError
    raise ValueError(how)


@app.task(name="plain", shared=False)
def plain() -> int:
    return 1


@app.task(**task, name="modules")
def modules() -> list[str]:
    """Return what of OpenTelemetry this process has imported."""
    return sorted(name for name in sys.modules if name.startswith("opentelemetry"))


if LIMITED:

    @app.task(**task, name="tool_limited", lane="tool_call", limits=["api", "tenant"])
    def limited(tenant: str) -> None:
        time.sleep(2.0)  # the second call, sent at once, may take a while to arrive


if __name__ == "__main__":
    # The producer: in a process of its own, so that no test changes the provider of another.
    sent = [
        fs_read.apply_async((20_000_000,), shadow="shadowed"),
        critics_run.delay("wrong"),
        critics_run.delay("retry"),
        critics_run.delay("memory"),
        plain.delay(),
        app.send_task("fs_read", (1,)),
    ]
    if LIMITED:
        sent += [limited.delay("a"), limited.delay("a")]
    for result in sent:
        result.get(timeout=30, propagate=False)
    json.dump([result.id for result in sent], sys.stdout)
