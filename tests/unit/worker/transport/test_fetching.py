"""Our channel on a real server, beside kombu's own: what it moves, in which order, and how safe."""

from __future__ import annotations

import json
import logging
import socket
import time
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import Connection, Consumer, Queue
from kombu.asynchronous import Hub
from kombu.transport import redis as kombu_redis
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from celery_budgets.worker.transport.commands import Commands
from celery_budgets.worker.transport.connecting import connect_by
from celery_budgets.worker.transport.fetching import FetchingChannel
from celery_budgets.worker.transport.holder import ANYBODY, Holder
from celery_budgets.worker.transport.leftovers import Leftovers
from celery_budgets.worker.transport.redis_transport import fetch_atomically
from celery_budgets.worker.transport.scripts import FETCH
from tests.support.waiting import wait_until


class Consumed:
    """A connection of ours that consumes one queue without an event loop."""

    def __init__(self, url, leftovers=None, prefetch=0, queue="lane", no_ack=False, **options):
        self.leftovers = Leftovers() if leftovers is None else leftovers
        plain = Connection(url, transport_options=options)
        self.connection = fetch_atomically(plain, self.leftovers)
        self.channel = self.connection.channel()
        # Else these tests would show kombu's own way.
        assert self.channel.runs_scripts is ("narrow" not in url)
        self.messages = []
        self.consumer = Consumer(
            self.channel, [Queue(queue)], on_message=self.messages.append, no_ack=no_ack
        )
        self.consumer.qos(prefetch_count=prefetch)
        self.consumer.consume()

    def drain(self, seconds=0.2):
        """Go on until nothing has come for *seconds*."""
        with suppress(socket.timeout):
            while True:
                self.connection.drain_events(timeout=seconds)

    def wait_for(self, count, seconds=5):
        while len(self.messages) < count:
            self.connection.drain_events(timeout=seconds)
        return [message.payload for message in self.messages]


@contextmanager
def consuming(url, **options):
    consumed = Consumed(url, **options)
    try:
        yield consumed
    finally:
        consumed.connection.close()


def send(url, bodies, queue="lane", priority=None, **options):
    """Send as everybody does: by kombu's own transport."""
    with Connection(url, transport_options=options) as connection:
        producer = connection.Producer()
        for body in bodies:
            producer.publish(body, routing_key=queue, exchange="", priority=priority)


@pytest.fixture
def redis(redis_url):
    with Redis.from_url(redis_url) as client:
        yield client


def waiting(redis, queue="lane"):
    """The bodies that wait in *queue*, the next one first, by kombu's own reading."""
    return [json.loads(text) for text in reversed(redis.lrange(queue, 0, -1))]


def test_a_message_goes_from_its_queue_into_unacked_as_kombu_has_it(redis_url, redis):
    send(redis_url, ["first", "second"])
    texts = redis.lrange("lane", 0, -1)
    with consuming(redis_url, prefetch=2) as consumed:
        assert consumed.wait_for(2) == ["first", "second"]
        assert not redis.exists("lane")
        tags = [message.delivery_tag for message in consumed.messages]
        assert [redis.hget("unacked", tag) for tag in tags] == [
            b"[" + text + b', "", "lane"]' for text in reversed(texts)
        ], "to the letter"
        assert set(redis.zrange("unacked_index", 0, -1)) == {tag.encode() for tag in tags}
        for message in consumed.messages:
            message.ack()
        assert not redis.exists("unacked", "unacked_index")


def test_kombu_restores_what_a_dead_worker_of_ours_held(redis_url, redis):
    send(redis_url, ["first"], priority=3)
    dead = Consumed(redis_url, prefetch=1)
    dead.wait_for(1)
    with Connection(redis_url, transport_options={"visibility_timeout": 0}) as connection:
        channel = connection.channel()
        assert type(channel) is kombu_redis.Channel
        channel.qos.restore_visible(num=10, interval=1)
    (message,) = waiting(redis, "lane\x06\x163")
    assert message["headers"]["redelivered"]
    assert not redis.exists("unacked", "unacked_index")
    dead.connection.close()
    assert len(waiting(redis, "lane\x06\x163")) == 1, "and is not restored twice"


def test_we_restore_what_a_dead_plain_worker_held(redis_url, redis):
    with Connection(redis_url) as plain:
        queue = plain.SimpleQueue("direct")  # of an exchange of its own
        queue.put("first")
        queue.get(timeout=5)
        assert redis.hlen("unacked") == 1
        with consuming(redis_url, visibility_timeout=0) as consumed:
            consumed.channel.qos.restore_visible(num=10, interval=1)
        assert redis.llen("direct") == 1
        assert not redis.exists("unacked", "unacked_index")
        queue.consumer.channel.qos._delivered.clear()


def test_messages_come_by_priority_and_in_order(redis_url):
    for priority in (9, 3, 0):
        send(redis_url, [f"{priority}-{number}" for number in range(3)], priority=priority)
    with consuming(redis_url) as consumed:
        expected = [f"{priority}-{number}" for priority in (0, 3, 9) for number in range(3)]
        assert consumed.wait_for(9) == expected


def test_no_more_come_than_there_is_room_for(redis_url, redis):
    send(redis_url, range(10))
    with consuming(redis_url, prefetch=3) as consumed:
        consumed.drain()
        assert [message.payload for message in consumed.messages] == [0, 1, 2]
        assert redis.llen("lane") == 7
        consumed.messages[1].ack()
        assert consumed.wait_for(4) == [0, 1, 2, 3]


@pytest.mark.parametrize("priority", [0, 6])
def test_a_message_that_is_waited_for_comes_at_once(redis_url, redis, priority):
    with consuming(redis_url, prefetch=10, polling_interval=30) as consumed:
        consumed.channel.waits.watch([6])
        consumed.drain()
        for number in range(3):
            send(redis_url, [number], priority=priority)
            assert consumed.wait_for(number + 1, seconds=5)[-1] == number


def test_a_list_that_nobody_waits_on_is_looked_into_each_second(redis_url):
    with consuming(redis_url, prefetch=10) as consumed:
        consumed.drain()
        send(redis_url, ["urgent"], priority=9)
        assert consumed.wait_for(1, seconds=5) == ["urgent"]
        assert 9 in consumed.channel.waits.steps, "from now on it is waited on"


def test_waiting_takes_nothing_out_and_keeps_the_order(redis_url, redis):
    """Of a worker that waits and is killed when messages come nothing is missing."""
    with consuming(redis_url, prefetch=1) as consumed:
        consumed.drain()
        send(redis_url, range(5))
        assert [message["properties"]["delivery_tag"] for message in waiting(redis)]
        assert redis.llen("lane") == 5
        consumed.wait_for(1)
        assert [message.payload for message in consumed.messages] == [0]


def test_what_is_in_hand_goes_back_to_the_head_in_its_order(redis_url, redis):
    send(redis_url, range(6))
    before = [message["properties"]["delivery_tag"] for message in waiting(redis)]
    with consuming(redis_url, prefetch=4) as consumed:
        consumed.wait_for(4)
        consumed.messages[0].ack()
    after = waiting(redis)
    assert [message["properties"]["delivery_tag"] for message in after] == before[1:]
    assert [message["headers"].get("redelivered") for message in after] == [True] * 3 + [None] * 2
    assert not redis.exists("unacked", "unacked_index")


def test_more_than_one_step_takes_go_back_in_order(redis_url, redis):
    send(redis_url, range(250))
    before = [message["properties"]["delivery_tag"] for message in waiting(redis)]
    with consuming(redis_url) as consumed:
        consumed.wait_for(250)
    assert [message["properties"]["delivery_tag"] for message in waiting(redis)] == before


def test_a_queue_that_is_cancelled_while_its_messages_come_gets_them_back(redis_url, redis):
    send(redis_url, range(3))
    with consuming(redis_url, prefetch=3) as consumed:
        consumed.channel.turn()  # asks for them
        consumed.consumer.cancel()
        consumed.drain()
        assert not consumed.messages
        assert [json.loads(message["headers"].get("x", "1")) for message in waiting(redis)]
        assert redis.llen("lane") == 3
        assert not redis.exists("unacked")


@pytest.mark.parametrize(
    "text",
    [
        b"no JSON",
        b"[]",
        b'{"body": "x"}',
        b'"delivery_tag": "x"',
        b"\xff",
        b'{"body": "x", "properties": {"delivery_tag": "x", "body_encoding": "rot"}}',
    ],
)
def test_what_is_no_message_is_put_aside_and_keeps_nobody_waiting(redis_url, redis, text, caplog):
    redis.lpush("lane", text)
    send(redis_url, ["after"])
    with (
        consuming(redis_url, prefetch=1) as consumed,
        caplog.at_level(logging.ERROR, "celery_budgets"),
    ):
        assert consumed.wait_for(1) == ["after"]
        assert redis.lrange("lane.undecodable", 0, -1) == [text]
        assert redis.hlen("unacked") == 1
    assert "budgets.message_undecodable list=lane" in caplog.text


def test_keys_have_the_global_prefix(redis_url, redis):
    options = {"global_keyprefix": "mine:"}
    send(redis_url, ["first", "second"], **options)
    with consuming(redis_url, prefetch=1, **options) as consumed:
        consumed.wait_for(1)
        assert redis.hlen("mine:unacked") == redis.zcard("mine:unacked_index") == 1
        consumed.messages[0].ack()
        assert consumed.wait_for(2) == ["first", "second"]
    assert redis.llen("mine:lane") == 1
    assert not {key for key in redis.keys("*") if not key.startswith(b"mine:")}


def test_a_queue_without_acknowledgements_goes_kombus_way(redis_url, redis):
    send(redis_url, ["answer"])
    with consuming(redis_url, no_ack=True) as consumed:
        assert consumed.wait_for(1) == ["answer"]
        assert consumed.channel.pops
        assert not redis.exists("unacked", "lane")


def test_a_restarted_server_has_forgotten_the_script(redis_url, redis):
    with consuming(redis_url, prefetch=1) as consumed:
        redis.script_flush()
        send(redis_url, ["first"])
        assert consumed.wait_for(1) == ["first"]


@pytest.mark.parametrize("denied", ["-evalsha", "-blmove"])
def test_a_user_without_scripts_gets_kombus_way_and_is_told(redis_url, redis, denied, caplog):
    redis.acl_setuser("narrow", True, passwords=["+x"], keys="*", channels="*",
                      categories=["+@all"], commands=[denied])  # fmt: skip
    url = f"redis://narrow:x@{redis_url.rpartition('@')[2]}"
    send(redis_url, ["first", "second"])
    with caplog.at_level(logging.WARNING, "celery_budgets"), consuming(url, prefetch=2) as consumed:
        assert consumed.wait_for(2) == ["first", "second"]
        assert consumed.channel.pops
        consumed.messages[0].ack()
        assert redis.hlen("unacked") == redis.zcard("unacked_index") == 1
    assert not redis.exists("unacked", "unacked_index")
    assert redis.llen("lane") == 1
    assert "budgets.redis_transport_refused" in caplog.text
    redis.acl_deluser("narrow")


def test_acknowledgements_of_a_turn_go_with_the_next_fetch(redis_url, redis):
    send(redis_url, range(4))
    with consuming(redis_url, prefetch=2) as consumed:
        consumed.wait_for(2)
        consumed.connection.transport.in_event_loop = True
        for message in consumed.messages:
            message.ack()
        assert redis.hlen("unacked") == 2, "not yet"
        calls = redis.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert consumed.wait_for(4) == [0, 1, 2, 3]
        assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] == calls + 1
        assert redis.hlen("unacked") == 2


def test_what_was_acknowledged_last_is_sent_when_the_channel_closes(redis_url, redis):
    send(redis_url, ["first"])
    with consuming(redis_url, prefetch=1) as consumed:
        consumed.wait_for(1)
        consumed.connection.transport.in_event_loop = True
        consumed.messages[0].ack()
    assert not redis.exists("unacked", "unacked_index", "lane")


def test_a_reply_that_is_overdue_ends_its_connection_alone(redis_url, caplog):
    """And what was sent on it is sent again; one that is there is read instead."""
    if not hasattr(kombu_redis, "_socket_readable"):
        pytest.skip("kombu looks for it since 5.7")
    send(redis_url, ["first"])
    with consuming(redis_url, prefetch=2) as consumed:
        consumed.wait_for(1)
        consumed.drain()
        (line,) = consumed.channel.waits
        wait_until(lambda: consumed.drain(0.05) or line.waits, "it waits")
        before = line.connection
        with caplog.at_level(logging.WARNING, "celery_budgets"):
            consumed.channel.drop_stale(line.sent_at + 1000)
        assert "budgets.redis_silent" in caplog.text
        assert not line.waits
        send(redis_url, ["second"])
        assert consumed.wait_for(2) == ["first", "second"]
        assert before is line.connection


def test_one_connection_is_too_few_to_wait_with(redis_url):
    send(redis_url, ["first"])
    with consuming(redis_url, prefetch=1, max_connections=1) as consumed:
        assert consumed.wait_for(1) == ["first"]
        assert consumed.channel.pops


def test_what_a_lost_connection_could_not_tell_the_next_one_does(redis_url, redis, monkeypatch):
    """Acknowledgements, and what is in hand; also what is acknowledged in between."""
    send(redis_url, range(4))
    lost = Consumed(redis_url, prefetch=3)
    lost.wait_for(3)
    lost.connection.transport.in_event_loop = True
    first, second, _ = lost.messages
    first.ack()

    def fails(*args):
        raise RedisConnectionError("away")

    with monkeypatch.context() as context:
        context.setattr(FetchingChannel, "ask", fails)
        lost.connection.close()
    assert redis.hlen("unacked") == 3
    second.ack()
    with consuming(redis_url, leftovers=lost.leftovers, prefetch=1) as after:
        assert not redis.exists("unacked") or redis.hlen("unacked") <= 1
        assert after.wait_for(1) == [2]
        after.messages[0].ack()
        assert after.wait_for(2) == [2, 3]


def test_what_runs_on_stays_noted_and_the_next_connection_settles_it(redis_url, redis):
    """What has not started goes back at once; one that ends in between is not forgotten."""
    send(redis_url, range(5))
    lost = Consumed(redis_url, prefetch=4)
    lost.wait_for(4)
    left = lost.leftovers
    left.reconnects = True
    lost.connection.close()
    left.reconnects = False
    assert redis.hlen("unacked") == 4
    left.carry(lost.messages[:3])
    lost.messages[2].ack()
    with consuming(redis_url, leftovers=left, prefetch=3) as after:
        assert redis.hlen("unacked") == redis.zcard("unacked_index") == 2
        assert after.wait_for(1) == [3], "there is room for one beside those that run"
        after.drain()
        assert len(after.messages) == 1
        assert after.messages[0].headers["redelivered"]
        lost.messages[0].ack()
        after.drain()
        assert after.wait_for(2) == [3, 4]
        assert redis.hlen("unacked") == 3
    assert redis.llen("lane") == 3, "of what runs when the worker stops, too"
    assert not redis.exists("unacked", "unacked_index")


def test_what_another_has_in_hand_by_now_is_not_settled(redis_url, redis):
    """Neither acknowledged nor handed back: its second run counts."""
    send(redis_url, range(3))
    stopped = Consumed(redis_url, prefetch=3)
    stopped.wait_for(3)
    with Connection(redis_url, transport_options={"visibility_timeout": 0}) as connection:
        connection.channel().qos.restore_visible(num=10, interval=1)
    with consuming(redis_url, prefetch=3) as other:
        other.wait_for(3)
        stopped.messages[0].ack()
        stopped.messages[1].reject(requeue=True)
        stopped.connection.close()
        assert redis.hlen("unacked") == redis.zcard("unacked_index") == 3
        assert not redis.exists("lane")
        for message in other.messages:
            message.ack()
    assert not redis.exists("unacked", "unacked_index", "lane")


def test_a_time_says_who_holds_a_delivery():
    holder, other = Holder(), Holder()
    other.number = (holder.number + 1) % 2048
    for moment in (holder.time(), holder.time() + 2**31 - 2**30):
        assert moment * 2**21 % 2048 == holder.number
        assert moment * 2**21 % 2048 != other.number
    assert abs(holder.time() - time.time()) < 0.1


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    headers=st.dictionaries(
        st.sampled_from(["delivery_tag", 'a"delivery_tag"', "b"]),
        st.recursive(
            st.text() | st.integers() | st.sampled_from(['"delivery_tag": "x"', "\\", '\\"']),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["delivery_tag", "x"]), inner, max_size=2)
            ),
            max_leaves=3,
        ),
        max_size=3,
    ),
    tag=st.text(min_size=1).filter(lambda text: text.isprintable()) | st.integers(0, 2**40),
    first=st.booleans(),
)
def test_redis_finds_the_tag_that_python_finds(redis, headers, tag, first):
    parts = {"headers": headers, "properties": {"delivery_tag": tag}}
    text = json.dumps(parts if first else dict(reversed(parts.items())))
    redis.flushdb()
    redis.lpush("lane", text)
    arguments = [0, ANYBODY, 1, 0, 0, ', "", "lane"]']
    found = redis.execute_command(
        *FETCH.call(["unacked", "unacked_index", "lane"], arguments, whole=True)
    )
    assert [found[1].decode(), found[2].decode()] == [str(tag), text]
    assert json.loads(redis.hget("unacked", str(tag)))[0] == parts


def test_kombu_is_built_as_we_build_on_it():
    """What else than by a failing test would be noticed late, at a new version of kombu."""
    channel = kombu_redis.Channel
    for name in ("_basic_cancel", "_brpop_start", "_brpop_read", "_poll_error", "_q_for_pri",
                 "_lookup", "_get_message_priority", "basic_consume", "close"):  # fmt: skip
        assert callable(getattr(channel, name)), name
    poller = kombu_redis.MultiChannelPoller()
    for name in ("_register", "_client_registered", "_register_BRPOP", "_register_LISTEN",
                 "_fd_to_chan", "_channels", "on_poll_start", "on_readable"):  # fmt: skip
        assert hasattr(poller, name), name
    qos = kombu_redis.QoS(None)
    qos._on_collect.cancel()
    assert qos._delivered == {}
    assert qos._dirty == set()
    assert {"restore_by_tag", "restore_unacked", "append", "ack"} <= vars(kombu_redis.QoS).keys()


def test_nothing_of_kombus_is_replaced_by_accident(redis_url):
    """Its channel has some 150 names: a new one of them may be one of ours."""
    with Connection(redis_url) as plain:
        theirs = set(dir(plain.channel()))
    with Connection(redis_url) as connection:
        channel = fetch_atomically(connection, Leftovers()).channel()
        ours = {name for part in (FetchingChannel, Commands) for name in vars(part)}
        made = vars(channel).keys() - theirs
    mirrored = {"QoS", "brpop_timeout", "basic_consume", "_basic_cancel", "_poll_error", "close"}
    replaced = {name for name in ours & theirs if not name.startswith("__")}
    assert replaced - {"brpop_timeout"} == mirrored - {"brpop_timeout"}
    assert {"_fetch", "waits", "_arrived", "_settled", "_hot", "_asked"} <= made


class _Worker:
    """What connect_by needs of a Celery consumer."""

    hub = None

    def __init__(self, url):
        self.app = self
        self._url = url

    def on_connection_error_after_connected(self, exc):
        """Celery's closes the channels."""

    def on_close(self):
        """Celery's drops what has not started."""

    def connection_for_read(self, heartbeat=None):
        return Connection(self._url)

    def ensure_connected(self, connection):
        return connection.ensure_connection(max_retries=1) and connection


@pytest.mark.parametrize(("setting", "fetches"), [("budgets", True), ("kombu", False)])
def test_the_setting_decides_whose_channel_it_is(redis_url, setting, fetches):
    worker = _Worker(redis_url)
    plain = worker.connection_for_read
    worker.app = type("App", (), {"connection_for_read": staticmethod(plain)})
    connect_by(worker, setting)
    with worker.connection_for_read() as connection:
        assert isinstance(connection.channel(), FetchingChannel) is fetches
        with connection.clone() as other:
            assert type(other.channel()) is kombu_redis.Channel, "of this connection alone"


def test_an_event_loop_gives_the_channel_its_turns(redis_url, redis):
    """A hub as a worker has it: what is sent comes, what is acknowledged goes."""
    hub = Hub()
    consumed = Consumed(redis_url, prefetch=2)
    connection = consumed.connection
    connection.transport.register_with_event_loop(connection.connection, hub)
    send(redis_url, range(20))
    done = []

    def settle():
        while consumed.messages:
            message = consumed.messages.pop(0)
            done.append(message.payload)
            message.ack()

    hub.on_tick.add(settle)
    for _ in range(200):
        hub.run_once()
        if len(done) == 20 and not redis.exists("unacked"):
            break
    assert done == list(range(20))
    assert not redis.exists("unacked", "unacked_index")
    consumed.connection.close()
    hub.close()
