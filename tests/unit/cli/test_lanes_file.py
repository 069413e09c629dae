"""`lanes.toml`: what it says of the workers of each lane, and what is wrong with it."""

from __future__ import annotations

import pytest

from celery_budgets import ConfigurationError, Lane
from celery_budgets.cli.lanes_file import WorkerPlan, names_of, read_plans
from celery_budgets.model.lanes import Lanes

LANES = Lanes([Lane("critic", 3), Lane("file_read", 16)])


def plans(tmp_path, text):
    path = tmp_path / "lanes.toml"
    path.write_text(text)
    return read_plans(path, LANES)


def test_defaults_and_what_a_lane_says_over_them(tmp_path):
    """Variables and options add up; everything else replaces."""
    found = plans(
        tmp_path,
        """
        [defaults]
        pool = "threads"
        options = ["-E"]
        environment = { A = "1", B = "1" }

        [lanes.critic]
        concurrency = 2
        pool = "prefork"
        replicas = 2
        options = ["-l", "WARNING"]
        environment = { B = "2" }
        """,
    )
    assert found == {
        "critic": WorkerPlan(2, "prefork", 2, {"A": "1", "B": "2"}, ("-E", "-l", "WARNING")),
        "file_read": WorkerPlan(None, "threads", 1, {"A": "1", "B": "1"}, ("-E",)),
    }
    assert list(names_of("critic", found["critic"])) == ["critic", "critic-2"]


def test_an_empty_file_changes_nothing(tmp_path):
    assert plans(tmp_path, "") == {"critic": WorkerPlan(), "file_read": WorkerPlan()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[lanes.critik]", r"\[lanes.critik\]: there is no such lane; did you mean 'critic'"),
        ("[lanes.critic]\nreplica = 2", r"'replica' is not known; did you mean 'replicas'"),
        ("[lane.critic]", r"\[lane\]: not known"),
        ("lanes = 3", r"\[lanes\]: 3 must be a table"),
        ("[lanes]\ncritic = 3", r"\[lanes.critic\]: 3 must be a table"),
        ("[lanes.critic]\nconcurrency = 4", r"concurrency 4 is above that of the lane \(3\)"),
        ("[lanes.critic]\nconcurrency = 0", "must be a whole number from 1"),
        ("[lanes.critic]\nconcurrency = true", "must be a whole number from 1"),
        ("[lanes.critic]\nreplicas = 1.5", "must be a whole number from 1 to 100"),
        ('[lanes.critic]\npool = "process"', "must be one of prefork"),
        ("[lanes.critic]\nenvironment = { A = 1 }", "must be a table of names and texts"),
        ('[lanes.critic]\noptions = "-E"', "must be a list of texts"),
        ("[lanes.critic", "lanes.toml"),
    ],
)
def test_what_is_wrong(tmp_path, text, words):
    with pytest.raises(ConfigurationError, match=words):
        plans(tmp_path, text)


def test_all_that_is_wrong_is_listed(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        plans(tmp_path, "[defaults]\nreplicas = 0\n[lanes.critic]\npool = 3\n[lanes.x]")
    assert len(caught.value.problems) == 3


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        read_plans(tmp_path / "lanes.toml", LANES)
