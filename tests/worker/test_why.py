"""`budgets.why` and `celery lanes why`, about calls on real workers that wait for every reason."""

from __future__ import annotations

import time
from collections import Counter
from uuid import uuid4

import pytest

from celery_budgets.sending import sent
from tests.support.marks import first_of
from tests.support.waiting import values_of, wait_until

APP = "tests.worker.why_app"
MAIN = "work,rated,narrow,paused"


class Staged:
    """Calls of which each waits for the reason under whose name it is kept."""

    def __init__(self, module, count):
        self.app, self.count = module, count
        self.ids = {}
        self._named = []

    def keep(self, cause, send):
        self.ids[cause] = [send().id for _ in range(self.count)]

    def hold(self, name, queue="work", **options):
        """A call that runs until the end of the test."""
        result = self.app.hold.apply_async((name,), queue=queue, **options)
        self._named.append(name)
        wait_until(lambda: self.app.redis().exists(f"begun:{name}"), f"{name} runs", timeout=30)
        return result

    def let_go(self):
        for name in [*self._named, "waits"]:
            self.app.redis().set(f"go:{name}", 1)

    def why(self, task_id):
        # RabbitMQ does not say how many will answer, so all of it is waited for.
        return self.app.budgets.why(task_id, timeout=0.5)

    def all_are(self, cause):
        """Wait until each of them is seen as *cause*; what takes a moment after it was sent."""
        for task_id in self.ids[cause]:
            wait_until(lambda task_id=task_id: self.why(task_id).cause == cause, cause, timeout=30)


@pytest.fixture
def staged(load_app, worker, count):
    """The workers, and calls for every cause."""
    calls = {"WHY_CALLS": str(count)}
    staged = Staged(load_app(APP, **calls), count)
    app = staged.app
    main = worker(APP, "-Q", MAIN, "-c", str(count + 5), env=calls)
    worker(APP, "-Q", "ahead", "--prefetch-multiplier", str(count + 1), env=calls)
    worker(APP, "-Q", "greedy,starved", "-c", "1", env=calls)
    # Else it lets one through after a minute.
    gate = {"CELERY_BUDGETS_MAX_WORKER_RSS": "20MiB", "CELERY_BUDGETS_MAX_PAUSE": "1h"}
    tight = worker(APP, "-Q", "tight", env=calls | gate)
    tight.wait_for_log("budgets.gate_closed")
    yield staged, main
    staged.let_go()
    app.app.control.purge()


def stage(staged, main):
    """Bring each call to where it waits."""
    app, waits = staged.app, ("waits",)
    staged.keep("ended", app.quick.delay)
    staged.keep("retry", app.later.delay)
    staged.keep("eta", lambda: app.quick.apply_async(countdown=3600))
    staged.hold("holder", idempotency_key="same")
    staged.keep(
        "twin",
        lambda: app.hold.apply_async(
            ("holder",), idempotency_key="same", task_id=str(uuid4()), queue="work"
        ),
    )
    for cause in ("ended", "retry", "eta", "twin"):
        staged.all_are(cause)
    app.rated.delay().get(timeout=30)
    staged.keep("rate", app.rated.delay)
    for queue, cause in (("narrow", "at_broker"), ("ahead", "lane"), ("greedy", "global")):
        staged.hold(f"in {queue}", queue)
        waiting = "starved" if cause == "global" else queue
        staged.keep(cause, lambda queue=waiting: app.hold.apply_async(waits, queue=queue))
    asked = {"lane": "paused"}
    assert app.app.control.broadcast("pause_lane", asked, reply=True, timeout=10, limit=1)
    staged.keep("paused", lambda: app.hold.apply_async(waits, queue="paused"))
    staged.keep("memory", lambda: app.hold.apply_async(waits, queue="tight"))
    staged.keep("no_worker", lambda: app.hold.apply_async(waits, queue="lonely"))
    staged.ids["unknown"] = [str(uuid4()) for _ in range(staged.count)]
    staged.ids["running"] = [staged.hold(f"runs {number}").id for number in range(staged.count)]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", first_of(1, 10))
def test_each_cause_is_told(broker_url, staged):
    """Right in 95 of 100, and never a wrong one with certainty."""
    staged, main = staged
    stage(staged, main)
    for cause in ("lane", "global", "rate", "running"):
        staged.all_are(cause)
    told = Counter()
    wrong = []
    for cause, ids in staged.ids.items():
        for task_id in ids:
            why = staged.why(task_id)
            told[cause, why.cause == cause] += 1
            if why.cause != cause:
                wrong.append((cause, why))
            assert why.remedy
            assert task_id in str(why)
    assert len(staged.ids) == 13
    assert not [why for _, why in wrong if why.certain], wrong
    assert len(wrong) <= 0.05 * sum(told.values()), wrong


def asked(module, results):
    """What is said of each of *results*, and when."""
    said = []
    for result in results:
        said.append((module.budgets.why(result.id), time.time()))
    return said


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.5], ids=["sent here", "half sent elsewhere"])
def test_the_position_and_the_start(broker_url, load_app, worker, share):
    """In a steady state: the position within 10 %, the start within 30 %.

    On RabbitMQ the position comes from what this process has sent, of which it forgets a share.
    """
    module = load_app(APP)
    running = worker(APP, "-Q", "steady")
    beats = [module.beat.delay(0.05) for _ in range(40)]
    values_of(beats, timeout=30, detail=running.tail)
    beats += [module.beat.delay(0.05) for _ in range(400)]
    kept = list(sent._sent)
    sent._sent.clear()
    wanted = beats[200:440:60]
    ids = {result.id for result in wanted}
    sent._sent.extend(each for n, each in enumerate(kept) if n % 10 < share * 10 or each[0] in ids)
    said = asked(module, wanted)
    began = values_of(beats, timeout=90, detail=running.tail)
    for result, (why, at) in zip(wanted, said, strict=True):
        own = result.get()
        before = sum(at < other < own for other in began)
        assert why.cause == "at_broker", why
        assert why.position == pytest.approx(before, rel=0.1, abs=4), why
        assert why.starts_in == pytest.approx(own - at, rel=0.3, abs=0.5), why
