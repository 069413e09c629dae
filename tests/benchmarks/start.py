"""What a program waits for: the import, and the time from ``celery worker`` to ready.

Of programs that make an app with one task, with and without budgets. Python keeps compiled
modules here, as it does for an installed package; CPU time, because it is what repeats.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.benchmarks.ground import Ground, Workplace
from tests.benchmarks.measure import Figure, Target, in_turn
from tests.support.places import ROOT

_PLAIN = """
from celery import Celery
app = Celery("program")
@app.task
def task(): ...
"""
_BUDGETED = """
from celery import Celery
from celery_budgets import BudgetedTask, Budgets
app = Celery("program")
budgets = Budgets(app)
@app.task(base=BudgetedTask)
def task(): ...
"""
#: Everything of Celery that the package needs, so that the rest is its own.
_CELERY = "from celery import Celery, Task, signals; from kombu import Queue"
_AGAINST = {"budgeted": "plain"}
_TARGETS = {"budgeted": Target(1.1, to="plain")}


def run(ground: Ground) -> list[Figure]:
    compiled = {"PYTHONPYCACHEPREFIX": str(ground.directory / "compiled"), "PYTHONPATH": str(ROOT)}
    environment = os.environ | compiled
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    programs = {
        "imports": {"plain": _CELERY, "budgeted": f"{_CELERY}; import celery_budgets"},
        "programs": {"plain": _PLAIN, "budgeted": _BUDGETED},
    }
    figures = []
    rounds, warm = ground.amount(15, 1), not ground.quick
    for what, sources in programs.items():
        ways = {way: partial(_cpu, text, environment) for way, text in sources.items()}
        figures.append(_figure(f"{what}: CPU", "ms", ways, rounds, warm=warm))
    ready: dict[str, Workplace] = {
        way: ground.workplace(WAY=way, PYTHONDONTWRITEBYTECODE="", **compiled)
        for way in ("plain", "budgeted")
    }
    workers = {way: partial(_seconds_to_ready, place) for way, place in ready.items()}
    rounds = ground.amount(11, 1)
    figures.append(_figure("celery worker to ready", "s", workers, rounds, warm=warm))
    return figures


def _figure(
    name: str, unit: str, ways: dict[str, Callable[[], float]], rounds: int, *, warm: bool
) -> Figure:
    for measure in ways.values() if warm else ():
        measure()  # compiles, and fills the disk's cache
    return Figure(name, unit, in_turn(ways, rounds), _AGAINST, _TARGETS)


def _cpu(program: str, environment: dict[str, str]) -> float:
    """Return the CPU that *program* takes from its start to its end, milliseconds."""
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=Path("/"))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return (usage.ru_utime + usage.ru_stime) * 1000


def _seconds_to_ready(place: Workplace) -> float:
    started = time.perf_counter()
    worker = place.worker("-Q", "lane", "-c", "2")
    seconds = time.perf_counter() - started
    place.running.remove(worker)
    worker.kill()
    return seconds
