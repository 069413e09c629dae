"""What lets nobody in for a while: a limit closes, one call tries it, and it opens."""

from __future__ import annotations

import pytest

from tests.support.marks import first_of
from tests.support.waiting import wait_until

APP = "tests.worker.fleet_app"
#: For how long the dependency is closed, and what it says to those who come meanwhile, seconds.
CLOSED, RETRY_AFTER = 3.5, 1.0


def reached(app):
    """Return when bodies have reached the dependency, and who, in this order."""
    entries = [entry.decode().split(" ", 1) for entry in app.redis().lrange("reached", 0, -1)]
    return sorted((float(at), name) for at, name in entries)


def outcomes_of(app):
    return app.budgets.statistics().total.outcomes


@pytest.mark.parametrize("task", first_of("depends", "depends_in_block"))
@pytest.mark.parametrize("pool", first_of("prefork", "threads", "gevent", "solo"))
def test_few_reach_what_is_closed(worker, load_app, broker_url, pool, task):
    """At most two in each time that it has said; and all have their result at the end."""
    app = load_app(APP)
    for _ in range(4):
        worker(APP, "-Q", "free", "-P", pool, ready=False)
    opens = app.now() + 60
    app.redis().set("opens", opens)
    results = [getattr(app, task).delay(str(n), RETRY_AFTER) for n in range(12)]
    first = wait_for_first(app)
    app.redis().set("opens", opens := first + CLOSED)
    assert sorted(result.get(timeout=60) for result in results) == sorted(map(str, range(12)))
    # Those that had their place when the first one closed the limit reach it as well.
    late = [at for at, _ in reached(app) if first + RETRY_AFTER / 2 < at < opens]
    assert late, "somebody tries it"
    for at in late:
        assert sum(at <= other < at + RETRY_AFTER for other in late) <= 2
    again = [at for at, _ in reached(app) if at >= opens]
    assert again[-1] - opens < 2 * RETRY_AFTER + 3
    # A result is there before its call is counted.
    wait_until(lambda: outcomes_of(app)["succeeded"] >= 12, "all are counted")
    outcomes = outcomes_of(app)
    assert outcomes["retried"] >= len(late)
    assert outcomes["failed"] == 0


def wait_for_first(app):
    wait_until(lambda: reached(app), "one has reached it", timeout=30)
    return reached(app)[0][0]


def test_a_limit_that_is_not_there_is_told(worker, load_app):
    """In the result: the program has to be mended."""
    worker(APP, "-Q", "free")
    with pytest.raises(Exception, match="there is no such limit; did you mean 'dependency'"):
        load_app(APP).mistaken.delay("it").get(timeout=20)
