"""What the tests do to kombu's pools before a fork leaves the pools usable."""

from __future__ import annotations

import multiprocessing
import os

import pytest
from kombu import Connection, pools


@pytest.mark.timeout(20)  # who asks an empty pool waits for ever
@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_pools_can_be_used_after_a_fork(used):
    """As often as they could before, by one who waits for his turn."""
    with Connection("memory://") as connection:
        connections, producers = pools.connections[connection], pools.producers[connection]
        if used:
            producers.acquire(block=True, timeout=1).release()
        child = multiprocessing.get_context("fork").Process(target=os.getpid)
        child.start()
        child.join()
        for pool in (connections, producers):
            taken = [pool.acquire(block=True) for _ in range(pool.limit)]
            for resource in taken:
                resource.release()
