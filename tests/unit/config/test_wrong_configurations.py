"""What cannot work is refused: each message has the object, the numbers and the remedy."""

from __future__ import annotations

import math
import os

import pytest
from celery import Celery

from celery_budgets import Budget, BudgetedTask, Budgets, ConfigurationError, Lane, Lanes


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    """The shell that runs the tests does not configure them."""
    for name in list(os.environ):
        if name.startswith("CELERY_BUDGETS_"):
            monkeypatch.delenv(name)


def budget(**fields):
    return lambda: Budget(**fields)


def lane(*args, **fields):
    return lambda: Lane(*args, **fields)


def lanes(*listed, **fields):
    return lambda: Lanes(listed, **fields)


def settings(**conf):
    def read():
        app = Celery("wrong", broker="memory://", set_as_current=False)
        app.conf.update({f"budgets_{name}": value for name, value in conf.items()})
        return Budgets(app).settings

    return read


def a_tool():
    pass


def task(lane="critic", **attributes):
    def declare():
        app = Celery("wrong", broker="memory://", set_as_current=False)
        budgets = Budgets(app)
        declared = app.task(shared=False, base=BudgetedTask, name="mine", lane=lane, **attributes)(
            a_tool
        )
        return declared.budget_in(budgets.settings.lanes[declared.lane])

    return declare


WRONG = {
    # One budget.
    "soft not below hard": (
        budget(timeout=90, hard_timeout=60),
        "budget: timeout (90 s, soft) must be below hard_timeout (60 s); raise hard_timeout or "
        "lower timeout",
    ),
    "soft equal to hard": (
        budget(timeout="1m", hard_timeout=60),
        "budget: timeout (60 s, soft) must be below hard_timeout (60 s); raise hard_timeout or "
        "lower timeout",
    ),
    "ceiling below soft": (
        budget(timeout=90, max_timeout=60),
        "budget: max_timeout (60 s) must not be below timeout (90 s); raise max_timeout or lower "
        "timeout",
    ),
    "warning not below max": (
        budget(max_rss="400MiB"),
        "budget: rss_warning (400 MiB) must be below max_rss (400 MiB); raise max_rss or lower "
        "rss_warning",
    ),
    "timeout of zero": (
        budget(timeout=0),
        "budget: timeout: 0 must be above 0; leave it out for the default",
    ),
    "timeout NaN": (
        budget(timeout=math.nan),
        "budget: timeout: nan is not a duration: give finite seconds",
    ),
    "timeout a bool": (
        budget(timeout=True),
        "budget: timeout: True is not a duration: give seconds, or text such as '5m'",
    ),
    "timeout in unknown units": (
        budget(timeout="5 parsecs"),
        "budget: timeout: '5 parsecs' is not a duration: write it as '90s', '5m', '1.5h' or "
        "'250ms'",
    ),
    "size without sense": (
        budget(max_rss="lots"),
        "budget: max_rss: 'lots' is not a size: write it as '512MiB', '512MB' or '1.5GiB'",
    ),
    "size of half a byte": (
        budget(max_rss=0.5),
        "budget: max_rss: 0.5 is not a size: give whole bytes, or text such as '512MiB'",
    ),
    "size a bool": (
        budget(rss_warning=True),
        "budget: rss_warning: True is not a size: give bytes, or text such as '512MiB'",
    ),
    "size beyond any float": (
        budget(max_rss="9" * 400),
        f"budget: max_rss: '{'9' * 400}' is not a size: write it as '512MiB', '512MB' or '1.5GiB'",
    ),
    "factor of one": (
        budget(escalation_factor=1),
        "budget: escalation_factor: 1 must be a number above 1, such as 1.5, and at most 1000",
    ),
    "factor NaN": (
        budget(escalation_factor=math.nan),
        "budget: escalation_factor: nan must be a number above 1, such as 1.5, and at most 1000",
    ),
    "factor infinite": (
        budget(escalation_factor=math.inf),
        "budget: escalation_factor: inf must be a number above 1, such as 1.5, and at most 1000",
    ),
    "soft action unknown": (
        budget(soft="ignore"),
        "budget: soft: 'ignore' is not one of 'raise' or 'warn'",
    ),
    "memory action unknown": (
        budget(memory="kill"),
        "budget: memory: 'kill' is not one of 'warn' or 'raise'",
    ),
    # One lane.
    "lane of none": (
        lane("critic", 0),
        "lane 'critic': concurrency 0 must be 1 or more; or remove the lane",
    ),
    "lane of less": (
        lane("critic", -3),
        "lane 'critic': concurrency -3 must be 1 or more; or remove the lane",
    ),
    "lane of a half": (
        lane("critic", 1.5),
        "lane 'critic': concurrency 1.5 is no whole number; give 1 or more",
    ),
    "lane of a bool": (
        lane("critic", True),
        "lane 'critic': concurrency True is no whole number; give 1 or more",
    ),
    "lane without a name": (
        lane(""),
        "lane '': the name must be letters, digits, '_', '-' or '.'",
    ),
    "lane name with a space": (
        lane("my lane"),
        "lane 'my lane': the name must be letters, digits, '_', '-' or '.'",
    ),
    "lane queue a number": (lane("a", queue=5), "lane 'a': queue 5 is not a queue's name"),
    "lane tools as text": (
        lane("a", tools="fs_read"),
        "lane 'a': tools 'fs_read' must be a list of task names or globs",
    ),
    "lane tools a number": (
        lane("a", tools=5),
        "lane 'a': tools 5 must be a list of task names or globs",
    ),
    "lane idempotent in words": (
        lane("a", idempotent="no"),
        "lane 'a': idempotent 'no' must be True or False",
    ),
    "lane fleet of zero": (
        lane("a", fleet=0),
        "lane 'a': fleet 0 must be a whole number of 1 or more: the calls that run at once over "
        "all workers",
    ),
    "lane field unknown": (
        lane("a", concurency=5),
        "lane 'a': concurency: no such field; did you mean 'concurrency'? known: budget, "
        "children, concurrency, escalation_factor, fleet, hard_timeout, idempotent, max, max_rss, "
        "max_timeout, memory, min, priority, queue, rss_warning, slo, soft, timeout, tools",
    ),
    "lane budget wrong": (
        lane("a", timeout=90, hard_timeout=60),
        "lane 'a': timeout (90 s, soft) must be below hard_timeout (60 s); raise hard_timeout or "
        "lower timeout",
    ),
    "lane budget no Budget": (
        lane("a", budget={"timeout": 5}),
        "lane 'a': budget {'timeout': 5} is not a Budget; give single fields of one here",
    ),
    # The table of lanes.
    "no lane": (lanes(), "lanes: there is none; name at least one"),
    "one name twice": (
        lanes(Lane("a"), Lane("a", 2, queue="b")),
        "lane 'a' is named twice; rename one",
    ),
    "one queue twice": (
        lanes(Lane("a", queue="q"), Lane("b", queue="q")),
        "lanes 'a' and 'b' share the queue 'q'; give each a queue of its own",
    ),
    "lanes above the global concurrency": (
        lanes(Lane("a", 20), Lane("b", 13)),
        "the lanes' concurrency adds up to 33, above budgets_global_concurrency (32); raise it "
        "to 33 or lower a lane's concurrency",
    ),
    "global concurrency a bool": (
        lanes(Lane("a"), global_concurrency=True),
        "budgets_global_concurrency True is not a whole number; give 1 or more",
    ),
    "default lane unknown": (
        lanes(Lane("a"), Lane("bulk"), default="bulky"),
        "budgets_default_lane 'bulky' is not a lane; did you mean 'bulk'? known: a, bulk",
    ),
    "tool of an unknown lane": (
        lanes(Lane("read"), Lane("write"), tools={"fs_*": "raed"}),
        "tool 'fs_*': lane 'raed' is not known; did you mean 'read'? known: read, write",
    ),
    "tool of two lanes": (
        lanes(Lane("a", tools=["x"]), Lane("b", tools=["x"])),
        "tool 'x' is named by the lanes 'a' and 'b'; leave it to one",
    ),
    "no lane but its name": (
        lanes("critic"),
        "lanes: 'critic' is not a Lane; write Lane(name, concurrency)",
    ),
    # Settings.
    "setting of zero": (
        settings(global_concurrency=0),
        "setting budgets_global_concurrency: 0 must be above 0",
    ),
    "fleet of zero": (
        settings(fleet_concurrency=0),
        "setting budgets_fleet_concurrency: 0 must be above 0",
    ),
    "limit with a reserved name": (
        settings(limits={"@lane": 1}),
        "limit '@lane': a name with @ is reserved; rename it",
    ),
    "setting in words": (
        settings(global_concurrency="many"),
        "setting budgets_global_concurrency: 'many' is not a whole number",
    ),
    "setting that is no flag": (
        settings(tracing="perhaps"),
        "setting budgets_tracing: 'perhaps' must be True or False",
    ),
    "setting outside its range": (
        settings(span_sample_rate=1.5),
        "setting budgets_span_sample_rate: 1.5 must be between 0 and 1",
    ),
    "setting NaN": (
        settings(span_sample_rate=math.nan),
        "setting budgets_span_sample_rate: nan must be between 0 and 1",
    ),
    "setting that is no port": (
        settings(metrics_port=70_000),
        "setting budgets_metrics_port: 70000 must be between 0 and 65535",
    ),
    "setting of two words": (
        settings(rejection="drop"),
        "setting budgets_rejection: 'drop' is not one of 'requeue', 'fail'",
    ),
    "span name with a strange field": (
        settings(span_name="call {queue}"),
        "setting budgets_span_name: 'call {queue}' may use only {lane} and {task}",
    ),
    "span name with an attribute": (
        settings(span_name="{lane.concurrency}"),
        "setting budgets_span_name: '{lane.concurrency}' may use only {lane} and {task}",
    ),
    "tools that are not JSON": (
        settings(tools="fs_read=critic"),
        "setting budgets_tools: 'fs_read=critic' is not JSON",
    ),
    "tools to something else": (
        settings(tools={"fs_read": ["critic"]}),
        "setting budgets_tools: 'fs_read': ['critic'] must be a task name or glob, and a lane's "
        "name",
    ),
    "lanes as a number": (settings(lanes=5), "setting budgets_lanes: 5 must be a mapping"),
    "lane as text": (
        settings(lanes={"a": "five"}),
        "lane 'a': 'five' must be its concurrency or a mapping of its fields",
    ),
    "lane with its name inside": (
        settings(lanes={"a": {"name": "b"}}),
        "lane 'a': 'name' is not a field; the key above is the lane's name",
    ),
    "lane above the ceiling of all": (
        settings(max_timeout=400, lanes={"a": {"timeout": 500}}),
        "lane 'a': max_timeout (400 s) must not be below timeout (500 s); raise max_timeout or "
        "lower timeout",
    ),
    # A task.
    "task of an unknown lane": (
        task(lane="critics"),
        "lane 'critics' is not known; did you mean 'critic'? known: critic, file_read, "
        "file_write, forecast_model, tool_call",
    ),
    "task above its hard limit": (
        task(timeout=90, hard_timeout=60),
        "task 'mine': timeout (90 s, soft) must be below hard_timeout (60 s); raise hard_timeout "
        "or lower timeout",
    ),
    "task run again though it may not": (
        task(max_kills=2, idempotent=False),
        "task 'mine': max_kills 2 would run a task again that is declared idempotent=False; "
        "drop one of them",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_with_its_remedy(name):
    """The error has exactly one problem, and this is its whole message."""
    make, message = WRONG[name]
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert caught.value.problems == (message,)
    assert str(caught.value) == message


def test_several_problems_come_at_once():
    """Unknown keys, values, lanes and tools are all in the one error."""
    with pytest.raises(ConfigurationError) as caught:
        settings(
            timeout="soon",
            time_out=5,
            max_rss="300MiB",
            rss_warning="350MiB",
            tracing=2,
            lanes={"a": 0, "b": {"timeout": -1}, "c": 40},
            tools={"x": "d"},
        )()
    assert caught.value.problems == (
        "setting budgets_time_out is not known; did you mean 'budgets_timeout'? known: "
        + ", ".join(sorted(_every_setting())),
        "setting budgets_timeout: 'soon' is not a duration: write it as '90s', '5m', '1.5h' or "
        "'250ms'",
        "setting budgets_tracing: 2 must be True or False",
        "settings budgets_*: rss_warning (350 MiB) must be below max_rss (300 MiB); raise max_rss "
        "or lower rss_warning",
        "lane 'a': concurrency 0 must be 1 or more; or remove the lane",
        "lane 'b': timeout: -1 must be above 0; leave it out for the default",
        "tool 'x': lane 'd' is not known; known: c",
        "the lanes' concurrency adds up to 40, above budgets_global_concurrency (32); raise it "
        "to 40 or lower a lane's concurrency",
    )
    assert str(caught.value).startswith("8 problems in the configuration:\n  - setting budgets_ti")
    assert str(caught.value).count("\n  - ") == 8


def _every_setting():
    from celery_budgets.config.setting_fields import FIELDS

    return [f"budgets_{name}" for name in FIELDS]
