"""Celery's settings for a call that is killed or loses its process are kept, and told truly."""

from __future__ import annotations

import celery
import pytest
from celery.exceptions import TimeLimitExceeded, WorkerLostError

APP = "tests.worker.settling_app"
SINCE_5_7 = tuple(int(part) for part in celery.__version__.split(".")[:2]) >= (5, 7)
FAULTS = {"hang": ("hard_time_limit", TimeLimitExceeded), "die": ("worker_lost", WorkerLostError)}
#: Task, fault, and the outcomes of its runs; ``None``: that of the fault.
CASES = [
    ("plain", "hang", [None]),
    ("plain", "die", [None]),
    ("unacknowledged", "hang", ["retried", "retried", "succeeded"]),
    ("unacknowledged", "die", [None]),
    ("rejected", "hang", [None]),
    ("rejected", "die", ["retried", "retried", "succeeded"]),
    ("bounded", "hang", [None, None]),
    ("bounded", "die", [None, None]),
    ("early", "hang", [None]),
    ("early", "die", [None]),
]
if SINCE_5_7:
    CASES += [
        ("unacknowledged_timeout", "hang", ["retried", "retried", "succeeded"]),
        ("unacknowledged_failure", "hang", [None]),
        ("unacknowledged_failure", "die", [None]),
        ("sent_again", "hang", [None]),
        ("sent_again", "die", ["retried", "retried", "succeeded"]),
    ]


def check(running, module, cases):
    """Send all at once, and compare what became of each with what it should."""
    sent = [(module.app.tasks[task].delay(fault), fault, ends) for task, fault, ends in cases]
    for (result, fault, ends), (task, *_) in zip(sent, cases, strict=True):
        outcome, error = FAULTS[fault]
        if ends[-1] == "succeeded":
            assert result.get(timeout=30) == 3
        else:
            with pytest.raises(error):
                result.get(timeout=30)
        running.wait_for_log(f"task_id={result.id}", f"outcome={ends[-1] or outcome}")
        seen = [
            line.partition("outcome=")[2].split()[0]
            for line in running.log.splitlines()
            if f"task_id={result.id}" in line and "budgets.call_ended" in line
        ]
        assert seen == [end or outcome for end in ends], (task, fault)
        assert int(module.app.backend.client.get(f"runs:{result.id}")) == len(ends), (task, fault)


def test_a_message_is_settled_as_celery_settings_say(broker_url, worker, load_app):
    """On prefork and both brokers: the broker hands out again what Celery does not acknowledge."""
    check(worker(APP, "-Q", "lane"), load_app(APP), CASES)


@pytest.mark.slow
def test_calls_whose_processes_die_at_once_run_once(broker_url, worker, load_app):
    """Celery gives a call to another process where it has not read yet that it has begun."""
    running, module = worker(APP, "-Q", "wide", "-c", "4"), load_app(APP)
    early = module.app.tasks["early"]
    sent = [early.apply_async(("die",), queue="wide") for _ in range(60)]
    for result in sent:
        with pytest.raises(WorkerLostError):
            result.get(timeout=60)
    runs = [int(module.app.backend.client.get(f"runs:{result.id}")) for result in sent]
    assert runs == [1] * len(sent), running.tail()


def test_settings_of_the_app_count_as_well(worker, load_app):
    running = worker(APP, "-Q", "lane", env={"APP_WIDE": "1"})
    module = load_app(APP, APP_WIDE="1")
    again = ["retried", "retried", "succeeded"]
    check(running, module, [("plain", "hang", again), ("plain", "die", again)])


@pytest.mark.slow
def test_a_thread_past_its_hard_limit_is_settled_so_too(worker, load_app):
    cases = [case for case in CASES if case[1] == "hang"]
    check(worker(APP, "-Q", "lane", "-P", "threads"), load_app(APP), cases)
