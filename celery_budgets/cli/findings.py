"""The checks of ``celery lanes check``: what can be wrong before a worker starts.

Each check covers one subject and returns its findings: one for each problem, with the remedy,
or a single one that describes what was checked. No check changes anything at the broker.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import click
from kombu.utils.url import maybe_sanitize_url

from celery_budgets.config.broker_limits import renews, visibility_timeout
from celery_budgets.config.settings import Settings
from celery_budgets.errors import ConfigurationError
from celery_budgets.model.lanes import DEFAULT_LANES, Lane, Lanes
from celery_budgets.sending.remote_control import Inspection
from celery_budgets.tasks.mapped import MappingTask
from celery_budgets.tasks.task import BudgetedTask
from celery_budgets.units import format_duration
from celery_budgets.worker.startup.checks import (
    longest_hard_limit,
    python_problem,
    task_class_problems,
    visibility_problem,
)
from celery_budgets.worker.startup.stray_queues import abandoned_problems, undeclared_problems
from celery_budgets.worker.transport.renewing.fleet import renewing
from celery_budgets.worker.transport.renewing.unacked_index import UnackedIndex

__all__ = [
    "Finding",
    "abandoned",
    "broker_address",
    "broker_answers",
    "configuration",
    "not_renewing",
    "python",
    "queues",
    "require_broker",
    "tasks",
    "tools",
    "visibility",
]

BROKER_SECONDS = 4.0
#: Lowest and highest sensible visibility timeout where workers renew deliveries, seconds.
RECOMMENDED = (60.0, 120.0)
#: The built-in tool table of every app: it may name tools that the app does not have.
_BUILT_IN = {tool: lane.name for lane in DEFAULT_LANES for tool in lane.tools}


class Finding(NamedTuple):
    """What a check found: *text* is a problem with its remedy, or describes what is fine."""

    ok: bool
    subject: str
    text: str


def _findings(subject: str, problems: Iterable[str], well: str) -> list[Finding]:
    found = [Finding(False, subject, problem) for problem in problems]
    return found or [Finding(True, subject, well)]


def python() -> list[Finding]:
    """Warn of a Python version that uses more memory than it should; never a failure."""
    problem = python_problem()
    return [] if problem is None else [Finding(True, "python", f"warning: {problem}")]


def configuration(settings: Settings, lane: Lane | None) -> list[Finding]:
    """Describe the configuration, which is valid once it could be read into *settings*."""
    if lane is not None:
        text = f"lane {lane.name}: queue {lane.queue}, concurrency {lane.concurrency}"
    else:
        lanes = settings.lanes
        total = sum(lane.concurrency for lane in lanes.values())
        text = f"{len(lanes)} lanes, concurrency {total} of {lanes.global_concurrency}"
    return [Finding(True, "configuration", text)]


def queues(app: Any) -> list[Finding]:
    """Find queues that routes or beat entries name and the app does not declare."""
    return [Finding(False, "queues", problem) for problem in undeclared_problems(app)]


def abandoned(app: Any) -> list[Finding]:
    """Warn of messages in Celery's former default queue, which has no lane; never a failure."""
    try:
        problems = list(abandoned_problems(app, ()))
    except Exception as exc:
        # A user who may connect is not always allowed to inspect every queue.
        return [Finding(True, "queues", f"the broker does not say what waits ({_one_line(exc)})")]
    return [Finding(True, "queues", f"warning: {problem}") for problem in problems]


def tools(lanes: Lanes, app: Any, lane: Lane | None) -> list[Finding]:
    """Find the entries of the tool table, other than the built-in ones, that match no task."""
    declared = {
        tool: name
        for tool, name in lanes.tools.items()
        if _BUILT_IN.get(tool) != name and (lane is None or lane.name == name)
    }
    names = [name for name in app.tasks if not name.startswith("celery.")]
    problems = lanes.unmatched_tools(names, declared)
    well = f"{len(declared)} entries of the app, each with a task" if declared else "none declared"
    return _findings("tools", problems, well)


def tasks(lanes: Lanes, app: Any, lane: Lane | None) -> list[Finding]:
    """Find tasks that name an unknown lane, or whose own limits contradict their lane's."""
    budgeted = [
        task for task in app.tasks.values()
        # Celery's own, such as celery.map, count as calls of the tasks that they run.
        if isinstance(task, BudgetedTask) and not isinstance(task, MappingTask)
    ]  # fmt: skip
    problems: list[str] = []
    count = 0
    for task in budgeted:
        refused = list(task_class_problems(task))
        problems += refused
        if refused:
            continue
        try:
            home = task.home()
            task.budget_in(home)
            count += lane is None or home == lane
        except ConfigurationError as exc:
            problems += (_about(task.name, problem) for problem in exc.problems)
    return _findings("tasks", problems, f"{count} budgeted {'task' if count == 1 else 'tasks'}")


def _about(task_name: str, problem: str) -> str:
    head = f"task {task_name!r}: "
    return problem if problem.startswith(head) else head + problem


def broker_address(app: Any) -> list[Finding]:
    """Find problems of the broker's address itself, without connecting."""
    url = app.conf.broker_read_url or app.conf.broker_url
    if not url:
        text = "none is configured; set broker_url, or name one with celery -b URL"
        return [Finding(False, "broker", text)]
    try:
        app.connection_for_read().release()
    except (KeyError, ImportError, ValueError) as exc:
        text = (
            f"address {maybe_sanitize_url(url)} cannot be used ({_one_line(exc)}); write "
            "redis://HOST:6379/0 or amqp://USER:PASSWORD@HOST:5672//"
        )
        return [Finding(False, "broker", text)]
    return []


def broker_answers(app: Any) -> list[Finding]:
    """Connect to the broker and disconnect; give up after :data:`BROKER_SECONDS`."""
    with app.connection_for_read(connect_timeout=BROKER_SECONDS) as connection:
        uri = connection.as_uri()
        answer = _first_answer(connection)
    if answer is None:
        return [Finding(True, "broker", f"{uri} answers")]
    text = (
        f"{uri} does not answer ({answer}); "
        "start it, or name another with broker_url or celery -b URL"
    )
    return [Finding(False, "broker", text)]


def require_broker(app: Any) -> None:
    """Raise unless the broker answers; for commands that cannot work without it.

    Raises:
        click.ClickException: The broker does not answer, or its address cannot be used.
    """
    for finding in broker_address(app) or broker_answers(app):
        if not finding.ok:
            raise click.ClickException(f"broker: {finding.text}")


def _first_answer(connection: Any) -> str | None:
    """Return why *connection* fails, or ``None`` when it succeeds."""
    answers: list[str | None] = []

    def connect() -> None:
        try:
            connection.ensure_connection(max_retries=0, timeout=BROKER_SECONDS)
            answers.append(None)
        except Exception as exc:
            # Each transport has its own errors; any of them means that the broker is unreachable.
            answers.append(_one_line(exc))

    # In a thread: redis-py reads without a timeout from a server that accepts and never answers.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(BROKER_SECONDS)
    return answers[0] if answers else f"no answer in {format_duration(BROKER_SECONDS)}"


def _one_line(exc: BaseException) -> str:
    words = exc.args[0] if len(exc.args) == 1 else exc
    return " ".join(str(words).split()) or type(exc).__name__


def visibility(lanes: Lanes, app: Any, lane: Lane | None) -> list[Finding]:
    """Compare a broker's visibility timeout with the longest hard time limit, seconds.

    A broker that has one (Redis) redelivers a call that is not acknowledged in time.
    """
    visible = visibility_timeout(app)
    if visible is None:
        return []
    if renews(app):
        return [Finding(True, "visibility", _renewed(visible))]
    chosen = [lane] if lane is not None else list(lanes.values())
    longest, _ = longest_hard_limit(app, lanes, chosen)
    problem = visibility_problem(app, lanes, chosen)
    well = f"{format_duration(visible)}, longest hard limit {format_duration(longest)}"
    return _findings("visibility", [problem] if problem else [], well)


def _renewed(visible: float) -> str:
    shortest, longest = RECOMMENDED
    text = f"{format_duration(visible)}; calls may take longer, as workers renew them"
    remedy = (
        f"set broker_transport_options['visibility_timeout'] to {shortest:g} to {longest:g} seconds"
    )
    if visible > longest:
        return f"warning: {text}, and those of a dead worker start again only after that; {remedy}"
    if visible < shortest / 4:
        return f"warning: {text}, but not while a worker stands still for that long; {remedy}"
    return text


def not_renewing(lanes: Lanes, app: Any, lane: Lane | None) -> list[Finding]:
    """Find running workers that do not renew their deliveries.

    Plain Celery workers and those of earlier versions: the visibility timeout bounds their calls.
    """
    visible = visibility_timeout(app)
    if visible is None or not renews(app):
        return []
    try:
        names = _workers_that_do_not_renew(app)
    except Exception as exc:
        return [Finding(True, "visibility", f"the broker does not say who renews ({exc})")]
    if not names:
        return []
    chosen = [lane] if lane is not None else list(lanes.values())
    longest, whose = longest_hard_limit(app, lanes, chosen)
    text = (
        f"{', '.join(names)}: they do not renew their deliveries (plain Celery, an earlier "
        "version, or budgets_redis_transport='kombu')"
    )
    if longest < visible:
        return [Finding(True, "visibility", f"warning: {text}; replace them")]
    problem = (
        f"{text}, and {whose} has a hard time limit of {format_duration(longest)}, not below the "
        f"visibility timeout ({format_duration(visible)}); until they are replaced, set "
        f"broker_transport_options['visibility_timeout'] above {longest:g}"
    )
    return [Finding(False, "visibility", problem)]


def _workers_that_do_not_renew(app: Any) -> list[str]:
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        if not channel.get_table(app.control.mailbox.exchange.name):
            return []  # no worker has a mailbox; a broadcast would leave keys at the broker
        index = UnackedIndex(channel, BROKER_SECONDS)
        try:
            names = renewing(index)
        finally:
            index.close()
    answers = Inspection(app).ask()
    return sorted({*answers.by_worker, *answers.plain} - names)
