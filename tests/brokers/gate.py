"""What the tests of the gate share: a real fat neighbour, and a look at queue and worker."""

from __future__ import annotations

from kombu import Connection

from celery_budgets.units import MIB
from tests.support.waiting import wait_until

APP = "tests.worker.memory_app"
#: Limit of a whole worker: above what it takes with four idle processes, below one fat call.
FAT = str(300 * MIB)
FAT_CALL = 300 * MIB


def gate_of(app, worker):
    """Return the state of the gate, as the worker itself tells it; ``None`` without an answer."""
    replies = app.app.control.broadcast("budgets", reply=True, timeout=1.0) or []
    answers = {name: answer for reply in replies for name, answer in reply.items()}
    return next((answer["gate"] for name, answer in answers.items() if worker.name in name), None)


def waiting_in(app, queue):
    """Return the messages in a queue that no worker has."""
    with Connection(app.app.conf.broker_url) as connection, connection.channel() as channel:
        return app.app.amqp.queues[queue](channel).queue_declare().message_count


def close_gate(app, worker, key="hog"):
    """Make a neighbouring call of the worker fat, wait until the gate is closed; return it."""
    app.redis().delete(f"release:{key}", f"has:{key}")
    hog = app.hold.delay(FAT_CALL, key)
    before = worker.log.count("budgets.gate_closed")
    wait_until(
        lambda: worker.log.count("budgets.gate_closed") > before,
        "the gate closes", timeout=20, detail=worker.tail,
    )  # fmt: skip
    return hog


def open_gate(app, worker, hog, key="hog"):
    """Let the fat call go, and wait until the gate is open."""
    before = worker.log.count("budgets.gate_opened")
    app.redis().set(f"release:{key}", 1)
    wait_until(hog.ready, "the fat call ends", timeout=20, detail=worker.tail)
    wait_until(
        lambda: worker.log.count("budgets.gate_opened") > before,
        "the gate opens", timeout=20, detail=worker.tail,
    )  # fmt: skip
