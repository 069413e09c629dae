"""A class that overrides ``__call__`` bypasses nothing, on any pool."""

from __future__ import annotations

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from tests.support.marks import first_of

APP = "tests.worker.overrides_app"


@pytest.fixture(params=first_of("prefork", "threads", "gevent", "solo"))
def app(request, worker, load_app):
    """The app, with a worker of one pool."""
    worker(APP, "-Q", "lane", "-P", request.param)
    return load_app(APP)


def test_limits_and_keys_hold_for_every_override_of_call(app):
    """Soft limit, one body for a key, and the context of the class around each body."""
    redis = app.app.backend.client
    for number, base in enumerate(("FlaskTask", "Before", "Behind"), 1):
        with pytest.raises(SoftTimeLimitExceeded):
            app.app.tasks[f"busy_{base}"].delay().get(timeout=10)
        once = app.app.tasks[f"once_{base}"]
        twins = [once.apply_async(idempotency_key="one") for _ in range(3)]
        assert len({twin.get(timeout=15) for twin in twins}) == 1
        assert int(redis.get("runs")) == number
        assert int(redis.get("contexts")) == 2 * number
