"""A worker inside of a program, as Celery's pytest plugin starts it: what it says of itself."""

from __future__ import annotations

import json
import sys

from celery.contrib.testing.worker import start_worker

from celery_budgets import Budgets
from celery_budgets.sending.remote_control import Inspection
from tests.worker.lanes_app import app

if __name__ == "__main__":
    options = {"pool": sys.argv[1], "queues": ["quick"], "perform_ping_check": False}
    with start_worker(app, **options) as worker:
        budgets = Budgets.of(app)
        memory = budgets.memory(timeout=5)
        paused = Inspection(app).control("pause_lane", {"lane": "quick"}, [worker.hostname], 5.0)
        limits = app.control.time_limit("pid", soft=3, reply=True, timeout=5, limit=1)
    (facts,) = memory.workers.values()
    seen = {
        "silent": memory.silent,
        "rss": facts.rss_bytes,
        "lanes": list(facts.levels),
        "paused": list(paused.by_worker.values()),
        "limits": [answer for reply in limits for answer in reply.values()],
    }
    print(json.dumps(seen))
