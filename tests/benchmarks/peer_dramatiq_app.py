"""The lane built with Dramatiq: a queue, a time limit, a rate limiter, Prometheus."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware.prometheus import Prometheus
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.rate_limits.backends import RedisBackend
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend as RedisResults

from tests.benchmarks.peer_bodies import BODIES, HARD

URL = os.environ["REDIS"]
broker = RedisBroker(url=URL)
if "PROMETHEUS" in os.environ:
    broker.add_middleware(Prometheus())
broker.add_middleware(Results(backend=RedisResults(url=URL)))
dramatiq.set_broker(broker)
limiter = ConcurrentRateLimiter(RedisBackend(url=URL), "lane", limit=2)


def limited(body):
    def call(*args):
        with limiter.acquire():
            return body(*args)

    return call


actors = {
    body.__name__: dramatiq.actor(
        limited(body), actor_name=body.__name__, queue_name="lane", time_limit=HARD * 1000,
        max_retries=0, store_results=body.__name__ not in ("started", "short"),
    )
    for body in BODIES
}  # fmt: skip
