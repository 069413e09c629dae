"""What a block costs: ``budgets.call`` around a function that does nothing, in a plain process.

Five ways: ``with``; the decorator; ``async with``; a block inside of another; and the decorator
with everything on (spans, and records of the log as JSON lines that go nowhere). Each in a process
of its own, after a few hundred calls that are not measured. There is no broker.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import Celery

from celery_budgets import Budgets, Lane
from celery_budgets.execution.memory import rss as memory
from tests.benchmarks.ground import Ground
from tests.benchmarks.measure import Figure, Target, in_turn
from tests.support.places import ROOT

WAYS = ("with", "decorator", "async with", "nested", "everything")
#: Calls that a process makes before any is measured.
WARM = 500


def run(ground: Ground) -> list[Figure]:
    calls, rounds = ground.amount(10_000, 200), ground.amount(9, 1)
    measured = in_turn({way: partial(_in_process, way, calls) for way in WAYS}, rounds)
    took = {way: [one[0] for one in ones] for way, ones in measured.items()}
    cpu = {way: [one[1] for one in ones] for way, ones in measured.items()}
    grown = {way: [one[2] for one in ones] for way, ones in measured.items()}
    return [
        Figure("time per block", "µs", took, targets=dict.fromkeys(WAYS, Target(1000))),
        Figure("CPU per block", "µs", cpu),
        Figure(
            f"RSS gained in {calls:,} blocks", "KiB", grown,
            targets=dict.fromkeys(WAYS, Target(4096)),
        ),
    ]  # fmt: skip


def _in_process(way: str, calls: int) -> tuple[float, float, float]:
    """Return µs and µs of CPU per block, and the KiB that its process has grown by."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.wrapper", way, str(calls)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    took, cpu, grown = map(float, done.stdout.split())
    return took, cpu, grown


def _measure(way: str, calls: int) -> tuple[float, float, float]:
    call_many = _way(way)
    call_many(WARM)
    gc.collect()
    rss, wall, cpu = memory.rss(), time.perf_counter(), time.process_time()
    call_many(calls)
    took, used = time.perf_counter() - wall, time.process_time() - cpu
    gc.collect()
    return took / calls * 1e6, used / calls * 1e6, max(0, memory.rss() - rss) / 1024


def _way(way: str) -> Callable[[int], None]:
    app = Celery("wrapper", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.budgets_tracing = way == "everything"
    budgets = Budgets(app, lanes=[Lane("lane", 1), Lane("inner", 1)])
    if way == "everything":
        _tell_everything()
    if way == "async with":
        return lambda calls: asyncio.run(_coroutines(budgets, calls))
    if way == "with":
        return lambda calls: _blocks(budgets, calls)
    function = budgets.call("lane", tool_name="nothing")(_nothing)
    if way != "nested":
        return lambda calls: _calls(function, calls)

    def nested(calls: int) -> None:
        inner = budgets.call("inner", tool_name="nothing")(_nothing)
        with budgets.call("lane"):
            _calls(inner, calls)

    return nested


def _nothing() -> None:
    """Do nothing."""


def _calls(function: Callable[[], Any], calls: int) -> None:
    for _ in range(calls):
        function()


def _blocks(budgets: Budgets, calls: int) -> None:
    for _ in range(calls):
        with budgets.call("lane", tool_name="nothing"):
            _nothing()


async def _coroutines(budgets: Budgets, calls: int) -> None:
    for _ in range(calls):
        async with budgets.call("lane", tool_name="nothing"):
            _nothing()


def _tell_everything() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    from celery_budgets.telemetry.logs import print_json_lines

    trace.set_tracer_provider(TracerProvider())
    print_json_lines()
    (handler,) = logging.getLogger("celery_budgets").handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  open to the end


if __name__ == "__main__":
    print(*_measure(sys.argv[1], int(sys.argv[2])))
