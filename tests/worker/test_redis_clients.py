"""What a worker's process makes for each message; on solo its tasks run in it, and see it."""

from __future__ import annotations

import pytest

APP = "tests.worker.clients_app"


@pytest.mark.parametrize("queues", ["quick", "quick,slow"])
def test_a_worker_makes_no_redis_client_for_a_message(worker, load_app, queues):
    """Whether its one queue is on the connection's own channel, or each has one."""
    app = load_app(APP)
    worker(APP, "-P", "solo", "-Q", queues)
    made = [app.clients.delay().get(timeout=20) for _ in range(5)]
    # The first result makes one, for the backend.
    assert made[1] == made[-1] > 0
