"""Bodies that take, ignore, reset or block the signals by which calls are interrupted."""

from __future__ import annotations

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from tests.support.marks import first_of
from tests.worker.signals_app import WAYS

APP = "tests.worker.signals_app"
LANE = "short"


@pytest.fixture(scope="module", params=first_of("prefork", "solo"))
def pool(request, module_worker, new_servers):
    """A worker of one process, and its servers."""
    servers = new_servers()
    running = module_worker(APP, "-Q", LANE, "-c", "1", "-P", request.param, servers=servers)
    return request.param, running, servers


@pytest.fixture
def app(pool, load_app):
    servers = pool[2]
    return load_app(APP, **servers.environment)


@pytest.mark.parametrize("way", [way.__name__ for way in WAYS])
def test_the_next_call_has_its_soft_limit(pool, app, way):
    """On time, in the same process, and out of a blocking system call."""
    before = app.does.delay(way).get(timeout=10)
    pid, seconds = app.sleeps.delay().get(timeout=10)
    assert pid == before, pool[1].tail()
    assert seconds is not None
    assert seconds < 1.5


@pytest.mark.parametrize("way", ["takes_it", "ignores_it", "blocks_it"])
def test_the_call_itself_has_its_soft_limit_in_python_code(pool, app, way):
    """By an exception that needs no signal."""
    with pytest.raises(SoftTimeLimitExceeded):
        app.does.delay(way, 3.0).get(timeout=10)
    _, seconds = app.sleeps.delay().get(timeout=10)
    assert seconds < 1.5
