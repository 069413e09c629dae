"""What it costs to look at the page of the lanes: CPU of the process that serves it.

Ten workers of two lanes, limits with ten keys, a refresh of 5 s; nobody looks on, one, or ten.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from tests.benchmarks.ground import Ground, Workplace, cpu_seconds
from tests.benchmarks.measure import Figure, Target
from tests.support.places import ROOT

APP = "tests.worker.web_app"
INTERVAL = 5
#: A proxy of the environment is not for loopback.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def run(ground: Ground) -> list[Figure]:
    place = ground.workplace()
    arguments = (APP, "-Q", "quick,slow", "-P", "threads")
    workers = [place._workers(*arguments, ready=False) for _ in range(ground.amount(10, 1))]
    place.running += workers
    for worker in workers:
        worker.wait_ready(timeout=60)
    for key in range(10):
        place.sender.send_task("serve", (f"customer {key}", 0.1), queue="quick")
    lookers = {"nobody looks on": 0, "one looks on": 1, "ten look on": 10}
    shares = {way: [_share(ground, place, number)] for way, number in lookers.items()}
    targets = {way: Target(1) for way in ("one looks on", "ten look on")}
    return [Figure("CPU of the page's process", "% of a core", shares, targets=targets)]


def _share(ground: Ground, place: Workplace, lookers: int) -> float:
    """Return the share of a core that the page takes while so many look on, percent."""
    with _page(place) as (process, address), ExitStack() as stack:
        host, query = address.split("?")
        for _ in range(lookers):
            stream = stack.enter_context(_opener.open(f"{host}events?{query}", timeout=60))
            threading.Thread(target=_read, args=(stream,), daemon=True).start()
        time.sleep(2 * INTERVAL)  # the first round reads more
        seconds = ground.amount(12 * INTERVAL, INTERVAL)
        before = cpu_seconds(process.pid)
        time.sleep(seconds)
        return (cpu_seconds(process.pid) - before) / seconds * 100


def _read(stream: object) -> None:
    with suppress(OSError, ValueError, AttributeError):
        for _ in stream:  # type: ignore[attr-defined]
            pass


@contextmanager
def _page(place: Workplace) -> Iterator[tuple[subprocess.Popen[str], str]]:
    urls = {"CELERY_BROKER_URL": place.url, "CELERY_RESULT_BACKEND": place.url}
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", APP, "lanes", "web", "--port", "0",
         "--interval", str(INTERVAL)],
        cwd=ROOT, env=os.environ | urls | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", process.stdout.readline())
        assert found is not None
        yield process, found.group()
    finally:
        process.kill()
        process.communicate()
