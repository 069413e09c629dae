"""When a message is acknowledged: late where its call may run twice, early where it may not."""

from __future__ import annotations

from tests.support.waiting import wait_until

APP = "tests.worker.acknowledging_app"


def test_messages_are_acknowledged_as_their_lane_and_task_say(worker, load_app):
    """Late by default; `idempotent` and Celery's own `acks_late` of a task decide otherwise."""
    loaded = load_app(APP)
    running = worker(APP, "-Q", "safe,once", "-c", "6")
    results = {name: loaded.app.tasks[name].delay(20) for name in loaded.TASKS}
    calls = running.wait_active(len(loaded.TASKS), timeout=15)
    acknowledged = {call["name"]: call["acknowledged"] for call in calls}
    for result in results.values():
        loaded.app.control.revoke(result.id, terminate=True)
    wait_until(lambda: all(r.state == "REVOKED" for r in results.values()), "all are revoked")
    assert acknowledged == {name: early for name, (_, early) in loaded.TASKS.items()}
