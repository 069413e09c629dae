"""`celery lanes limits`: what is in use, what an operator sets, takes back and releases."""

from __future__ import annotations

import json

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_budgets import Budgets, Lane, Limit
from celery_budgets.cli import lanes
from celery_budgets.model.limit import Demand
from celery_budgets.shared_state.answers import Release
from celery_budgets.shared_state.limit_agent import LimitAgent
from celery_budgets.shared_state.limits_of_app import new_store, store_of
from tests.support.waiting import wait_until

API = Limit("api", 2, rate="300/m", burst=30)
TENANT = Limit("tenant", 1, key="tenant_id")
SLOWLY = Limit("slowly", rate="60/h", burst=2)


@pytest.fixture
def app(redis_url):
    app = Celery("limits", set_as_current=False, broker=redis_url, backend=redis_url)
    app.conf.budgets_fleet_concurrency = 40
    Budgets(app, lanes=[Lane("lane", 4, fleet=3)], limits=[API, TENANT, SLOWLY])
    yield app
    store_of(app).client.close()
    app.close()


@pytest.fixture
def run(app):
    """Run `celery lanes limits ARGUMENTS`; return the exit code and the output."""

    def run(*arguments, **options):
        context = CLIContext(app, no_color=True, workdir=None)
        done = CliRunner().invoke(lanes, ["limits", *arguments], obj=context, **options)
        return done.exit_code, done.output

    return run


@pytest.fixture
def views(run):
    """What it says in JSON, by name and key."""

    def views():
        code, text = run("--json")
        assert code == 0, text
        return {(view["name"], view["key"]): view for view in json.loads(text)}

    return views


@pytest.fixture
def agents(app):
    """A function that returns the agent of another process."""
    made = []

    def make():
        made.append(LimitAgent(new_store(app), new_store(app)))
        return made[-1]

    yield make
    for agent in made:
        agent.stop()
        agent.store.client.close()
        agent._offers._store.client.close()


def ask(agent, *demands):
    wish = agent.ask(demands, lambda wish: None)
    wait_until(lambda: wish.granted or wish.refused, "it has an answer")
    return wish


def line_of(text, *names):
    """The cells of the row of a limit, and of its key."""
    rows = [line.split() for line in text.splitlines()]
    (row,) = [row for row in rows if row[: len(names)] == list(names)]
    return row


def test_what_is_in_use_and_who_waits(run, views, agents):
    """Of lanes and of the fleet too; of keys that are in use."""
    agent = agents()
    held = ask(agent, Demand(API), Demand(TENANT, "[acme]"), Demand(SLOWLY))
    ask(agent, Demand(TENANT, "other"))
    waits = ask(agent, Demand(TENANT, "[acme]"))
    found = views()
    assert list(found) == [
        ("@lane", "lane"), ("@fleet", ""), ("api", ""), ("tenant", "[acme]"), ("tenant", "other"),
        ("slowly", ""),
    ]  # fmt: skip
    api, acme = found["api", ""], found["tenant", "[acme]"]
    assert (api["in_use"], api["limit"], api["rate"]) == (1, 2, "300/m")
    assert [holder["name"] for holder in api["holders"]] == [held.holder]
    assert (acme["waiting"], acme["in_use"], acme["limit"]) == (1, 1, 1)
    assert 0 <= acme["oldest_wait"] < 60
    assert found["slowly", ""]["rate_left"] == 1
    code, text = run()
    assert code == 0, text
    assert line_of(text, "api")[1:4] == ["1", "2", "300/m"]
    assert line_of(text, "tenant", "[acme]")[:4] == ["tenant", "[acme]", "1", "1"]
    assert f"tenant [[acme]]: {held.holder} holds 1 place, lease for" in text
    assert not waits.granted


def test_what_an_operator_sets_holds_until_it_is_taken_back(run, views, agents):
    """Who waits for a place has it at once; calls that run above a lower limit finish."""
    agent, other = agents(), agents()
    assert all(ask(agent, Demand(API)).granted for _ in range(2))
    waits = ask(other, Demand(API))
    assert not waits.granted
    code, text = run("set", "api", "--concurrency", "3")
    assert (code, "until: limits reset api" in text) == (0, True), text
    wait_until(lambda: waits.granted, "who waited has a place", timeout=3)
    code, text = run("set", "api", "--rate", "2/h", "--concurrency", "1")
    assert code == 0, text
    api = views()["api", ""]
    assert (api["in_use"], api["limit"], api["rate"]) == (3, 1, "2/h")
    assert api["changed"]["concurrency"] == 1
    assert "changed by " in run()[1]
    assert run("reset", "api") == (0, "api: as configured again\n")
    assert views()["api", ""]["changed"] is None
    assert run("reset", "api") == (0, "api: nothing was set\n")


def test_a_rate_that_is_set_holds_at_once(run, agents):
    """Also for who has been told to come in a minute."""
    agent = agents()
    assert all(ask(agent, Demand(SLOWLY)).granted for _ in range(2))
    waits = ask(agent, Demand(SLOWLY))
    assert not waits.granted
    assert run("set", "slowly", "--rate", "3600/h")[0] == 0
    wait_until(lambda: waits.granted, "it is granted", timeout=15)


def test_a_weight_above_what_is_set_takes_all_of_it(run, agents):
    """It is not refused for ever."""
    assert run("set", "api", "--concurrency", "1", "--rate", "3600/h")[0] == 0
    agent = agents()
    wish = ask(agent, Demand(API, weight=2))
    assert wish.granted
    assert not ask(agent, Demand(API)).granted
    agent.release(wish)


def test_a_set_limit_holds_for_renewals(run, app, agents):
    """Who has lost its place takes it again as far as the limit that is set."""
    store, demands = store_of(app), [Demand(API)]
    assert run("set", "api", "--concurrency", "1")[0] == 0
    assert store.acquire("p:1", demands).granted
    assert store.renew([Release("p:1", demands), Release("p:2", demands)]) == [True, False]
    store.release("p:1", demands)


def test_the_places_of_a_holder_are_released(run, views, app):
    """After a question."""
    store, demands = store_of(app), [Demand(API, weight=2), Demand(TENANT, "acme")]
    assert store.acquire("gone:1", demands).granted
    code, text = run("release", "gone:1", input="n\n")
    assert (code, "take the places of gone:1 away (api, tenant [acme])?" in text) == (1, True)
    assert views()["api", ""]["in_use"] == 2
    assert run("release", "gone:1", "--yes") == (0, "gone:1: released: api, tenant [acme]\n")
    assert views()["api", ""]["in_use"] == 0
    code, text = run("release", "gone:1", "--yes")
    assert (code, "gone:1 holds no place" in text) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("set", "api"), 2, "give --concurrency, --rate, or both"),
        (("set", "apy", "--concurrency", "1"), 1, "did you mean 'api'"),
        (("set", "api", "--concurrency", "0"), 1, "must be a whole number of 1 or more"),
        (("set", "api", "--rate", "many"), 1, "'many' is no rate"),
        (("set", "slowly", "--concurrency", "1"), 1, "has no concurrency to change"),
        (("set", "tenant", "--rate", "1/s"), 1, "has no rate to change"),
        (("reset", "apy"), 1, "there is no limit 'apy'"),
    ],
)
def test_bad_input(run, arguments, code, words):
    found, text = run(*arguments)
    assert (found, words in text) == (code, True), text


def test_no_redis(run, app):
    """It is said, with code 1."""
    store_of(app).client.connection_pool.connection_kwargs.update(port=1)
    store_of(app).client.connection_pool.disconnect()
    code, text = run()
    assert (code, "the Redis of the limits does not answer" in text) == (1, True), text
