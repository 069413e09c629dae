"""A channel for each lane: what is consumed where, and how much of it, on kombu's own transport."""

from __future__ import annotations

from bisect import bisect
from types import SimpleNamespace

import pytest
from celery import Celery
from kombu import Connection, Exchange, Producer, Queue

from celery_budgets.model.priority import Broker, Priority, level_of, number_of
from celery_budgets.worker.lanes.lane_consumer import LaneConsumer
from celery_budgets.worker.lanes.low_priority import AgingSteps
from celery_budgets.worker.lanes.queue_pauses import QueuePauses

COUNTS = {"a": 2, "b": 1}


def queue(name):
    return Queue(name, Exchange(name), routing_key=name)


@pytest.fixture
def connection(request):
    with Connection("memory://", transport_options={"polling_interval": 0.01}) as connection:
        delete_queues(connection)  # those of this name that other files have left in this process
        yield connection
        delete_queues(connection)


def delete_queues(connection):
    for name in ("a", "b", "plain"):
        connection.default_channel.queue_delete(name)


@pytest.fixture
def consumer(connection):
    """Consumes two lanes and a queue of no lane; notes what it receives."""
    counts = dict(COUNTS)
    consumer = LaneConsumer(
        connection,
        queues=[queue("a"), queue("plain"), queue("b")],
        prefetch=counts.get,
        apply_global=True,
        accept=["json"],
    )
    consumer.counts, consumer.received = counts, []
    consumer.on_message = consumer.received.append
    consumer.consume()
    return consumer


def send(connection, name, count):
    with connection.channel() as channel:
        for number in range(count):
            Producer(channel).publish(number, exchange=name, routing_key=name, serializer="json")


def drain(connection, consumer):
    """Take what the broker gives; return how much of each queue is in hand."""
    try:
        while True:
            connection.drain_events(timeout=0.1)
    except TimeoutError:
        pass
    got = [message.delivery_info["routing_key"] for message in consumer.received]
    return {name: got.count(name) for name in sorted(set(got))}


def test_each_lane_is_sent_as_much_as_it_may_have_and_none_waits_for_another(connection, consumer):
    send(connection, "a", 5)
    send(connection, "b", 5)
    send(connection, "plain", 3)
    assert drain(connection, consumer) == {"a": 2, "b": 1, "plain": 3}
    next(m for m in consumer.received if m.delivery_info["routing_key"] == "b").ack()
    assert drain(connection, consumer) == {"a": 2, "b": 2, "plain": 3}


def test_a_count_that_has_changed_is_told_to_its_channel(connection, consumer):
    send(connection, "a", 5)
    send(connection, "b", 5)
    drain(connection, consumer)
    consumer.counts["b"] = 3
    consumer.recount("b")
    consumer.recount("plain")
    assert drain(connection, consumer) == {"a": 2, "b": 3}


def test_one_queue_is_cancelled_and_added_again(connection, consumer):
    consumer.cancel_by_queue("a")
    consumer.cancel_by_queue("plain")
    assert not consumer.consuming_from("a")
    assert not consumer.consuming_from(queue("plain"))
    send(connection, "a", 1)
    send(connection, "plain", 1)
    send(connection, "b", 1)
    assert drain(connection, consumer) == {"b": 1}
    consumer.add_queue(queue("a"))
    consumer.add_queue(queue("plain"))
    consumer.consume()
    assert drain(connection, consumer) == {"a": 1, "b": 1, "plain": 1}
    assert {q.name for q in consumer.queues} == {"a", "b", "plain"}


def test_cancel_and_purge_reach_every_channel(connection, consumer):
    consumer.cancel()
    send(connection, "a", 2)
    send(connection, "plain", 1)
    assert drain(connection, consumer) == {}
    assert consumer.purge() == 3


def test_what_is_not_consumed_now_is_purged_too(connection):
    send_to = queue("b")(connection.default_channel)
    send_to.declare()
    consumer = LaneConsumer(
        connection, queues=[queue("a")], prefetch=COUNTS.get, apply_global=True,
        withheld=lambda: [queue("b")],
    )  # fmt: skip
    send(connection, "b", 2)
    assert consumer.purge() == 2


@pytest.mark.parametrize(("count", "sent"), [(70_000, 0), (-1, 0), (65_535, 65_535)])
def test_more_than_amqp_can_say_is_no_bound(connection, consumer, count, sent):
    consumer.counts["a"] = count
    consumer.recount("a")
    assert consumer._lanes["a"].channel.qos.prefetch_count == sent


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://h/0", Broker.REDIS),
        (["rediss://h/0", "rediss://g/0"], Broker.REDIS),
        ("sentinel://h;sentinel://g", Broker.REDIS),
        (("amqp://a", "amqp://b"), Broker.RABBITMQ),
        ("pyamqp://a", Broker.RABBITMQ),
        (None, Broker.RABBITMQ),
        ("sqs://", None),
    ],
)
def test_the_kind_of_broker_is_told_by_its_first_address(url, broker):
    assert Broker.at(url) is broker


@pytest.mark.parametrize("broker", list(Broker))
def test_a_word_that_a_sender_has_left_as_it_is_counts_as_that(broker):
    assert [level_of(word, broker) for word in Priority] == list(Priority)
    assert level_of("urgent", broker) is Priority.NORMAL
    assert [level_of(number_of(word, broker), broker) for word in Priority] == list(Priority)


def test_the_steps_of_a_channel_stay_sorted_where_they_are_searched():
    due = []
    steps = AgingSteps([0, 3, 6, 9], lambda: bool(due))
    assert list(steps) == [0, 3, 6, 9]
    due.append(True)
    assert list(steps) == [9, 0, 3, 6]
    # kombu.transport.redis.Channel.priority
    assert [steps[bisect(steps, number) - 1] for number in (0, 2, 3, 8, 9)] == [0, 0, 3, 6, 9]


class Consumer:
    """What QueuePauses needs of a Celery consumer."""

    def __init__(self):
        self.consumed = {"a": None, "b": None}
        queues = SimpleNamespace(consume_from=self.consumed, deselect=self.consumed.pop)
        self.app = SimpleNamespace(amqp=SimpleNamespace(queues=queues))
        self.task_consumer = object()

    def cancel_task_queue(self, name):
        del self.consumed[name]

    def add_task_queue(self, name):
        self.consumed[name] = None


def test_a_queue_is_consumed_again_when_the_last_reason_is_gone():
    consumer = Consumer()
    queue_pauses = QueuePauses(consumer)
    queue_pauses.pause(["a", "b"], "memory")
    queue_pauses.pause(["a"], "operator")
    queue_pauses.resume("memory")
    assert list(consumer.consumed) == ["b"]
    queue_pauses.resume("operator", ["a", "b"])
    assert sorted(consumer.consumed) == ["a", "b"]
    assert queue_pauses.paused == {}


def test_a_queue_that_is_added_again_is_among_those_that_are_consumed():
    """As Celery does it since 5.7: before, it was not paused a second time."""
    with Celery(set_as_current=False, broker="memory://") as app:
        app.conf.task_queues = [queue("a"), queue("b")]
        app.amqp.queues.select(["a"])
        added = []
        consumer = SimpleNamespace(app=app, add_task_queue=added.append)
        QueuePauses(consumer).attach()
        app.amqp.queues.deselect("a")
        consumer.add_task_queue("a")
        assert set(app.amqp.queues.consume_from) == {"a"}
        consumer.add_task_queue("unknown")  # Celery makes and selects it
        assert added == ["a", "unknown"]


def test_what_others_change_is_drift_and_what_is_paused_is_not():
    consumer = Consumer()
    queue_pauses = QueuePauses(consumer)
    queue_pauses.pause(["a"], "operator")
    assert queue_pauses.drift() == {"added": [], "cancelled": []}
    del consumer.consumed["b"]
    consumer.consumed["c"] = None
    assert queue_pauses.drift() == {"added": ["c"], "cancelled": ["b"]}
