"""One client per channel, on kombu's own Redis transport and a real server."""

from __future__ import annotations

import multiprocessing

import pytest
from kombu import Connection, Queue
from kombu.transport.redis import Channel
from redis import Redis

from celery_budgets.worker.transport.redis_client import keep_client


@pytest.fixture
def made(monkeypatch):
    """The pools for which clients were made, one entry per client."""
    pools, init = [], Redis.__init__

    def noted(self, *args, **kwargs):
        init(self, *args, **kwargs)
        pools.append(self.connection_pool)

    monkeypatch.setattr(Redis, "__init__", noted)
    return pools


@pytest.fixture(params=["new", "connected", "with a channel"])
def connection(redis_url, request):
    """A connection as it may be when it is prepared; a worker's is connected."""
    with Connection(redis_url) as made:
        if request.param == "connected":
            made.ensure_connection(max_retries=1)
        elif request.param == "with a channel":
            made.default_channel.client.ping()
        yield keep_client(made)


def pass_on(connection, count):
    """Send, receive and acknowledge *count* messages on one channel."""
    channel = connection.default_channel
    with connection.SimpleQueue("critic") as queue:
        for number in range(count):
            queue.put(number)
        for number in range(count):
            message = queue.get(timeout=5)
            assert message.payload == number
            message.ack()
    assert not connection.default_channel.client.hlen(channel.unacked_key)


def test_messages_share_the_client_of_their_channel(connection, made):
    pass_on(connection, 1)
    before = len(made)
    pass_on(connection, 10)
    assert len(made) == before


def test_each_channel_has_a_client_of_its_own(connection):
    first, second = connection.default_channel, connection.channel()
    assert second._create_client() is second._create_client() is not first._create_client()


def test_kombu_makes_one_for_each_message_twice(redis_url, made):
    """Else there is nothing left to keep."""
    with Connection(redis_url) as plain:
        pass_on(plain, 1)
        before = len(made)
        pass_on(plain, 10)
    assert len(made) - before >= 20


def test_after_a_lost_connection_the_client_is_that_of_the_new_pool(connection):
    channel = connection.default_channel
    first = channel._create_client()
    assert channel._create_client() is first
    channel._disconnect_pools()
    second = channel._create_client()
    assert second.connection_pool is channel.pool is not first.connection_pool
    assert second.ping()
    pass_on(connection, 1)


def test_a_forked_child_gets_a_client_of_its_own(connection):
    """There, kombu drops the pool (kombu.transport.redis.Channel._after_fork)."""
    channel = connection.default_channel
    kept = channel._create_client()
    assert kept.ping()

    def child(answers):
        channel._after_fork()
        own = channel._create_client()
        answers.put((own is kept, own.ping()))

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert answers.get() == (False, True)
    assert channel._create_client() is kept
    assert kept.ping(), "its socket was not touched"


def test_the_client_that_waits_for_messages_is_kombus(connection):
    channel = connection.default_channel
    waits = channel._create_client(asynchronous=True)
    assert waits.connection_pool is channel.async_pool
    assert waits is not channel._create_client()


def test_a_key_prefix_stays(redis_url):
    prefixed = Connection(redis_url, transport_options={"global_keyprefix": "mine."})
    with keep_client(prefixed) as connection:
        connection.SimpleQueue("critic").put("extra")
        with Redis.from_url(redis_url) as redis:
            assert redis.llen("mine.critic") == 1
        Queue("critic")(connection.default_channel).purge()


def test_a_channel_that_makes_its_clients_itself_is_left_alone(redis_url):
    class Own(Channel):
        def _create_client(self, asynchronous=False):
            return super()._create_client(asynchronous)

    connection = Connection(redis_url)
    connection.transport.Channel = Own
    assert keep_client(connection) is connection
    assert connection.transport.Channel is Own


def test_another_transport_is_left_alone():
    connection = Connection("memory://")
    before = vars(connection.transport).copy()
    assert keep_client(connection) is connection
    assert vars(connection.transport) == before
