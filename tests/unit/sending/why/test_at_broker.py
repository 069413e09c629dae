"""Where the message of a call stands in the lists of a Redis, and that nothing is taken out."""

from __future__ import annotations

import pytest
from celery import Celery
from kombu import Connection

from celery_budgets import Budgets, Lane
from celery_budgets.sending import sent
from celery_budgets.sending.why import at_broker
from celery_budgets.sending.why.at_broker import look


@pytest.fixture
def app(redis_url):
    made = Celery("found", broker=redis_url, set_as_current=False)
    made.conf.budgets_priorities = True
    made.conf.broker_transport_options = {"global_keyprefix": "ours-"}
    Budgets(made, lanes=[Lane("critic", 1), Lane("quick", 1)])
    yield made
    made.close()


def send(app, count, queue="critic", **options):
    return [app.send_task("any", queue=queue, **options).id for _ in range(count)]


def found(app, task_id, *queues):
    with app.connection_for_write() as connection:
        return look(connection, queues or ("quick", "critic"), task_id)


def test_the_position_is_exact(app):
    """The first that was sent is the first to be taken; the id is that of the message alone."""
    ids = send(app, 5)
    send(app, 1, root_id=ids[3], parent_id=ids[3])
    for position, task_id in enumerate(ids):
        there = found(app, task_id)
        assert (there.message.queue, there.message.position) == ("critic", position)
        assert there.message.headers["id"] == task_id
    assert found(app, ids[0]).counts == {"quick": 0, "critic": 6}


def test_higher_priorities_are_before_it(app):
    """Whenever they were sent: kombu keeps a list for each."""
    (task_id,) = send(app, 1, priority=9)
    send(app, 3, priority=3)
    send(app, 2, priority=0)
    assert found(app, task_id).message.position == 5


def test_in_a_long_queue(app, monkeypatch):
    """It is read in parts, which overlap because some are taken meanwhile."""
    monkeypatch.setattr(at_broker, "FIRST", 2)
    monkeypatch.setattr(at_broker, "CHUNK", 4)
    monkeypatch.setattr(at_broker, "OVERLAP", 4)
    ids = send(app, 20)
    assert [found(app, task_id).message.position for task_id in ids] == list(range(20))


def test_long_messages_are_read_a_few_at_once(app, monkeypatch):
    """And not more than a process can take: a call may have megabytes of arguments."""
    monkeypatch.setattr(at_broker, "MOST_BYTES", 50_000)
    monkeypatch.setattr(at_broker, "CHUNK_BYTES", 20_000)
    ids = [app.send_task("any", ("x" * 10_000,), queue="critic").id for _ in range(40)]
    assert found(app, ids[3]).message.position == 3
    there = found(app, ids[30])
    assert (there.message, there.searched) == (None, False)


def test_it_stops_where_there_are_too_many(app, monkeypatch):
    """And says that not all were read."""
    monkeypatch.setattr(at_broker, "MOST", 5)
    ids = send(app, 10)
    assert found(app, ids[2]).searched
    there = found(app, ids[9])
    assert (there.message, there.searched, there.counts["critic"]) == (None, False, 10)


def test_nobody_has_it(app):
    """All lists were read, and none has it."""
    send(app, 3)
    there = found(app, "never-sent")
    assert (there.message, there.searched, there.delivered) == (None, True, False)


def test_it_is_in_a_hand(app, redis_url):
    """The broker has noted that it was handed out, and not acknowledged."""
    (task_id,) = send(app, 1)
    with app.connection_for_read() as connection, connection.SimpleQueue("critic") as queue:
        message = queue.get(timeout=5)
        assert found(app, task_id).delivered
        assert not found(app, "never-sent").delivered
        message.requeue()
    assert found(app, task_id).message.position == 0


def test_other_transports_tell_nothing():
    """No error either."""
    with Connection("memory://") as connection:
        there = look(connection, ["critic"], "4f1c")
    assert (there.message, there.searched, there.counts) == (None, False, {})


def test_this_process_remembers_what_it_has_sent(app):
    """The queue, and when; of a call with an ETA also when it is due."""
    first, second = send(app, 2)
    (later,) = send(app, 1, countdown=60)
    assert sent.sent(first).queue == "critic"
    assert sent.sent(first).sent_at == sent.sent(first).due_at <= sent.sent(second).sent_at
    assert sent.sent(later).due_at == pytest.approx(sent.sent(later).sent_at + 60, abs=5)
    assert [each.task_id for each in sent.of_queue("critic")][-3:] == [first, second, later]
    assert sent.sent("never-sent") is None
