"""On Redis a worker loses its connections while calls run: each runs once, none is lost."""

from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.support.apps import Servers
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.support.workers import leaving

APP = "tests.worker.renewed_app"
SECONDS = 3
POOLS = [
    pytest.param(pool, marks=() if pool == "prefork" else pytest.mark.slow)
    for pool in ("prefork", "threads", "gevent")
]


class Ground:
    """A broker of its own, which notes each write; results and counts are elsewhere."""

    def __init__(self, server, backend, load_app, worker):
        self.server, self.backend = server, backend
        self.servers = Servers(broker=server.url, backend=backend)
        self.module = load_app(APP, CELERY_BROKER_URL=server.url)
        self._worker = worker

    def worker(self, pool, slots=8):
        return self._worker(
            APP, "-P", pool, "-Q", "long", "-c", str(slots), servers=self.servers,
            env={"SLOTS": str(slots), "VISIBLE": "20"},
        )  # fmt: skip

    def send(self, count):
        self.names = [str(number) for number in range(count)]
        return [self.module.nap.delay(name, SECONDS) for name in self.names]

    def counted(self, what):
        keys = [f"{what}:{name}" for name in self.names]
        return [int(value or 0) for value in self.module.app.backend.client.mget(keys)]

    def lose_connections(self):
        """Have Redis close all connections but this one."""
        self.server.client.client_kill_filter(_type="normal", skipme=True)
        self.server.client.client_kill_filter(_type="pubsub", skipme=True)

    def restart(self):
        self.server.kill()
        self.server.start()

    def in_hand(self):
        try:
            return self.server.client.hlen("unacked")
        except RedisError:
            return -1


@pytest.fixture
def server(tmp_path):
    running = Server(tmp_path, "--appendonly", "yes", "--appendfsync", "always", "--save", "")
    yield running
    running.end()


@pytest.fixture
def ground(server, redis_url, load_app, worker):
    yield Ground(server, redis_url, load_app, worker)
    # Before their broker: without one, a worker on gevent stops in plain Celery no more either.
    worker.leave()
    leaving.see_off(server.url)


@pytest.mark.parametrize("how", ["lose_connections", "restart"])
@pytest.mark.parametrize("pool", POOLS)
def test_what_runs_stays_in_hand(ground, pool, how):
    """Two workers of four slots each have eight calls, and eight more wait."""
    workers = [ground.worker(pool, slots=4) for _ in range(2)]
    results = ground.send(16)
    wait_until(lambda: sum(ground.counted("begun")) == 8, "eight run")
    getattr(ground, how)()
    for each in workers:
        each.wait_for_log("Connection to broker lost", timeout=20)
    for result in results:
        result.get(timeout=60)
    assert ground.counted("begun") == [1] * 16, "\n".join(each.tail() for each in workers)
    assert ground.counted("ended") == [1] * 16
    wait_until(lambda: ground.in_hand() == 0, "all is settled")
    assert not ground.server.client.exists("unacked_index", "long")
    for each in workers:
        assert "budgets.redelivered" not in each.log


def test_what_waits_goes_back_at_once_and_what_a_dead_worker_ran_later(ground, redis_url):
    """It is killed right after it has reconnected: all it held runs again after the timeout."""
    module = ground.module
    ground.names = [str(number) for number in range(6)]
    killed = ground.worker("prefork", slots=4)
    for name in ground.names:
        module.nap.delay(name, 60)
    wait_until(lambda: sum(ground.counted("begun")) == 4, "four run")
    ready = killed.log.count("Connected to")
    ground.lose_connections()
    wait_until(lambda: killed.log.count("Connected to") > ready, "it has reconnected")
    assert ground.in_hand() == 4
    killed.kill()
    assert ground.in_hand() == 4
    with Redis.from_url(redis_url) as redis:
        assert [int(redis.get(f"begun:{name}") or 0) for name in ground.names] == [1] * 4 + [0] * 2
    other = ground.worker("prefork", slots=8)
    wait_until(
        lambda: ground.counted("begun") == [2] * 4 + [1] * 2, "all run", timeout=60,
        detail=other.tail,
    )  # fmt: skip
    other.kill()
