"""Objects of which each process makes its own: once, and anew after a fork."""

from __future__ import annotations

import multiprocessing
import threading
import time

import pytest

from celery_budgets.per_process import OncePerProcess, PerProcess
from celery_budgets.process.recorder import recorder
from celery_budgets.process.watchdog import watchdog

FORK = multiprocessing.get_context("fork")


class App:
    """Something that can be referred to weakly."""


def in_a_forked_process(look):
    """Return what *look* returns in a child of this process."""
    answers = FORK.SimpleQueue()
    child = FORK.Process(target=lambda: answers.put(look()))
    child.start()
    child.join(timeout=20)
    assert child.exitcode == 0
    return answers.get()


@pytest.mark.parametrize("kind", ["one", "by app"])
def test_two_threads_get_the_same(kind):
    """Whichever is first makes it; the other one waits for that."""
    both_ask, app = threading.Barrier(2), App()
    made = []

    def make():
        time.sleep(0.1)  # long enough for the other thread to be here too, if it were let in
        made.append(object())
        return made[-1]

    single = OncePerProcess(make) if kind == "one" else None
    by_app = PerProcess(make)
    got = []

    def ask():
        both_ask.wait(timeout=10)
        got.append(single() if single is not None else by_app.of(app))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert got == made * 2
    assert len(made) == 1


@pytest.mark.parametrize("of_each_process", [watchdog, recorder])
def test_a_forked_process_gets_its_own(of_each_process):
    """A thread does not survive a fork, so neither may the watchdog; nor a file by its pid."""
    ours = of_each_process()
    assert of_each_process() is ours
    assert in_a_forked_process(lambda: of_each_process() is ours) is False
    assert of_each_process() is ours


def test_a_fork_in_the_middle_of_making_one():
    """The lock that another thread holds just then is not that of the child."""
    making, forked = threading.Event(), threading.Event()

    def make():
        if threading.current_thread() is not threading.main_thread():
            making.set()
            assert forked.wait(timeout=20)
        return object()

    single = OncePerProcess(make)
    maker = threading.Thread(target=single)
    maker.start()
    assert making.wait(timeout=10)
    assert in_a_forked_process(lambda: single() is not None)
    forked.set()
    maker.join(timeout=10)
