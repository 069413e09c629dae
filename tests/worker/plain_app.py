"""An app without this package's parts: what a plain Celery does, to compare with."""

from __future__ import annotations

import contextlib
import os
import time

from celery import Celery

app = Celery("plain")


@app.task(name="add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="nap")
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.task(name="pid")
def pid() -> int:
    return os.getpid()


@app.task(name="swallow")
def swallow() -> None:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(60)
