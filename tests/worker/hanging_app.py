"""Bodies that hang in every way; the function in which each does is named after it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets import BudgetedTask, Budgets, Lane
from celery_budgets.units import MIB

MAX_RSS = 200 * MIB

app = Celery("hanging")
app.conf.update(
    budgets_max_rss=MAX_RSS,
    budgets_stacks=os.environ.get("STACKS", "yes"),
    broker_connection_retry_on_startup=True,
    result_extended=True,
    worker_proc_alive_timeout=30,
)
budgets = Budgets(
    app,
    lanes=[
        Lane("lane", concurrency=8, timeout=0.6),
        Lane("long", concurrency=8, timeout=60),
        Lane("roomy", concurrency=8, timeout=60, max_rss=MAX_RSS),
    ],
)


def in_sleep():
    time.sleep(30)


def in_nothing():
    pass


def in_nap():
    time.sleep(13)


def in_regex():
    re.match(r"(a+)+$", "a" * 40 + "b")


def in_loop_in_c():
    sum(range(10**10))


def in_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def in_socket():
    here, _there = socket.socketpair()
    here.recv(1)


def in_join():
    thread = threading.Thread(target=time.sleep, args=(30,), daemon=True)
    thread.start()
    thread.join()


async def never_set():
    await asyncio.Event().wait()


async def waiting_for_it():
    await asyncio.gather(asyncio.create_task(never_set()))


def in_event_loop():
    asyncio.run(waiting_for_it())


def in_child():
    subprocess.run([sys.executable, "-c", "import time; time.sleep(30)"], check=False)


def in_recursion(depth=300):
    if depth:
        in_recursion(depth - 1)
    else:
        in_sleep()


#: By way of hanging, the file and the function that the innermost frame is in.
WAYS = {
    "sleep": ("hanging_app.py", "in_sleep"),
    "regex": ("re/__init__.py", "match"),
    "loop_in_c": ("hanging_app.py", "in_loop_in_c"),
    "lock": ("hanging_app.py", "in_lock"),
    "socket": ("hanging_app.py", "in_socket"),
    "join": ("threading.py", "join" if sys.version_info >= (3, 13) else "_wait_for_tstate_lock"),
    "event_loop": ("locks.py", "wait"),
    "child": ("subprocess.py", "_try_wait"),
    "recursion": ("hanging_app.py", "in_sleep"),
}
#: The innermost function of ours.
OWN = {way: f"in_{way}" for way in WAYS} | {"event_loop": "never_set", "recursion": "in_sleep"}


@app.task(base=BudgetedTask, lane="lane")
def hang(way):
    """Hang, whatever interrupts it."""
    while True:
        with suppress(SoftTimeLimitExceeded):
            globals()[f"in_{way}"]()


@app.task(base=BudgetedTask, lane="lane")
def give_way(way):
    """Hang until the soft limit."""
    globals()[f"in_{way}"]()


@app.task(base=BudgetedTask, lane="roomy")
def grow_and_hang(way):
    """Hang, while a thread takes more and more memory in C code without the interpreter lock."""
    about = {"salt": b"", "n": 2**19, "r": 8, "p": 4, "maxmem": 2**30}
    threading.Thread(target=hashlib.scrypt, args=(b"",), kwargs=about, daemon=True).start()
    time.sleep(0.05)
    globals()[f"in_{way}"]()


@app.task(base=BudgetedTask, lane="long")
def stay(way):
    globals()[f"in_{way}"]()


@app.task(base=BudgetedTask, lane="long")
def often(way):
    globals()[f"in_{way}"]()


@app.task(base=BudgetedTask, lane="lane")
def clean_up_forever():
    """Go on after the soft limit, elsewhere."""
    try:
        in_sleep()
    except SoftTimeLimitExceeded:
        in_lock()


@app.task(base=BudgetedTask, lane="lane")
def hang_with_secret(secret):
    kept = [secret]
    while kept:
        with suppress(SoftTimeLimitExceeded):
            in_sleep()


@app.task(base=BudgetedTask, lane="lane")
def lose_process_after_soft_limit():
    """Be killed by somebody else."""
    try:
        in_sleep()
    except SoftTimeLimitExceeded:
        os.kill(os.getpid(), signal.SIGKILL)


@app.task(base=BudgetedTask, lane="lane")
def note_stack(request, exc, traceback):
    """An errback: what it learns of a killed call."""
    key = f"told:{request.id}"
    app.backend.client.rpush(key, traceback or "", "\n".join(getattr(exc, "__notes__", ())))


@app.task(base=BudgetedTask, lane="lane")
def quick():
    return "next"
