"""What is said of a worker, by what it says of itself."""

from __future__ import annotations

import pytest

from celery_budgets.model.workers.health import findings, is_idle

LANE = {
    "queue": "q", "consumes": True, "paused": [], "active": 1, "limit": 2, "free": True,
    "waiting": 0, "starts": 3, "last_start": 12.04,
}  # fmt: skip
POOL = {"up": 2, "size": 2, "missing": 0}


def worker(processes=None, gate="open", **lane):
    return {"lanes": {"lane": LANE | lane}, "processes": processes, "gate": gate}


@pytest.mark.parametrize(
    ("answer", "stalled", "works", "words"),
    [
        (worker(), (), [True], "consumes; 1 of 2 run, the last call began: 12 s ago"),
        (worker(last_start=None), (), [True], "none yet"),
        (worker(waiting=3), (), [True], "1 of 2 run, 3 wait in the worker, the last call began"),
        (worker(consumes=False), (), [False], "does not consume its queue q"),
        (worker(consumes=False, paused=["operator"]), (), [True], "paused by an operator"),
        (worker(consumes=False, paused=["memory", "operator"]), (), [True], "memory gate and an"),
        (worker(), ("lane",), [False], "messages wait in q"),
        (worker(POOL), (), [True, True], "2 of 2 are up"),
        (worker(POOL | {"up": 0}), (), [True, False], "0 of 2 are up"),
        (worker(POOL | {"up": 1, "missing": 1}), (), [True, False], "1 do not start"),
        (worker(POOL | {"up": 1}), (), [True, True], "1 of 2 are up"),
        (worker(gate="closed"), (), [True, True], "no call starts until"),
    ],
)
def test_findings(answer, stalled, works, words):
    """One for the lane, then for the processes and the gate where there is something to say."""
    found = findings(answer, stalled)
    assert [finding.works for finding in found] == works
    assert words in " | ".join(finding.text for finding in found)


@pytest.mark.parametrize(
    ("change", "idle"),
    [({}, True), ({"free": False}, False), ({"paused": ["operator"]}, False),
     ({"consumes": False}, False), ({"waiting": 1}, False)],
)  # fmt: skip
def test_a_lane_is_idle_if_it_would_start_a_call(change, idle):
    assert is_idle(LANE | change) is idle
