"""Which cause follows from what workers, broker, result and this process know: tables."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from celery_budgets.model.headers import HEADER_WAITED_FOR
from celery_budgets.model.why import Cause, Why
from celery_budgets.sending.sent import Sent
from celery_budgets.sending.why.evidence import Aside, Ended, Evidence, LaneNow, Message, Stored
from celery_budgets.sending.why.position import estimated
from celery_budgets.sending.why.verdict import verdict

NOW = 1000.0
ID = "4f1c"


def lane(worker="w@h", **facts):
    """Lane critic on one worker: 3 of 3 slots taken, 1 call started per second."""
    given = {
        "queue": "critic", "paused": [], "paused_at": None, "gate": None, "active": 3, "limit": 3,
        "waiting": 0, "holders": "3 slots are taken by a", "rate": 1.0, "watermark": 900.0,
    }  # fmt: skip
    return LaneNow.of(worker, "critic", given | facts)


def evidence(*lanes, **facts):
    given = {
        "lane_of": {"critic": "critic", "other": "other"}, "lanes": lanes,
        "consumed": frozenset(each.queue for each in lanes),
        "answered": tuple(each.worker for each in lanes),
    }  # fmt: skip
    return Evidence(ID, NOW, **given | facts)


def has(cause, **facts):
    return Why(ID, Cause(cause), **facts)


def at_broker(position=4, **headers):
    return Message("critic", position, headers)


def iso(instant):
    return datetime.fromtimestamp(instant, UTC).isoformat()


def sent(at=950.0, queue="critic"):
    return Sent(ID, queue, at, at)


ASIDE = Aside("tenant", "acme", "critic", 960.0, 3)
PAUSED = {"paused": ["operator"], "paused_at": 990.0}
GATE = {"gate": [980.0, "max_worker_rss: 2 of 1 GiB"]}
RABBIT = {"counts": {"critic": 20, "other": 0}}
REDIS = {"counts": {"critic": 20}, "searched": True}


@pytest.mark.parametrize(
    ("known", "cause", "certain"),
    [
        # A worker has it; of two, the delivery that tells most.
        (evidence(in_hand=(has("lane"),)), "lane", True),
        (evidence(in_hand=(has("lane"), has("running"))), "running", True),
        (evidence(in_hand=(has("twin"), has("eta"))), "eta", True),
        (evidence(in_hand=(has("running", certain=False),)), "running", False),
        # Before what anyone remembers of an earlier call with the id.
        (evidence(in_hand=(has("eta"),), ended=(Ended("w@h", "failed", 990),)), "eta", True),
        # Its message is found: what its lane's workers do.
        (evidence(lane(), message=at_broker()), "at_broker", True),
        (evidence(message=at_broker()), "no_worker", True),
        (evidence(message=at_broker(), silent=("x@h",)), "no_worker", False),
        (evidence(lane(**PAUSED), message=at_broker()), "paused", True),
        (evidence(lane(**GATE), message=at_broker()), "memory", True),
        (evidence(lane(**GATE), lane("v@h"), message=at_broker()), "at_broker", True),
        (evidence(lane(**GATE), lane("v@h", **PAUSED), message=at_broker()), "paused", True),
        (evidence(lane(), message=at_broker(eta=iso(2000))), "at_broker", True),
        (evidence(lane(), message=at_broker(eta=iso(2000), retries=1)), "retry", True),
        (
            evidence(lane(), message=at_broker(eta=iso(2000), **{HEADER_WAITED_FOR: [1, 1]})),
            "twin", True,
        ),
        # Sent again with the id of one that has ended.
        (
            evidence(lane(), message=at_broker(), ended=(Ended("w@h", "succeeded", 990),)),
            "at_broker", True,
        ),
        # It waits aside, also where one attempt of it has ended.
        (evidence(lane(), aside=ASIDE), "limit", True),
        (evidence(lane(), aside=ASIDE, ended=(Ended("w@h", "retried", 990),)), "limit", True),
        (evidence(lane(), aside=ASIDE, message=at_broker()), "at_broker", True),
        (evidence(lane(), aside=ASIDE._replace(position=None)), "limit", False),
        (evidence(lane(), aside_unknown=True, sent=sent(), **RABBIT), "at_broker", False),
        # It has ended.
        (evidence(ended=(Ended("w@h", "failed", 990),)), "ended", True),
        (evidence(stored=Stored("SUCCESS", 990)), "ended", True),
        (evidence(stored=Stored("REVOKED", None)), "ended", True),
        (evidence(stored=Stored("PENDING", None)), "unknown", False),
        (evidence(stored=Stored("STARTED", None)), "unknown", False),
        (evidence(sent=sent(), ended=(Ended("w@h", "failed", 990),)), "ended", True),
        (
            evidence(lane(), sent=sent(995), ended=(Ended("w@h", "failed", 990),), **RABBIT),
            "at_broker", True,
        ),
        (
            evidence(
                lane(), sent=sent(989.9), sent_again=True,
                ended=(Ended("w@h", "memory_limit", 990),), **RABBIT,
            ),
            "at_broker", False,
        ),
        # RabbitMQ: by the time at which it was sent.
        (evidence(lane(), sent=sent(), **RABBIT), "at_broker", True),
        (evidence(lane(watermark=960.0), sent=sent(), **RABBIT), "unknown", False),
        (evidence(lane(watermark=None), sent=sent(), **RABBIT), "at_broker", True),
        (evidence(lane(), sent=sent(), silent=("x@h",), **RABBIT), "at_broker", False),
        (evidence(lane(), sent=sent(), priorities=True, **RABBIT), "at_broker", False),
        (evidence(sent=sent(), **RABBIT), "no_worker", True),
        (evidence(sent=sent(), consumers={"critic": 1}, **RABBIT), "at_broker", False),
        (evidence(lane(), sent=sent(), consumers={"critic": 1}, **RABBIT), "at_broker", True),
        (evidence(lane(), sent=sent(), consumers={"critic": 2}, **RABBIT), "at_broker", False),
        (evidence(lane(**PAUSED), sent=sent(), **RABBIT), "paused", True),
        (evidence(lane(), sent=sent(queue="other"), **RABBIT), "unknown", False),
        (
            evidence(lane(), sent=sent(), sent_again=True, sent_for_twin=True, **RABBIT),
            "twin", False,
        ),
        # By another process, which does not know that time.
        (evidence(lane(), **RABBIT), "at_broker", False),
        (evidence(lane(), counts={"critic": 2, "other": 2}), "unknown", False),
        (evidence(lane(), counts={"critic": 2, "other": 2}, lane="critic"), "at_broker", False),
        (evidence(lane(), counts={"critic": 0, "other": 2}, lane="critic"), "unknown", False),
        # Redis: all lists were read, and it is in none.
        (evidence(lane(), sent=sent(), **REDIS), "unknown", False),
        (evidence(lane(), **REDIS), "unknown", False),
        (evidence(), "unknown", False),
    ],
)  # fmt: skip
def test_the_cause(known, cause, certain):
    """And whether it is known or only concluded."""
    why = verdict(known)
    assert (why.cause, why.certain) == (cause, certain), why


def test_what_fills_the_lane_is_told():
    """A call at the broker is not held by the lane; the full lane is in its detail."""
    why = verdict(evidence(lane(waiting=2), message=at_broker(4)))
    assert "its lane is full on w@h: 3 of 3, 3 slots are taken by a" in why.detail
    assert (why.position, why.starts_in) == (4, 7.0)


def test_a_free_slot_takes_the_first_at_once():
    """What has just been sent is on its way."""
    assert verdict(evidence(lane(active=1), message=at_broker(0))).starts_in == 0


def test_workers_start_calls_together():
    """Two at 1 a second each: 9 calls before it, in 5 s."""
    why = verdict(evidence(lane(), lane("v@h"), message=at_broker(9)))
    assert why.starts_in == pytest.approx(5)


def test_a_twin_names_the_call_that_it_waits_for():
    """And where that runs."""
    holder = Why("77aa", Cause.RUNNING, worker="v@h")
    why = verdict(evidence(in_hand=(has("twin"),), holders=(holder,)))
    assert why.detail.startswith("77aa runs on v@h")


HOLDER = Why("77aa", Cause.RUNNING, worker="v@h", since=900.0)


@pytest.mark.parametrize(
    ("in_hand", "holders", "cause", "certain"),
    [
        # It has a slot now and then, or waits for one, to look whether the other still runs.
        ((has("running", worker="w@h", since=990.0),), (HOLDER,), "twin", True),
        ((has("running", worker="w@h", certain=False),), (HOLDER,), "twin", True),
        ((has("lane", worker="w@h", since=900.1),), (HOLDER,), "twin", True),
        ((has("paused", worker="w@h"),), (HOLDER,), "twin", True),
        # Itself, and another one that looks.
        ((has("running", worker="w@h", since=800.0),), (HOLDER,), "running", True),
        ((has("running", worker="v@h", since=900.0),), (HOLDER,), "running", True),
        ((has("lane"),), (), "lane", True),
        # Two that share their id.
        (
            (has("running", worker="w@h", since=990.0), has("running", worker="v@h", since=900.0)),
            (has("running", worker="v@h", since=900.0),), "running", True,
        ),
        # The clocks of two hosts; of one.
        ((has("running", worker="w@h", since=900.3),), (HOLDER,), "twin", False),
        ((has("running", worker="v@h", since=900.3),), (HOLDER,), "twin", True),
    ],
)  # fmt: skip
def test_a_twin_that_looks_is_no_running_call(in_hand, holders, cause, certain):
    """Of the calls with one key, the one that began first runs."""
    others = tuple(each for each in in_hand if each.cause is Cause.RUNNING)
    why = verdict(evidence(in_hand=in_hand, holders=holders + others))
    assert (why.cause, why.certain) == (cause, certain)
    assert ("77aa runs on v@h" in str(why)) == (cause == "twin")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"delivered": True}, "handed it out, to a worker that does not answer"),
        ({"silent": ("x@h",)}, "no answer from x@h"),
        ({}, "no worker answers"),
        ({"stored": Stored("STARTED", None)}, "its result says STARTED"),
        ({"counts": {"critic": 2, "other": 3}}, "cannot be searched: critic (2), other (3)"),
        ({}, "never sent"),
    ],
)
def test_what_unknown_can_mean(facts, words):
    """Never a bare shrug."""
    assert words in verdict(evidence(**facts)).detail


@pytest.mark.parametrize(
    ("facts", "mark", "position"),
    [
        # This process has sent all 20 that wait: 5 after it.
        ({"others": tuple(range(936, 955)), "counts": {"critic": 20}}, 930, 15),
        # Half of what it has sent since the watermark is behind; others send as many again.
        (
            {"others": (890, *range(936, 956)), "counts": {"critic": 200}}, 900,
            round(199 - 200 * 5 / 21),
        ),
        # No sample: spread evenly from the watermark until now.
        ({"counts": {"critic": 100}}, 900, 49),
        # Two that it has sent itself are behind for sure.
        ({"counts": {"critic": 10}, "others": (999, 999.5)}, 949, 0),
        # Nothing is known of the queue's age.
        ({"counts": {"critic": 100}}, None, None),
    ],
)  # fmt: skip
def test_the_position_in_a_queue_that_cannot_be_read(facts, mark, position):
    """Sent at 950 in each."""
    marks = [] if mark is None else [mark]
    assert estimated(evidence(lane(), **facts), "critic", 950, marks) == position
