"""Lanes: named classes of work, and the table of all of them."""

from __future__ import annotations

import dataclasses

import pytest

from celery_budgets import Budget, ConfigurationError, Lane, Lanes
from celery_budgets.model.lanes import DEFAULT_LANES


def test_the_default_lanes():
    """Five lanes whose concurrency adds up to the global 32, and their tools."""
    lanes = Lanes()
    assert {lane.name: lane.concurrency for lane in lanes.values()} == {
        "tool_call": 8,
        "file_read": 16,
        "file_write": 4,
        "critic": 3,
        "forecast_model": 1,
    }
    assert sum(lane.concurrency for lane in lanes.values()) == lanes.global_concurrency == 32
    assert lanes.tools == {
        "fs_read": "file_read",
        "fs_write": "file_write",
        "critics_run": "critic",
        "forecast_model": "forecast_model",
    }
    assert lanes.default.name == "tool_call"
    assert all(lane.queue == lane.name for lane in lanes.values())
    assert all(lane.budget == Budget() and lane.idempotent for lane in lanes.values())


def test_a_lane_is_a_value():
    """Equal by its facts, hashable, and not to be changed."""
    assert Lane("a", 2, timeout="5m") == Lane("a", concurrency=2, queue="a", timeout=300)
    assert len({Lane("a", 2), Lane("a", 2), Lane("a", 3)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Lane("a").concurrency = 5


def test_a_lane_may_promise_a_wait():
    """Seconds, or text; it stays with the lane when the default budget is known."""
    assert Lane("a").slo is None
    assert Lane("a", slo="5s") == Lane("a", slo=5) != Lane("a")
    assert Lane("a", slo="2m").on(Budget(timeout=99)).slo == 120.0


@pytest.mark.parametrize("slo", [0, -1, "soon", True, float("nan")])
def test_a_promise_is_above_zero(slo):
    """The message has the lane and the field."""
    with pytest.raises(ConfigurationError, match="lane 'a': slo: "):
        Lane("a", slo=slo)


def test_tools_may_be_any_iterable():
    """Also one that can be read only once."""
    assert Lane("a", tools=(name for name in ("x", "y"))).tools == ("x", "y")
    assert Lane("a", tools={"x": 1}).tools == ("x",)


def test_the_default_budget_goes_below_what_a_lane_says():
    """Only what the lane leaves open is taken from the default."""
    lane = Lane("a", timeout=10, rss_warning="100MiB").on(Budget(timeout=99, max_timeout=500))
    assert (lane.budget.timeout, lane.budget.hard_time_limit) == (10, 15)
    assert lane.budget.max_timeout == 500
    assert lane.budget.rss_warning == 100 * 1024**2


def test_a_whole_budget_stays_whole():
    """A lane with a budget of its own takes nothing from the default; single fields go over it."""
    own = Budget(timeout=10, hard_timeout=15)
    default = Budget(timeout=99, max_rss="1GiB")
    assert Lane("a", budget=own).on(default).budget == own
    lane = Lane("a", budget=own, timeout=20, max_rss="256MiB")
    assert lane.budget.hard_time_limit == 30  # 20 x 1.5: the 15 belonged to the other timeout
    assert lane.on(default) == lane


@pytest.mark.parametrize(
    ("task_name", "lane"),
    [
        ("fs_read", "read"),  # named
        ("fs_stat", "read"),  # fs_*
        ("fs_list_all", "write"),  # named, before any glob
        ("FS_STAT", None),  # globs heed case, on every system
        ("web.get", "write"),  # web.[gp]*
        ("web.delete", None),
        ("other", None),
    ],
)
def test_the_tool_table(task_name, lane):
    """An exact name goes before a glob, and the first glob that matches wins."""
    lanes = Lanes(
        [
            Lane("read", tools=["fs_*", "fs_read"]),
            Lane("write", tools=["fs_list_*", "fs_list_all", "web.[gp]*"]),
        ]
    )
    found = lanes.of_tool(task_name)
    assert (found and found.name) == lane


def test_the_tables_own_tools_go_before_the_lanes():
    """`tools` moves a tool that a lane claims, and is no contradiction."""
    lanes = Lanes(tools={"fs_read": "critic", "fs_*": "file_write"})
    assert lanes.of_tool("fs_read").name == "critic"
    assert lanes.of_tool("fs_other").name == "file_write"
    assert lanes.of_tool("fs_write").name == "file_write"


def test_the_default_lane():
    """tool_call where there is one, else the first lane, or the one that is named."""
    assert Lanes([Lane("a"), Lane("tool_call")]).default.name == "tool_call"
    assert Lanes([Lane("a"), Lane("b")]).default.name == "a"
    assert Lanes([Lane("a"), Lane("b")], default="b").default.name == "b"


def test_lanes_by_queue():
    """A queue belongs to one lane or to none."""
    lanes = Lanes([Lane("a", queue="qa"), Lane("b")])
    assert lanes.of_queue("qa").name == "a"
    assert lanes.of_queue("b").name == "b"
    assert lanes.of_queue("a") is lanes.of_queue(None) is lanes.of_queue("") is None


def test_the_table_is_a_mapping():
    """Lanes by name, in their order; an unknown name says which there are."""
    lanes = Lanes()
    assert list(lanes) == [lane.name for lane in DEFAULT_LANES]
    assert len(lanes) == 5
    assert "critic" in lanes
    assert "critics" not in lanes
    assert repr(lanes).startswith("Lanes(tool_call=8, file_read=16,")
    with pytest.raises(ConfigurationError, match="lane 'critics' is not known; did you mean 'cr"):
        lanes["critics"]


def test_tools_that_match_nothing():
    """Each entry that no task has is reported with the nearest name."""
    lanes = Lanes([Lane("a", tools=["fs_raed", "web.*", "fs_*"])])
    assert lanes.unmatched_tools(["fs_read", "celery.chord"]) == [
        "tool 'fs_raed' of lane 'a' matches no registered task; did you mean 'fs_read'? "
        "known: celery.chord, fs_read",
        "tool 'web.*' of lane 'a' matches no registered task; known: celery.chord, fs_read",
    ]
