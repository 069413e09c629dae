"""A signal for the whole process group stops the worker; the calls that run go on to their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing

import pytest
from redis import Redis

from tests.support.marks import first_of
from tests.support.places import ROOT
from tests.support.rabbitmq import unacknowledged
from tests.support.terminals import WorkerOnTerminal
from tests.support.waiting import wait_until
from tests.support.workers import CELERY, WARM_SECONDS

APP = "tests.worker.group_stop_app"


def runs(module, result):
    return int(module.Redis.from_url(module.WHERE).get(f"runs:{result.id}") or 0)


def line_of(running, result):
    """What its log says of the end of a call."""
    lines = [line for line in running.log.splitlines() if "budgets.call_ended" in line]
    (line,) = [line for line in lines if f"task_id={result.id}" in line]
    return line


@pytest.mark.parametrize("task", first_of("work", "plain"))
def test_calls_that_run_go_on_to_their_end(worker, load_app, broker_url, task):
    """As ``docker kill``, ``stopasgroup`` and systemd's ``KillMode=control-group`` do."""
    module = load_app(APP)
    running = worker(APP, "-Q", "lane")
    results = [getattr(module, task).apply_async((1.5,), queue="lane") for _ in range(2)]
    running.wait_active(2)
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait_exit() == 0
    assert [result.get(timeout=1) for result in results] == ["done", "done"]
    assert [runs(module, result) for result in results] == [1, 1]
    assert "worker_lost" not in running.log


def test_a_process_that_ends_all_the_same_gives_its_call_back(worker, load_app, broker_url):
    """A handler of the program's own ends it: the call is retried, by the next worker."""
    module = load_app(APP)
    running = worker(APP, "-Q", "lane")
    result = module.with_a_handler_of_its_own.delay(20)
    running.wait_active(1)
    wait_until(lambda: runs(module, result), "it runs")
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait_exit() == 0
    assert "outcome=retried" in line_of(running, result)
    worker(APP, "-Q", "lane")
    assert result.get(timeout=10) == "done"
    assert runs(module, result) == 2


@pytest.mark.parametrize("pool", first_of("prefork", "threads", "gevent"))
def test_what_has_ended_is_acknowledged_while_others_run_on(worker, load_app, broker_url, pool):
    """A worker that is killed in its grace has only those run again that had not ended."""
    module = load_app(APP)
    running = worker(APP, "-Q", "lane", "-P", pool, "-c", "2")
    short, long = module.work.delay(1), module.work.delay(60)
    wait_until(lambda: runs(module, short) and runs(module, long), "both run")
    os.kill(running.pid, signal.SIGTERM)
    assert short.get(timeout=20) == "done"
    wait_until(lambda: in_hands(broker_url) == 1, "one is in hand", timeout=20)
    running.kill()
    if broker_url.startswith("amqp"):
        wait_until(module.app.control.purge, "the long one is gone, for the next test")


def in_hands(broker_url):
    """Return how many messages a worker has of the broker."""
    if broker_url.startswith("amqp"):
        return unacknowledged(broker_url.rpartition("/")[2], "lane")
    return Redis.from_url(broker_url).hlen("unacked")


def test_a_terminal_that_hangs_up_stops_the_worker_warmly(servers, load_app):
    module = load_app(APP)
    running = WorkerOnTerminal(servers, APP, "-Q", "lane")
    with closing(running):
        results = [module.work.delay(2) for _ in range(2)]
        wait_until(lambda: all(runs(module, result) for result in results), "both run", timeout=30)
        running.hang_up()
        assert running.wait_exit() == 0
    assert [result.get(timeout=1) for result in results] == ["done", "done"]
    assert [runs(module, result) for result in results] == [1, 1]


@pytest.mark.parametrize(
    ("signum", "codes"), first_of(("SIGTERM", {0}), ("SIGINT", {1}), ("SIGQUIT", {0, 1}))
)
def test_a_worker_stops_though_nobody_reads_what_it_prints(servers, signum, codes):
    """Before Celery 5.7 its handlers of signals wrote first, and failed."""
    running = subprocess.Popen(
        [sys.executable, str(CELERY), "-A", APP, "worker", "-l", "INFO", "-Q", "lane", "-c", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | servers.environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert any(" ready." in line for line in running.stdout)
        running.stdout.close()
        running.send_signal(getattr(signal, signum))
        # Celery's own: at SIGQUIT either, by where the signal meets it.
        assert running.wait(WARM_SECONDS) in codes
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("pool", first_of("prefork", "threads", "solo", "gevent", everyday=2))
def test_forks_of_a_body_end_by_the_signals_that_stop_a_worker(worker, load_app, pool):
    """As outside Celery; and not by Ctrl-C, at which the worker waits for them."""
    module = load_app(APP)
    running = worker(APP, "-Q", "lane", "-P", pool)
    ends = module.with_forks.delay(["SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT"]).get(timeout=30)
    assert ends == [-signal.SIGTERM, -signal.SIGHUP, -signal.SIGQUIT, 0], running.tail()


def test_forks_of_a_body_end_where_sigterm_is_remapped(worker, load_app):
    """With REMAP_SIGTERM billiard ignores SIGTERM in its processes, and forks did so too."""
    module = load_app(APP)
    worker(APP, "-Q", "lane", env={"REMAP_SIGTERM": "SIGQUIT"}, fresh=True)
    assert module.with_forks.delay(["SIGTERM"]).get(timeout=30) == [-signal.SIGTERM]


def test_forks_of_a_body_keep_a_handler_of_the_programs_own(worker, load_app):
    module = load_app(APP)
    worker(APP, "-Q", "lane")
    assert module.with_forks.delay(["SIGTERM"], own_handler=True).get(timeout=30) == [5]
