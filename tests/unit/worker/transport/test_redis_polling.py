"""Turns of the event loop, with kombu's own transport and loop and a real server."""

from __future__ import annotations

import gc
import queue
from collections import Counter
from contextlib import suppress

import pytest
from kombu import Connection, Consumer, Exchange, Queue
from kombu.asynchronous import Hub
from kombu.transport.redis import MultiChannelPoller

from celery_budgets.worker.transport import redis_polling
from celery_budgets.worker.transport.redis_polling import reduce_polling
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(
    not hasattr(MultiChannelPoller(), "_paused_brpop"), reason="kombu before 5.7 is left alone"
)
LANES = ("critic", "file_read", "file_write")


class Turned:
    """An event loop that is turned by hand, and a connection with a channel for each lane."""

    def __init__(self, url):
        self.hub, self.got, self.registered, self.polled = Hub(), [], Counter(), Counter()
        self.connection = reduce_polling(Connection(url))
        self.transport = self.connection.transport
        self._spy(self.hub.poller, "register", self.registered)
        self.transport.register_with_event_loop(self.connection.connection, self.hub)
        self._spy(self.transport.cycle, "_register_BRPOP", self.polled)
        self.producer = self.connection.Producer()
        self.consumers = {lane: self._consume(lane) for lane in LANES}

    def _spy(self, owner, name, counter):
        was = getattr(owner, name)

        def noted(first, *rest):
            counter[first if isinstance(first, int) else id(first)] += 1
            return was(first, *rest)

        setattr(owner, name, noted)

    def _consume(self, lane):
        consumer = Consumer(self.connection.channel(), [Queue(lane)], on_message=self.got.append)
        consumer.qos(prefetch_count=1)
        consumer.consume()
        return consumer

    def turn(self):
        """Mirrors kombu.asynchronous.hub.Hub.create_loop, without its timers."""
        for tick in list(self.hub.on_tick):
            tick()
        for fd, _ in self.hub.poller.poll(0.02) or ():
            callback, arguments = self.hub.readers[fd]
            with suppress(queue.Empty):
                callback(*arguments)

    def send(self, lane):
        self.producer.publish(lane, routing_key=lane)

    def gets(self, *lanes):
        """Turn until these messages are in hand, and acknowledge them."""
        wait_until(lambda: self.turn() or len(self.got) >= len(lanes), f"{lanes} arrive")
        assert sorted(message.payload for message in self.got) == sorted(lanes)
        while self.got:
            self.got.pop().ack()

    def socket_of(self, lane):
        return self.consumers[lane].channel.client.connection._sock


@pytest.fixture
def retold_seconds():
    """Longer than a test, so that no socket is told anew where a test does not ask for it."""
    return 60.0


@pytest.fixture
def turned(redis_url, monkeypatch, retold_seconds):
    monkeypatch.setattr(redis_polling, "RETOLD_SECONDS", retold_seconds)
    gc.collect()  # else sockets of tests before are closed meanwhile, and their numbers free
    made = Turned(redis_url)
    made.turn()
    yield made
    made.connection.close()
    made.hub.close()


def test_a_channel_that_waits_costs_a_turn_nothing(turned):
    """Neither a look of kombu's nor a system call; before: one each, in every turn."""
    turned.turn()
    for counter in (turned.registered, turned.polled):
        counter.clear()
    for _ in range(5):
        turned.turn()
    assert not turned.registered
    assert not turned.polled


def test_every_lane_gets_its_messages(turned):
    for _ in range(3):
        for lane in LANES:
            turned.send(lane)
        turned.gets(*LANES)


def test_a_full_lane_gets_more_once_it_has_room(turned):
    for _ in range(2):
        turned.send("critic")
    wait_until(lambda: turned.turn() or turned.got, "the first one")
    for _ in range(5):
        turned.turn()
    (first,) = turned.got
    turned.got.clear()
    first.ack()
    turned.gets("critic")


@pytest.mark.parametrize("waits", [True, False])
def test_a_connection_that_was_closed_is_made_and_read_anew(turned, waits):
    """Also where the new socket has the number of the old one."""
    lane = "critic"
    before = turned.socket_of(lane)
    number = before.fileno()
    if not waits:
        turned.send(lane)
        turned.gets(lane)  # the next BRPOP is sent by the next turn
    turned.consumers[lane].channel.client.connection.disconnect()
    turned.turn()
    after = turned.socket_of(lane)
    assert after is not before
    assert after.fileno() == number, "else this test shows less than it says"
    turned.send(lane)
    turned.gets(lane)


@pytest.mark.parametrize("reads", ["nobody", "another"])
def test_a_socket_that_the_loop_does_not_read_is_read_again(turned, reads):
    """As what had its number before may have left the loop without a word."""
    number = turned.socket_of("critic").fileno()
    turned.hub.remove_reader(number)
    if reads == "another":
        turned.hub.add_reader(number, print, "the reader of a pipe that is closed by now")
    turned.send("critic")
    turned.gets("critic")


@pytest.mark.parametrize("retold_seconds", [redis_polling.RETOLD_SECONDS])
def test_what_a_child_took_out_of_the_shared_epoll_is_back_in_a_second(turned):
    """As one that starts a worker in a task, whose loop is the inherited one (Hub.close)."""
    turned.turn()
    turned.hub.poller.unregister(turned.socket_of("critic").fileno())
    turned.send("critic")
    turned.gets("critic")


def test_a_channel_that_closes_in_a_turn_is_gone(turned):
    """Whatever kombu's visit takes out or adds stays so, of channels that wait too or not."""
    cycle = turned.transport.cycle
    closes = turned.consumers["critic"].channel
    closes._in_poll = None
    before = set(cycle._channels)
    poll = cycle._register_BRPOP

    def close(channel):
        poll(channel)
        cycle.discard(channel)

    cycle._register_BRPOP = close
    with suppress(RuntimeError):  # kombu's own loop, over a set that changes
        turned.turn()
    assert cycle._channels == before - {closes}


def test_a_channel_that_kombu_has_no_socket_of_is_registered_anew(turned):
    """As after a reconnect of one that was full (MultiChannelPoller._discard_paused_brpop)."""
    channel = turned.consumers["critic"].channel
    known = turned.transport.cycle._chan_to_sock
    del known[channel, channel.client, "BRPOP"]
    turned.turn()
    assert known[channel, channel.client, "BRPOP"] is turned.socket_of("critic")


def test_a_connection_that_lost_its_socket_unnoticed_gets_another(turned):
    channel = turned.consumers["critic"].channel
    lost, channel.client.connection._sock = channel.client.connection._sock, None
    turned.turn()
    assert turned.socket_of("critic") is not None
    lost.close()


def test_a_channel_that_waits_can_subscribe_too(turned):
    """As one with a broadcast queue beside its lane's."""
    news = Exchange("news", type="fanout")
    consumer = turned.consumers["critic"]
    consumer.add_queue(Queue("a reader", news))
    consumer.consume()
    turned.turn()
    assert consumer.channel.subclient.subscribed, "not only once its BRPOP has returned"
    turned.producer.publish("extra", exchange=news)
    turned.gets("extra")


def test_a_new_loop_is_told_of_everything(turned):
    """Celery empties its loop when it connects anew."""
    turned.hub.reset()
    turned.transport.register_with_event_loop(turned.connection.connection, turned.hub)
    for lane in LANES:
        turned.send(lane)
    turned.gets(*LANES)


def test_a_kombu_that_is_not_known_is_left_alone():
    """Before 5.7 a lost socket stays in the loop, which has to be told of the next one."""
    connection = Connection("redis://")
    del connection.transport.cycle._paused_brpop
    reduce_polling(connection)
    assert "register_with_event_loop" not in vars(connection.transport)


def test_another_transport_is_left_alone():
    connection = Connection("memory://")
    before = vars(connection.transport).copy()
    assert reduce_polling(connection) is connection
    assert vars(connection.transport) == before
