"""What kombu keeps of deliveries, read and renewed from outside, on a real server."""

from __future__ import annotations

import time

import pytest
from kombu import Connection
from kombu.transport.redis import QoS

from celery_budgets.worker.transport.commands import _COMMAND_NAME
from celery_budgets.worker.transport.holder import HOLDERS, Holder
from celery_budgets.worker.transport.renewing.channels import on_each_qos
from celery_budgets.worker.transport.renewing.in_hand import forget, messages_in_hand
from celery_budgets.worker.transport.renewing.sweeping import Sweeping
from celery_budgets.worker.transport.renewing.unacked_index import AT_ONCE, UnackedIndex, has_index
from celery_budgets.worker.transport.renewing.unsent import Unsent


@pytest.fixture(params=["", "mine:"])
def connection(redis_url, request):
    """A connection whose keys have a prefix, or none."""
    options = {"global_keyprefix": request.param, "visibility_timeout": 1}
    with Connection(redis_url, transport_options=options) as made:
        yield made


@pytest.fixture
def index(connection):
    made = UnackedIndex(connection.default_channel, timeout=5)
    yield made
    made.close()


def deliver(connection, count=1):
    queue = connection.SimpleQueue("long")
    for number in range(count):
        queue.put(number)
    return [queue.get(timeout=5) for _ in range(count)]


def test_what_is_in_hand_is_renewed_and_what_is_acknowledged_is_not(connection, index):
    first, second = deliver(connection, 2)
    tags = [first.delivery_tag, second.delivery_tag]
    assert messages_in_hand(connection.transport) == dict(zip(tags, (first, second), strict=True))
    assert all(abs(score - time.time()) < 60 for score in index.scores(tags))
    second.ack()
    assert messages_in_hand(connection.transport) == {first.delivery_tag: first}
    now = time.time() + 100.25
    index.renew(tags, now)
    assert index.scores(tags) == [now, None]


def test_more_than_go_into_one_command(index):
    tags = [str(number) for number in range(AT_ONCE + 1)]
    index.renew(tags, 1.0)
    assert index.scores(tags) == [None] * len(tags)


def test_what_a_worker_has_noted_and_not_renewed_lately(connection, index):
    """By the number in the time; as old as said, and nobody else's."""
    ours, other = Holder(), Holder()
    other.number = (ours.number + 1) % HOLDERS
    tags = [message.delivery_tag for message in deliver(connection, 3)]
    index.renew(tags[:2], ours.time())
    index.renew(tags[2:], other.time())
    assert index.held_by(ours.number, time.time() - 60) == []
    index.renew(tags[:1], ours.time() - 90)
    index.renew(tags[2:], other.time() - 90)
    assert index.held_by(ours.number, time.time() - 60) == tags[:1]
    assert set(index.held_by(ours.number, time.time() + 60)) == set(tags[:2])


def test_what_is_forgotten_is_another_s(connection, index):
    """It counts here no more, and whoever has it now keeps it."""
    (message,) = deliver(connection)
    channel = message.channel
    channel.qos.prefetch_count = 1
    assert not channel.qos.can_consume()
    forget(message)
    assert messages_in_hand(connection.transport) == {}
    assert channel.qos.can_consume()
    assert index.scores([message.delivery_tag]) != [None]


def test_the_channel_stays_as_it_was(connection):
    """Its own connections may wait for as long as they like."""
    channel = connection.default_channel
    assert has_index(channel)
    before = {
        name: getattr(channel, name, None) for name in ("socket_timeout", "_sentinel_manager")
    }
    index = UnackedIndex(channel, timeout=3)
    assert {name: getattr(channel, name, None) for name in before} == before
    assert index.client.connection_pool is not channel.pool
    assert index.client.connection_pool.connection_kwargs["socket_timeout"] == 3
    index.close()


def test_a_connection_without_an_index():
    """Where the app has switched off kombu's acknowledgements, or has another broker."""
    with Connection("memory://") as connection:
        assert not has_index(connection.default_channel)


def test_what_could_not_be_acknowledged_is_later(connection, index):
    """As where all connections of the channel are in use: on gevent ten calls that end at once."""
    unsent = Unsent()
    on_each_qos(connection, unsent.join)
    first, second, third = deliver(connection, 3)
    channel = first.channel
    used = [channel.pool.get_connection(*_COMMAND_NAME) for _ in range(channel.max_connections)]
    first.ack()
    second.reject()
    third.requeue()  # comes again as it is not renewed any more
    for each in used:
        channel.pool.release(each)
    assert messages_in_hand(connection.transport) == {}
    tags = [each.delivery_tag for each in (first, second, third)]
    assert None not in index.scores(tags)
    assert unsent
    unsent.send(index)
    assert not unsent
    found = index.scores(tags)
    assert found[:2] == [None, None]
    assert found[2] is not None
    assert list(channel.client.execute_command("HKEYS", index._messages)) == [tags[2].encode()]


def test_kombu_hands_out_again_what_is_old_when_it_is_asked_to_look(connection):
    """By the method that is replaced, called as it is called."""
    looks = []
    sweeping = Sweeping(lambda: looks.append(1) or True, {})
    on_each_qos(connection, sweeping.join)
    (message,) = deliver(connection)
    channel = message.channel
    assert isinstance(channel.qos, QoS)
    time.sleep(1.1)
    connection.transport.cycle.maybe_restore_messages()
    assert looks
    again = connection.SimpleQueue("long").get(timeout=5)
    assert again.delivery_tag == message.delivery_tag
    assert again.headers.get("redelivered") or again.delivery_info["redelivered"]
