"""Settings: every way in which an app can be given them."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
from celery import Celery

from celery_budgets import Budgets, ConfigurationError, Lane, Limit
from celery_budgets.config.setting_fields import FIELDS
from celery_budgets.config.settings import Settings, settings_of


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    """The shell that runs the tests does not configure them."""
    for name in list(os.environ):
        if name.startswith("CELERY_BUDGETS_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config_module(monkeypatch):
    """A function that makes an importable module of settings, and returns its name."""

    def make(**values):
        module = ModuleType("a_config_module")
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module.__name__

    return make


def new_app(**conf):
    """Return an app that connects to nothing."""
    app = Celery("settings", broker="memory://", set_as_current=False)
    app.conf.update(conf)
    return app


def test_defaults():
    """An app that says nothing has the defaults of the table."""
    settings = settings_of(new_app())
    assert settings.budget.timeout == 300
    assert list(settings.lanes) == [
        "tool_call", "file_read", "file_write", "critic", "forecast_model",
    ]  # fmt: skip
    assert settings.lanes.global_concurrency == 32
    assert settings.tracing is settings.memory_guard is True
    assert settings.span_sample_rate == 1.0
    assert settings.span_name == "worker_call:{lane}"
    assert settings.metrics_port is settings.max_worker_rss is None


def test_from_app_conf():
    """Keys with the prefix, in app.conf."""
    app = new_app(budgets_timeout="1m", budgets_tools={"web_*": "critic"}, budgets_tracing=False)
    budgets = Budgets(app)
    assert budgets.settings.budget.hard_time_limit == 90  # 60 x 1.5
    assert budgets.settings.lanes.of_tool("web_get").name == "critic"
    assert budgets.settings.tracing is False


def test_from_a_configuration_module(config_module):
    """config_from_object with the name of a module."""
    app = Celery("settings", broker="memory://", set_as_current=False)
    app.config_from_object(config_module(budgets_timeout=60, task_default_queue="mine"))
    assert Budgets(app).settings.budget.timeout == 60
    assert app.conf.task_default_queue == "mine"


def test_from_namespaced_settings():
    """Django's way: CELERY_BUDGETS_TIMEOUT beside CELERY_TASK_ALWAYS_EAGER."""
    django = SimpleNamespace(
        CELERY_BROKER_URL="memory://",
        CELERY_BUDGETS_TIMEOUT="2m",
        CELERY_BUDGETS_LANES={"only": {"concurrency": 3, "max_rss": "1GiB"}},
        BUDGETS_TIMEOUT=7,  # somebody else's: not in the namespace
        DEBUG=True,
    )
    app = Celery("settings", set_as_current=False)
    app.config_from_object(django, namespace="CELERY")
    settings = Budgets(app).settings
    assert settings.budget.timeout == 120
    assert settings.lanes["only"].concurrency == 3
    assert settings.lanes["only"].budget.timeout == 120
    assert app.conf.task_default_queue == "only"


def test_from_the_environment(monkeypatch):
    """CELERY_BUDGETS_..., as text, over everything else."""
    variables = {
        "TIMEOUT": "5m", "ESCALATION_FACTOR": "2", "MAX_RSS": "1GiB", "GLOBAL_CONCURRENCY": "40",
        "TRACING": "off", "MEMORY_GUARD": "No", "JSON_LOGS": "1", "SPAN_SAMPLE_RATE": "0.25",
        "METRICS_PORT": "9808", "LANES": '{"a": 20, "b": {"concurrency": 2, "timeout": "10s"}}',
        "TOOLS": '{"x*": "b"}', "DEFAULT_LANE": "b", "MAX_PAUSE": "2m",
    }  # fmt: skip
    for name, text in variables.items():
        monkeypatch.setenv(f"CELERY_BUDGETS_{name}", text)
    settings = Budgets(new_app(budgets_timeout=60, budgets_lanes={"c": 1})).settings
    assert settings.budget.hard_time_limit == 600  # 300 x 2
    assert settings.budget.max_rss == 1024**3
    assert list(settings.lanes) == ["a", "b"]
    assert settings.lanes["b"].budget.hard_time_limit == 20  # 10 x 2
    assert settings.lanes.of_tool("xy") is settings.lanes.default is settings.lanes["b"]
    assert settings.lanes.global_concurrency == 40
    assert (settings.tracing, settings.memory_guard, settings.json_logs) == (False, False, True)
    assert (settings.span_sample_rate, settings.metrics_port) == (0.25, 9808)
    assert settings.max_pause == 120


@pytest.mark.parametrize("namespace", [None, "CELERY"])
def test_configuration_loaded_after_budgets(namespace):
    """Budgets(app) may stand before config_from_object, as in most Django projects."""
    app = Celery("settings", broker="memory://", set_as_current=False)
    budgets = Budgets(app)
    prefix = "CELERY_" if namespace else ""
    values = {"budgets_timeout": 60, "budgets_lanes": {"late": 2}}
    if namespace:
        values = {prefix + name.upper(): value for name, value in values.items()}
    app.config_from_object(SimpleNamespace(**values), namespace=namespace)
    assert budgets.settings.budget.timeout == 60
    assert "late" in app.amqp.queues
    assert app.conf.task_default_queue == "late"


def test_configuration_loaded_anew():
    """A second config_from_object replaces the settings of the first, and its queues."""
    app = Celery("settings", broker="memory://", set_as_current=False)
    app.config_from_object(SimpleNamespace(budgets_timeout=60))
    budgets = Budgets(app)
    assert budgets.settings.budget.timeout == 60
    app.config_from_object(SimpleNamespace(budgets_timeout=90, budgets_lanes={"new": 1}))
    assert app.conf.budgets_timeout == 90
    assert budgets.settings.budget.timeout == 90
    assert "new" in app.amqp.queues


def test_changes_before_the_first_use_count():
    """app.conf.update after Budgets(app), while nobody has used the app yet."""
    app = Celery("settings", broker="memory://", set_as_current=False)
    budgets = Budgets(app)
    app.conf.update(budgets_timeout=60)
    assert budgets.settings.budget.timeout == 60


def test_lanes_of_the_program():
    """Lanes given to Budgets(app) stand on the budget of the settings."""
    budgets = Budgets(new_app(budgets_timeout=60), lanes=[Lane("a", 2, max_rss="1GiB")])
    lane = budgets.settings.lanes["a"]
    assert (lane.budget.timeout, lane.budget.max_rss) == (60, 1024**3)


def test_a_lane_may_be_right_only_on_the_default_of_the_settings():
    """A warning of 700 MiB is below the 1 GiB of the settings, though not below 512 MiB."""
    settings = Settings.from_mapping(
        {"max_rss": "1GiB", "timeout": 50, "lanes": {"a": {"rss_warning": "700MiB"}, "b": {}}}
        | {"tools": {}}
    )
    assert settings.lanes["a"].budget.rss_warning == 700 * 1024**2
    capped = Settings.from_mapping({"timeout": 50, "lanes": {"a": {"max_timeout": 60}}})
    assert capped.lanes["a"].budget.max_timeout == 60


def test_a_memory_limit_alone_takes_its_warning_along():
    """256 MiB keeps the share of the default: 400 / 512 of it."""
    settings = Settings.from_mapping({"max_rss": "256MiB"})
    assert settings.budget.rss_warning == 200 * 1024**2  # 256 x 400 / 512


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("budgets_time_out", "budgets_timeout"),
        ("budgets_lane", "budgets_lanes"),
        ("budgets_span_samplerate", "budgets_span_sample_rate"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(wrong, right):
    """A typing mistake is an error, not a setting without effect."""
    with pytest.raises(ConfigurationError, match=f"setting {wrong} is not known; did.*{right}'"):
        _ = Budgets(new_app(**{wrong: 1})).settings


def test_an_unknown_variable_is_an_error(monkeypatch):
    """Also in the environment."""
    monkeypatch.setenv("CELERY_BUDGETS_TIMOUT", "5")
    with pytest.raises(ConfigurationError, match="did you mean 'budgets_timeout'"):
        _ = Budgets(new_app()).settings


def test_what_is_wrong_in_late_configuration_is_raised_at_the_first_use():
    """Celery logs a signal's error and goes on: so it is kept for whoever needs the settings."""
    app = Celery("settings", broker="memory://", set_as_current=False)
    budgets = Budgets(app)
    app.config_from_object(SimpleNamespace(budgets_timeout=-1))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"timeout: -1\.0 must be above 0"):
            _ = budgets.settings
    with pytest.raises(ConfigurationError, match=r"timeout: -1\.0 must be above 0"):
        app.send_task("some.task")


def test_two_apps_keep_their_own_settings():
    """Nothing is shared between two apps of one process."""
    one, two = new_app(budgets_timeout=10), new_app(budgets_timeout=20)
    assert Budgets(one).settings.budget.timeout == 10
    assert Budgets(two).settings.budget.timeout == 20
    assert Budgets.of(one) is not Budgets.of(two)
    assert Budgets.of(one) is Budgets.of(one)


def test_every_setting_has_a_place():
    """Each row of the table becomes an attribute of the settings or of their budget or lanes."""
    settings = Settings.from_mapping({})
    elsewhere = {"tools": settings.lanes, "default_lane": settings.lanes}
    for name in FIELDS:
        homes = (settings, settings.budget, settings.lanes)
        assert name in elsewhere or any(hasattr(home, name) for home in homes), name


def test_the_recorders_variable_is_no_setting(monkeypatch):
    """A worker hands its pool processes a variable of its own; they read their settings too."""
    from celery_budgets.execution.flight.recorder import ENVIRONMENT

    monkeypatch.setenv(ENVIRONMENT, "/dev/shm/somewhere")
    assert settings_of(new_app()).budget.timeout == 300


def test_limits_come_from_objects_and_from_a_mapping():
    """By name; a number alone is the concurrency."""
    given = {"api": 20, "slow": {"rate": "5/m", "burst": 2}}
    limits = Settings.from_mapping({"limits": given}).limits
    assert limits == {"api": Limit("api", 20), "slow": Limit("slow", rate="5/m", burst=2)}
    assert Settings.from_mapping({"limits": list(limits.values())}).limits == limits
    assert Settings.from_mapping({"limits": '{"api": 20}'}).limits == {"api": Limit("api", 20)}


def test_all_that_is_wrong_with_limits_is_told():
    """With the remedies."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_mapping({"limits": {"a": {"rat": "1/s"}, "b": 0, "c": {"rate": "x"}}})
    told = "\n".join(caught.value.problems)
    assert "limit 'a': 'rat' is no field; did you mean 'rate'?" in told
    assert "limit 'b': concurrency 0 must be" in told
    assert "limit 'c': rate: 'x' is no rate" in told
    with pytest.raises(ConfigurationError, match="limit 'a' is named twice"):
        Settings.from_mapping({"limits": [Limit("a", 1), Limit("a", 2)]})
