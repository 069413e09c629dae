"""Celery's fixtures for pytest, with tasks that have budgets: in a run of pytest of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

GUIDE = (ROOT / "docs/guides/testing.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL))

HEAD = """
import time
import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from tools import app, budgets, review
"""
EACH_ITS_OWN = """
@pytest.mark.parametrize("number", range(2))
def test_one_worker_after_the_other(celery_worker, number):
    with pytest.raises(SoftTimeLimitExceeded):
        review.delay(5).get(timeout=10)
    assert review.delay(0).get(timeout=10) == "reviewed"
    assert budgets.concurrency().lanes["critic"].active == 0
"""
IN_THREADS = """
@pytest.fixture(scope="session")
def celery_worker_pool():
    return "threads"

@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {"perform_ping_check": False, "concurrency": 3, "queues": ["critic"]}

def test_that_gives_up_threads(celery_worker):
    results = [review.delay(3, stubborn=True) for _ in range(6)]
    for result in results:
        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=10)

def test_that_comes_later(celery_worker):
    assert review.delay(0).get(timeout=10) == "reviewed"

def test_that_fails():
    assert not "to be seen"
"""
PARAMETERS = """
import pytest

@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {"perform_ping_check": False}
"""
PLUGINS_OWN = """
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from celery_budgets import BudgetedTask, Budgets, Lane

@pytest.fixture(scope="session")
def celery_config():
    return {"broker_url": "memory://", "result_backend": "cache+memory://"}

@pytest.fixture(scope="session")
def use_celery_app_trap():
    return True

def test_the_app_of_the_plugin(celery_app, request):
    budgets = Budgets(celery_app, lanes=[Lane("lane", 2)])

    @celery_app.task(base=BudgetedTask, name="busy", timeout=1)
    def busy():
        while True:
            pass

    worker = request.getfixturevalue("celery_worker")

    @celery_app.task(base=BudgetedTask, name="later")
    def later():
        return "done"

    worker.reload()
    with pytest.raises(SoftTimeLimitExceeded):
        busy.delay().get(timeout=10)
    assert later.delay().get(timeout=10) == "done"
    outcomes = budgets.statistics().lanes["lane"].outcomes
    assert (outcomes["soft_time_limit"], outcomes["succeeded"]) == (1, 1)
"""
SIGNALS = """
import signal

def test_signals_are_as_they_were(celery_worker):
    handlers = {one: signal.getsignal(one) for one in signal.valid_signals()}
    with pytest.raises(SoftTimeLimitExceeded):
        review.delay(5).get(timeout=10)
    assert handlers == {one: signal.getsignal(one) for one in signal.valid_signals()}
"""


def run(folder: Path, files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run pytest on *files*, beside the program and the set-up of the guide."""
    for name, text in {"conftest.py": FILES["conftest.py"], "tools.py": FILES["tools.py"]}.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_guide(tmp_path):
    """Its code runs as it stands there, in one run of pytest."""
    done = run(tmp_path, FILES)
    assert " 7 passed" in f" {done.stdout.splitlines()[-1]}", done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.slow
def test_an_app_that_the_plugin_makes(tmp_path):
    """With its trap for those who use the current app, and a task that comes after the worker."""
    conftest = 'pytest_plugins = ("celery.contrib.pytest",)\n' + PARAMETERS
    done = run(tmp_path, {"test_it.py": PLUGINS_OWN, "conftest.py": conftest})
    assert "1 passed" in done.stdout.splitlines()[-1], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("test", "summary", "code"),
    [
        pytest.param(EACH_ITS_OWN, "2 passed", 0, marks=pytest.mark.slow),
        (SIGNALS, "1 passed", 0),
        pytest.param(IN_THREADS, "1 failed, 2 passed", 1, marks=pytest.mark.slow),
    ],
    ids=["each_its_own", "signals", "threads"],
)
def test_no_worker_ends_the_tests(tmp_path, test, summary, code):
    """Whatever it does about limits; nor does it change how they end."""
    done = run(tmp_path, {"test_it.py": HEAD + test})
    assert summary in done.stdout.splitlines()[-1], done.stdout + done.stderr
    assert done.returncode == code
