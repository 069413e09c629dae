"""`celery lanes status` and `celery lanes top`, with crafted answers."""

from __future__ import annotations

import io
import json

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner
from rich.console import Console

from celery_budgets import Budgets, Lane
from celery_budgets.cli import lanes, queue_cells, status, top
from celery_budgets.cli.lanes_table import drawn
from celery_budgets.cli.top import Looks
from celery_budgets.sending.remote_control import Replies
from celery_budgets.sending.status.alerts import Alert, alerts_of
from celery_budgets.sending.status.overview import Overview
from celery_budgets.telemetry.queues import LaneQueue
from celery_budgets.units import MIB
from tests.support.answers import ScriptedInspection, answer, ended, lane

FIVE_MINUTES = {"seconds": 300.0}
WAITS = {
    "messages": 40, "oldest": 12.0, "estimated": False, "trend": -2.0, "age": 1.0,
    "departures": 5.0,
}  # fmt: skip
BUSY = answer(
    {"quick": lane(active=1, limit=2, waiting=3, recent={"hard_time_limit": 1}, backlog=WAITS)},
    ended("quick", 0.25, succeeded=10, failed=2, soft_time_limit=1, hard_time_limit=1),
    pool_rss=(480 * MIB, 60 * MIB),
    recent=FIVE_MINUTES,
)
IDLE = answer({"slow": lane(limit=1, queue="slow")}, capacity=1, slots=1)
TWO = Replies({"a@h": BUSY, "b@h": IDLE}, ("c@h",))


@pytest.fixture
def app() -> Celery:
    made = Celery("status", set_as_current=False, broker="memory://")
    Budgets(made, lanes=[Lane("quick", 2), Lane("slow", 1), Lane("lonely", 1)])
    return made


@pytest.fixture
def run(app, monkeypatch):
    """Run `celery lanes ARGUMENTS`, with workers that give *rounds* as answers."""

    def run(*arguments: str, rounds=(TWO,)):
        for module in (status, top):
            monkeypatch.setattr(module, "Inspection", lambda _: ScriptedInspection(*rounds))
            monkeypatch.setattr(module, "require_broker", lambda _: None)
        context = CLIContext(app, no_color=True, workdir=None)
        return CliRunner().invoke(lanes, arguments, obj=context)

    return run


def text_of(overview: Overview, width: int = 200, *, live: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(drawn(overview, width, live=live))
    return out.getvalue()


def cells(line: str) -> list[str]:
    return [cell for cell in line.split("  ") if cell.strip()]


def test_a_row_for_each_lane_of_each_worker(run):
    """Lanes in the app's order; durations and sizes in units for people."""
    result = run("status")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    heading, *rows = [[cell.strip() for cell in cells(line)] for line in lines if "─" not in line]
    heading = next(row for row in [heading, *rows] if row[:1] == ["lane"])
    assert heading == [
        "lane", "worker", "active", "waiting", "backlog", "oldest", "drain", "calls", "failed",
        "killed", "p50", "p95", "memory", "gate", "alerts",
    ]  # fmt: skip
    # 1 of 2 slots: half of 8 cells; 480 of 512 MiB: 7.5 of them, 60 MiB: 0.94.
    assert next(row for row in rows if row[:1] == ["quick"]) == [
        "quick", "a@h", "████···· 1/2", "3", "40", "12 s", "20 s", "14", "3", "1",
        "250 ms", "250 ms",
        "███████▌ 480 of 512 MiB", "open", "RSS 480 MiB above 90 % of 512 MiB",
    ]  # fmt: skip
    assert ["1 killed at the hard time limit in the last 5 min"] in rows
    assert next(row for row in rows if row[:1] == ["slow"]) == [
        "slow", "b@h", "········ 0/1", "0", "?", "?", "?", "0", "0", "0", "-", "-",
        "█······· 60 of 512 MiB", "open",
    ]  # fmt: skip
    assert "2 workers, 1 of 3 slots active, 3 waiting" in result.output


def test_what_is_missing_is_named(run):
    """Workers that do not answer, and lanes that nobody serves."""
    output = run("status").output
    assert "no answer from c@h: it hangs, was killed, or runs without budgets" in output
    assert "no worker serves: lonely" in output


def test_json_is_in_base_units(run):
    """Seconds and bytes, for programs."""
    shown = json.loads(run("status", "--json").output)
    assert (shown["workers"], shown["silent"]) == (["a@h", "b@h"], ["c@h"])
    assert shown["unserved"] == ["lonely"]
    quick, slow = shown["lanes"]
    assert quick | {"p50": 0, "p95": 0, "alerts": []} == {
        "worker": "a@h", "lane": "quick", "active": 1, "limit": 2, "waiting": 3,
        "calls": 14, "failed": 3, "killed": 1, "rate": None, "p50": 0, "p95": 0,
        "rss": 480 * MIB, "rss_warning": 400 * MIB, "max_rss": 512 * MIB,
        "gate": "open", "paused": False, "alerts": [],
        "backlog": 40, "oldest": 12.0, "oldest_estimated": False,
        "arrivals": 3.0, "departures": 5.0, "drain": 20.0, "slo": None,
    }  # fmt: skip
    assert quick["p95"] == pytest.approx(0.25)
    assert [alert["level"] for alert in quick["alerts"]] == ["critical", "critical"]
    assert (slow["p50"], slow["alerts"]) == (None, [])
    assert (slow["backlog"], slow["oldest"], slow["drain"]) == (None, None, None)


def test_json_has_one_entry_for_each_lane(run):
    """Over all its workers, those that nobody serves too, with what is behind a row of the page."""
    shown = json.loads(run("status", "--json").output)
    quick, slow, lonely = shown["summary"]
    assert (quick["lane"], quick["workers"], quick["active"], quick["limit"]) == (
        "quick", ["a@h"], 1, 2,
    )  # fmt: skip
    assert quick["outcomes"] == {
        "succeeded": 10, "failed": 2, "soft_time_limit": 1, "hard_time_limit": 1,
    }  # fmt: skip
    assert quick["p50"] == quick["p99"] == pytest.approx(0.25)
    assert [(task["task"], task["calls"]) for task in quick["tasks"]] == [("task", 14)]
    assert [alert["level"] for alert in quick["alerts"]] == ["critical", "critical"]
    assert (quick["backlog"], quick["drain"], quick["gates_paused"]) == (40, 20.0, 0)
    assert (slow["calls"], slow["p99"], slow["running"]) == (0, None, [])
    assert (lonely["workers"], lonely["rss"], lonely["max_rss"]) == ([], None, None)


def test_the_summary_adds_up_over_workers():
    """Slots, borrowed ones, the last hour and running calls; the fullest process speaks for all."""
    one = lane(active=3, limit=2, hour={"succeeded": 5}, running=[{"task_id": "x", "seconds": 1.0}])
    nap = {"task_id": "y", "seconds": 9.0}
    paused = {"hour": {"failed": 1, "succeeded": 1}, "paused": ["operator"], "running": [nap]}
    other = lane(active=1, limit=2, **paused)
    answers = {"a@h": answer({"quick": one}), "b@h": answer({"quick": other}, pool_rss=(MIB,))}
    (summary,) = Overview.of(Replies(answers, ()), ["quick"]).to_json()["summary"]
    assert (summary["active"], summary["limit"], summary["borrowed"]) == (4, 4, 1)
    assert summary["hour"] == {"succeeded": 6, "failed": 1}
    assert [(call["task_id"], call["worker"]) for call in summary["running"]] == [
        ("y", "b@h"), ("x", "a@h"),
    ]  # fmt: skip
    assert (summary["paused"], summary["rss"]) == (1, 60 * MIB)
    assert [alert["text"] for alert in summary["alerts"]] == ["paused by an operator"]


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_nobody_answers_is_code_1(run, as_json):
    """The message goes to standard error, so that --json stays JSON."""
    result = run("status", *as_json, rounds=[Replies({}, ("c@h",))])
    assert result.exit_code == 1
    assert result.stderr == "Error: no worker answered within 1 s\n"
    assert "c@h" in result.stdout
    if as_json:
        assert json.loads(result.stdout)["unserved"] == ["quick", "slow", "lonely"]


@pytest.mark.parametrize("name", ["status", "top"])
def test_without_a_broker_it_ends_at_once(name):
    """One message with the remedy, no traceback."""
    app = Celery("away", set_as_current=False, broker="redis://127.0.0.1:1/0")
    Budgets(app, lanes=[Lane("quick", 2)])
    result = CliRunner().invoke(lanes, [name], obj=CLIContext(app, no_color=True, workdir=None))
    assert result.exit_code == 1
    assert result.output.startswith("Error: broker: redis://")
    assert "127.0.0.1:1/0 does not answer" in result.output


@pytest.mark.parametrize("arguments", [["status", "--timeout", "nan"], ["top", "--interval", "0"]])
def test_seconds_are_checked(run, arguments):
    """Above 0, and a number."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert "must be above 0" in result.output


def test_rates_are_differences_over_time():
    """4 calls more in 2 s; a worker that was started anew in between has no rate yet."""
    now = iter([100.0, 102.0, 103.0])
    rounds = [
        Replies({"a@h": answer(calls=ended("quick", 1, succeeded=count))}, ())
        for count in (10, 14, 3)
    ]
    looks = Looks(ScriptedInspection(*rounds), ["quick"], clock=lambda: next(now))
    rates = [looks.look().rows[0].rate for _ in rounds]
    assert rates == [None, 2.0, None]


def test_a_broker_that_goes_away_does_not_end_top():
    """What was seen last stays, with its age; it goes on when the broker is back."""
    now = iter([10.0, 15.0, 16.0, 16.5])
    rounds = [TWO, ConnectionError("away"), TWO]
    looks = Looks(ScriptedInspection(*rounds), ["quick"], clock=lambda: next(now))
    first = looks.look()
    assert looks.look() is first
    assert looks.problem == "the broker does not answer (away)"
    assert looks.age == 5.0
    assert looks.look() is not first
    assert (looks.problem, looks.age) == ("", 0.5)


def test_top_once_has_rates(run):
    """Two looks, one interval apart."""
    more = Replies({"a@h": answer(calls=ended("quick", 1, succeeded=20))}, ())
    first = Replies({"a@h": answer(calls=ended("quick", 1, succeeded=10))}, ())
    result = run("top", "--once", "--interval", "0.05", rounds=[first, more])
    assert result.exit_code == 0
    row = next(line for line in result.output.splitlines() if line.strip().startswith("quick"))
    # At most 10 calls in 0.05 s, less what the machine was late.
    assert 0 < float(cells(row)[7]) <= 200
    assert run("top", "--once", "--interval", "0.01", rounds=[Replies({}, ())]).exit_code == 1


def test_top_without_a_terminal_prints_until_ctrl_c(run):
    """One table per interval; Ctrl-C is no failure."""
    result = run("top", "--interval", "0.01", rounds=[TWO, TWO, KeyboardInterrupt()])
    assert result.exit_code == 0
    assert result.output.count("celery lanes top") == 2
    assert "\x1b" not in result.output


def test_a_narrow_terminal_has_no_bars():
    """What is left out is what one can do without."""
    overview = Overview.of(TWO, ["quick", "slow"])
    assert "█" in text_of(overview, 160)
    narrow = text_of(overview, 130)
    assert "█" not in narrow
    assert "p50" not in narrow
    assert "480 of 512 MiB" in narrow


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("width", [120, 130, 160, 180, 200])
def test_no_cell_is_cut_off(width, live):
    """Columns are left out instead: of those that one can do without."""
    shown = text_of(Overview.of(TWO, ["quick", "slow"]), width, live=live)
    assert "…" not in shown
    assert {"backlog", "oldest", "killed", "alerts"} <= set(shown.split())


def test_names_are_not_read_as_markup():
    """A worker may be called [red]."""
    overview = Overview.of(Replies({"[red]@h": BUSY}, ("[bold]@h",)), ["quick"])
    assert "[red]@h" in text_of(overview)
    assert "[bold]@h" in text_of(overview)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"pool_rss": (400 * MIB,)}, []),
        (
            {"pool_rss": (401 * MIB,)},
            [Alert("warning", "RSS 401 MiB above the warning level, 400 MiB")],
        ),
        # 90 % of 512 MiB are 460.8 MiB
        (
            {"pool_rss": (461 * MIB,)},
            [Alert("critical", "RSS 461 MiB above 90 % of 512 MiB")],
        ),
        (
            {"lanes": {"quick": lane(drift=["5 slots instead of 2"])}},
            [Alert("warning", "drift: 5 slots instead of 2")],
        ),
        (
            {"lanes": {"quick": lane(consumed=False, paused=["operator"])}},
            [Alert("warning", "paused by an operator")],
        ),
        (
            {"lanes": {"quick": lane(paused=["memory"])}, "gate": {"state": "paused"}},
            [Alert("critical", "gate paused: no call is admitted")],
        ),
        ({"abandoned_threads": 2}, [Alert("warning", "2 threads past the hard limit")]),
        (
            {"limits_away": 12.3},
            [Alert("critical", "limits over the fleet unknown: Redis has not answered for 12 s")],
        ),
        ({"limits_away": None}, []),
        # What was before is no alert any more, but in the figures since the start.
        ({"telemetry_failures": 7, "recent": FIVE_MINUTES}, []),
        (
            {"telemetry_failures": 7, "recent": {"seconds": 300.0, "telemetry_failures": 1}},
            [Alert("warning", "1 telemetry failure in the last 5 min")],
        ),
        (
            {
                "calls": ended("quick", 1, hard_time_limit=4, memory_limit=2),
                "recent": FIVE_MINUTES,
            },
            [],
        ),
        (
            {"lanes": {"quick": lane(recent={"memory_limit": 2})}, "recent": {"seconds": 90.0}},
            [Alert("critical", "2 killed for memory in the last 90 s")],
        ),
        # An older version.
        ({"telemetry_failures": 7, "calls": ended("quick", 1, hard_time_limit=4)}, []),
    ],
)
def test_alerts(more, found):
    """The levels of the Prometheus rules, and what only a look at the worker shows."""
    assert alerts_of("quick", answer(**more)) == tuple(found)


def test_the_worst_alert_comes_first():
    """Kills before rejections."""
    recent = {"rejected": 4, "memory_limit": 1}
    drifted = lane(drift=["1 slot instead of 2"], recent=recent)
    found = alerts_of("quick", answer({"quick": drifted}, recent=FIVE_MINUTES))
    assert [alert.text for alert in found] == [
        "1 killed for memory in the last 5 min",
        "drift: 1 slot instead of 2",
        "4 not admitted in the last 5 min",
    ]


def test_the_queue_of_a_lane_stands_once():
    """It is that of all its workers; what they have started adds up."""
    two = Replies({name: answer({"quick": lane(backlog=WAITS)}) for name in ("a@h", "b@h")}, ())
    shown = text_of(Overview.of(two, ["quick"]))
    first, second = (line for line in shown.splitlines() if "@h" in line)
    assert cells(first)[4].strip() == "40"
    assert "40" not in second


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        (WAITS | {"estimated": True, "oldest": 200.0}, ("40", "~3 min", "20 s")),
        (WAITS | {"trend": 1.0}, ("40", "12 s", "grows")),
        (WAITS | {"trend": None, "oldest": None}, ("40", "?", "?")),
        (WAITS | {"messages": 0, "oldest": 0.0}, ("0", "-", "-")),
        (WAITS | {"messages": None}, ("?", "?", "?")),
        # An older version.
        ({}, ("?", "?", "?")),
    ],
)
def test_what_is_unknown_is_no_zero(facts, shown):
    """Three cells: how many, how old, how long until none."""
    queue = LaneQueue.of([facts])
    found = queue_cells.backlog(queue), queue_cells.oldest(queue), queue_cells.drain(queue)
    assert found == shown


def test_top_shows_the_history_of_a_lane():
    """One character a look, the highest full."""
    rounds = [
        Replies({"a@h": answer({"quick": lane(backlog=WAITS | {"messages": number})})}, ())
        for number in (0, 20, None, 40)
    ]
    looks = Looks(ScriptedInspection(*rounds), ["quick"])
    for _ in rounds:
        overview = looks.look()
    assert overview.rows[0].history == (0, 20, None, 40)
    assert "▁▅ █" in text_of(overview, live=True)
    assert "history" not in json.dumps(overview.to_json())


@pytest.mark.parametrize(
    ("hour", "shown"),
    [([999, 1], "99.9 % in 5 s"), ([99_999, 1], "99.9 % in 5 s"), ([7, 0], "100 % in 5 s")],
)
def test_a_promise_is_shown_where_there_is_one(hour, shown):
    """The share of the last hour; 100 % only if none was late."""
    slo = {"seconds": 5.0, "hour": hour, "day": [1, 1]}
    overview = Overview.of(Replies({"a@h": answer({"quick": lane(slo=slo)})}, ()), ["quick"])
    assert shown in text_of(overview)
    assert "slo" in text_of(overview).split()
    (row,) = overview.to_json()["lanes"]
    assert row["slo"] == {"seconds": 5.0, "hour": pytest.approx(1, abs=0.01), "day": 0.5}
    assert "slo" not in text_of(Overview.of(TWO, ["quick"])).split()
