"""A program that asks all workers, has two children, and asks again: who did not answer?"""

from __future__ import annotations

import json
import multiprocessing

from tests.worker.statistics_app import budgets

if __name__ == "__main__":
    before = budgets.statistics().silent
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        child = context.Process(target=int)
        child.start()
        child.join()
    print(json.dumps([before, budgets.statistics().silent]))
