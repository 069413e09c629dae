"""Calls that start processes; each writes their pids to ``children:ID`` in Redis."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane
from celery_budgets.units import MIB

app = Celery("children")
app.conf.update(
    budgets_max_rss="200MiB",
    worker_pool_start_method=os.environ.get("START_METHOD", "fork"),
    # Three that are spawned at once import for longer than that on a busy machine (4 s).
    worker_proc_alive_timeout=30,
)
budgets = Budgets(
    app,
    lanes=[
        Lane("lane", concurrency=2, timeout=60),
        Lane("leaving", concurrency=1, timeout=60, children="leave"),
    ],
)
SLEEP = "import time; time.sleep(60)"
#: Says that it is there when SIGTERM does nothing to it any more.
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print(1, flush=True); time.sleep(60)"
)
#: Takes its memory once it is told to: its pid is noted by then.
TAKE = (
    "import sys, time; sys.stdin.readline(); block = b'1' * int(sys.argv[1])\n"
    "print(1, flush=True); time.sleep(60)"
)


def redis():
    return app.backend.client


def note(task, *pids):
    redis().rpush(f"children:{task.request.id}", *pids)


def program(code, *arguments, **options):
    """Start a program that prints a line once it is ready."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, **options)


def forking():
    """Return multiprocessing with leave to start processes: billiard's own may not."""
    multiprocessing.current_process()._config["daemon"] = False
    return multiprocessing.get_context("fork")


def by_subprocess():
    return [program(SLEEP).pid]


def by_session():
    return [program(SLEEP, start_new_session=True).pid]


def by_shell():
    """A child and a grandchild."""
    shell = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE)
    return [shell.pid, int(shell.stdout.readline())]


def by_deaf():
    deaf = program(DEAF, stdout=subprocess.PIPE)
    deaf.stdout.readline()
    return [deaf.pid]


def by_fork():
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(60)
        os._exit(0)
    return [pid]


def by_multiprocessing():
    process = forking().Process(target=time.sleep, args=(60,), daemon=True)
    process.start()
    return [process.pid]


def by_daemon():
    """A grandchild whose parent ends, but not before somebody could have seen it."""
    shell = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; sleep 0.5"], stdout=subprocess.PIPE)
    pid = int(shell.stdout.readline())
    shell.wait()
    return [pid]


WAYS = {
    way.__name__.removeprefix("by_"): way
    for way in (
        by_subprocess, by_session, by_shell, by_deaf, by_fork, by_multiprocessing, by_daemon,
    )
}  # fmt: skip


@app.task(base=BudgetedTask, bind=True, lane="lane")
def starting(self, ways, then="sleep"):
    """Start processes in all *ways*, then go on: sleep, end, die, or be deaf to the limits."""
    note(self, *(pid for way in ways for pid in WAYS[way]()))
    redis().set(f"process:{self.request.id}", os.getpid())
    if then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if then == "exit":
        os._exit(3)
    if then == "fail":
        raise ValueError("as it may")
    until = time.monotonic() + 60
    while then != "end" and time.monotonic() < until:
        try:
            time.sleep(0.1)
        except Exception:
            print("goes on")
    return "done"


@app.task(base=BudgetedTask, bind=True, lane="leaving")
def leaving(self, ways):
    note(self, *(pid for way in ways for pid in WAYS[way]()))
    time.sleep(60)


@app.task(base=BudgetedTask, bind=True, lane="lane", children="leave")
def leaving_task(self, ways):
    note(self, *(pid for way in ways for pid in WAYS[way]()))
    time.sleep(60)


@app.task(base=BudgetedTask, bind=True, lane="lane")
def taking(self, size, count=1, seconds=0.5):
    """Have *count* programs take *size* bytes each, and wait for them."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    programs = [program(TAKE, size, **pipes) for _ in range(count)]
    note(self, *(child.pid for child in programs))
    for child in programs:
        child.stdin.close()
    for child in programs:
        child.stdout.readline()
    time.sleep(seconds)
    for child in programs:
        child.kill()
        child.wait()
    return "done"


@app.task(base=BudgetedTask, bind=True, lane="lane")
def sharing(self, size, count):
    """Hold *size* bytes, and have *count* forked processes share them."""
    block = bytearray(b"1") * size
    context = forking()
    children = [context.Process(target=time.sleep, args=(1.0,)) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return len(block) // MIB


@app.task(base=BudgetedTask, bind=True, lane="lane")
def pooling(self):
    """Use a pool of multiprocessing, as a program would."""
    with forking().Pool(2) as pool:
        return pool.map(abs, [-1, -2, -3])


@app.task
def plain(ways, key):
    redis().rpush(f"children:{key}", *(pid for way in ways for pid in WAYS[way]()))
    time.sleep(60)
