"""A program that reads a batch, and prints as JSON what that took: ``COUNT MAX_IN_FLIGHT NAP``.

Stopped by Ctrl-C it prints the same of what it has read. ``NAP`` is seconds per call; with 0
calls only calculate.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from itertools import count

from celery import signals
from redis import Redis

from tests.worker.batch_app import app, budgets, nap, square


class Unfinished:
    """Counts calls between their publishing and the end of their result, at the server itself."""

    def __init__(self):
        self.sent = count(1)
        self.most = 0
        self.redis = Redis.from_url(app.conf.result_backend)

    def note(self, **_):
        number = next(self.sent)
        if number % 10 == 0:
            stored = self.redis.dbsize() - self.others
            self.most = max(self.most, number - stored)

    def start(self):
        self.others = self.redis.dbsize()
        signals.before_task_publish.connect(self.note)


def peak_bytes():
    """Highest RSS of this process: VmHWM, which an exec does not hand on."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(calls, most, seconds):
    told = []
    signatures = (nap.s(seconds) if seconds else square.s(number) for number in range(calls))
    batch = budgets.batch(
        signatures, max_in_flight=most, total=calls,
        on_progress=lambda progress: told.append(progress.in_flight) if len(told) < 10 or
        progress.in_flight > max(told) else None,
    )  # fmt: skip
    unfinished, began = Unfinished(), time.monotonic()
    unfinished.start()
    read, in_order = 0, True
    try:
        for item in batch:
            in_order = in_order and item.index == read
            read += 1
            if read == 1:
                print("reading", flush=True)
    except KeyboardInterrupt:
        pass
    print(
        json.dumps(
            {
                "read": read, "in_order": in_order, "most_in_flight": max(told),
                "most_unfinished": unfinished.most, "peak_bytes": peak_bytes(),
                "seconds": time.monotonic() - began, "unread": batch.summary.unread,
                "succeeded": batch.summary.succeeded, "scope": batch.scope.path,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    # A shell without job control starts what runs in the background with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
