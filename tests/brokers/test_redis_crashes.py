"""A Redis that is killed under load, and a fail-over by Sentinel: no call is lost."""

from __future__ import annotations

import pytest
from redis import Redis

from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.support.workers import Servers

pytestmark = pytest.mark.slow

APP = "tests.brokers.killed_app"
CALLS = 3000


@pytest.fixture
def server(tmp_path):
    """A function that starts a server, which ends with the test."""
    running = []

    def start(*arguments):
        directory = tmp_path / f"server-{len(running)}"
        directory.mkdir()
        running.append(Server(directory, *arguments))
        return running[-1]

    yield start
    for one in running:
        one.end()


def send(app):
    with app.app.producer_or_acquire() as producer:
        for number in range(CALLS):
            app.run.apply_async(
                (number,), producer=producer, lane=("quick", "other")[number % 2],
                priority=("high", "normal", "low")[number % 3],
            )  # fmt: skip


def wait_for_all(backend, workers, counted=CALLS):
    with Redis.from_url(backend) as redis:
        wait_until(
            lambda: redis.scard("ran") == counted, "all have run", timeout=90, interval=0.2,
            detail=lambda: f"{redis.scard('ran')}\n" + "\n".join(one.tail() for one in workers),
        )  # fmt: skip


def some_have_run(backend, more):
    with Redis.from_url(backend) as redis:
        least = redis.scard("ran") + more
        wait_until(lambda: redis.scard("ran") >= least, "some have run", timeout=30)


VISIBLE = {"VISIBLE": "5"}


def test_a_killed_redis_that_notes_each_write_loses_nothing(worker, load_app, redis_url, server):
    """Restarted five times while two workers take and settle messages."""
    broker = server("--appendonly", "yes", "--appendfsync", "always", "--save", "")
    servers = Servers(broker=f"redis://127.0.0.1:{broker.port}/0", backend=redis_url)
    app = load_app(APP, CELERY_BROKER_URL=servers.broker)
    send(app)
    workers = [worker(APP, "-c", "8", servers=servers, env=VISIBLE) for _ in range(2)]
    for _ in range(5):
        some_have_run(redis_url, 200)
        broker.kill()
        broker.start()
    wait_for_all(redis_url, workers)
    wait_until(
        lambda: not broker.client.exists("unacked", "unacked_index"), "all is settled", timeout=30
    )


def test_a_fail_over_by_sentinel_loses_nothing(worker, load_app, redis_url, server, tmp_path):
    """To a replica that had all messages when the primary was killed."""
    primary = server("--save", "")
    replica = server("--save", "", "--replicaof", "127.0.0.1", str(primary.port))
    sentinel_file = tmp_path / "sentinel.conf"
    sentinel_file.write_text(
        f"sentinel monitor mine 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds mine 500\nsentinel failover-timeout mine 2000\n"
    )
    sentinel = server(str(sentinel_file), "--sentinel")
    servers = Servers(broker=f"sentinel://127.0.0.1:{sentinel.port}", backend=redis_url)
    environment = VISIBLE | {"MASTER": "mine"}
    app = load_app(APP, CELERY_BROKER_URL=servers.broker, **environment)
    send(app)
    assert primary.client.wait(1, 10_000) == 1
    workers = [worker(APP, "-c", "8", servers=servers, env=environment) for _ in range(2)]
    some_have_run(redis_url, 200)
    primary.kill()
    wait_for_all(redis_url, workers)
    wait_until(
        lambda: not replica.client.exists("unacked", "unacked_index"), "all is settled", timeout=30
    )
