"""Fixtures: real servers and real workers, for all tests.

Every test has a Redis database of its own, so that tests need no cleaning up. A test that asks
for ``broker_url`` runs once on Redis and once on RabbitMQ; results are kept in Redis.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
from celery import _state
from kombu import Connection, pools

from celery_budgets import embedded
from celery_budgets.embedded import EmbeddedBroker
from celery_budgets.model.lanes import DEFAULT_LANES
from celery_budgets.model.priority import LOW_SUFFIX
from tests.support.apps import Servers, fresh_app
from tests.support.forked import worker_server
from tests.support.marks import ON_RABBITMQ
from tests.support.rabbitmq import RABBITMQ, rabbitmqctl
from tests.support.workers import Workers, leaving

# Before any test module is imported: a module that takes a constant from an app's module makes
# that app, and Celery would add its tasks to every app that comes later.
_shared_tasks = set(_state._on_app_finalizers)
DATABASES = 1024
#: The program of the servers that tests start, where it is not to be the installed one.
REDIS_SERVER = os.environ.get("BUDGETS_TEST_REDIS_SERVER")

Apps = Callable[..., ModuleType]


class Failures:
    """Names each failed test at once: a run that is cut off prints no summary."""

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line("")
            self._terminal.write_line(f"{report.nodeid} failed ({report.when})")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Register the hook of :class:`Failures`, where there is a terminal to write to."""
    plugins = session.config.pluginmanager
    terminal = plugins.get_plugin("terminalreporter")
    if terminal is not None:  # none in a process of pytest-xdist
        plugins.register(Failures(terminal))


def pytest_configure() -> None:
    """Set up the process that the tests run in."""
    # A busy machine may take any time for one example.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")
    if REDIS_SERVER:
        embedded.find_server = lambda: Path(REDIS_SERVER)
    _hear_signals()
    os.register_at_fork(before=_close_pooled_connections)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """End what forks workers, when the fixtures have stopped theirs."""
    if worker_server.cache_info().currsize:
        worker_server().close()


def _close_pooled_connections() -> None:
    """Leave none to a child, which would close it: on Redis by reading the next reply to it.

    ``app.control.inspect`` of a test before may wait for that reply; without it whoever closes
    the connection next, be it a fixture much later, waits for ever (kombu, redis.Channel.close).
    """
    for pool in (*pools.connections.values(), *pools.producers.values()):
        with contextlib.suppress(Exception):  # as pools.reset, but the pool can be used on
            pool.force_close_all(close_pool=False)
            # What was closed is out of the pool, and who asks an empty one waits for ever.
            pool.setup()


def _hear_signals() -> None:
    """Have signals that tests send heard here and in children, also below ``nohup`` and ``&``."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Have Celery forget the tasks of apps that were made by importing the tests."""
    _state._on_app_finalizers.intersection_update(_shared_tasks)


@pytest.fixture(autouse=True)
def tasks_of_its_own() -> Iterator[None]:
    """Have Celery forget the tasks of apps that a test makes, and that it has made a worker."""
    before, blocks = set(_state._on_app_finalizers), _state.task_join_will_block()
    yield
    _state._on_app_finalizers.intersection_update(before)
    # Else no test after it might wait for a result (celery.worker.components.Pool.create).
    _state._set_task_join_will_block(blocks)


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """The Redis-compatible server of this test session."""
    with EmbeddedBroker(databases=DATABASES) as broker:
        yield broker
        # Fails, after the last test, for a worker that did not stop when it was asked.
        leaving.see_off()


@pytest.fixture(scope="session")
def redis_database(embedded_broker: EmbeddedBroker) -> Callable[[], str]:
    """A function that returns the address of a database that nobody has used."""
    numbers = itertools.count()
    return lambda: embedded_broker.url(next(numbers) % DATABASES)


@pytest.fixture
def redis_url(redis_database: Callable[[], str]) -> str:
    """A Redis database of this test alone."""
    return redis_database()


@pytest.fixture(scope="session")
def rabbitmq_hosts() -> Iterator[list[str]]:
    """RabbitMQ virtual hosts of this session; skips where none answers, fails on CI."""
    try:
        socket.create_connection(RABBITMQ, timeout=1).close()
    except OSError as exc:
        message = f"no RabbitMQ on {RABBITMQ[0]}:{RABBITMQ[1]} ({exc})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    address = f"amqp://guest:guest@{RABBITMQ[0]}:{RABBITMQ[1]}"
    names = [f"celery-budgets-{os.getpid()}-{number}" for number in range(3)]
    made = [name for name in names if rabbitmqctl("add_vhost", name)]
    for name in made:
        rabbitmqctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    # The default one where we are not the server's administrator.
    hosts = [f"{address}/{name}" for name in made] or [f"{address}//"]
    yield hosts
    for host in hosts:
        leaving.see_off(host)
    for name in made:
        rabbitmqctl("delete_vhost", name)


@pytest.fixture(scope="session")
def rabbitmq_server(rabbitmq_hosts: list[str]) -> str:
    """The virtual host of modules that have workers of their own."""
    return rabbitmq_hosts[0]


@pytest.fixture(scope="session")
def next_rabbitmq_host(rabbitmq_hosts: list[str]) -> Callable[[], str]:
    """A function that returns each of the other virtual hosts in turn."""
    hosts = itertools.cycle(rabbitmq_hosts[1:] or rabbitmq_hosts)
    return lambda: next(hosts)


@pytest.fixture
def rabbitmq_url(next_rabbitmq_host: Callable[[], str]) -> Iterator[str]:
    """RabbitMQ, without the queues of the default lanes."""
    url = next_rabbitmq_host()
    leaving.see_off(url)
    with Connection(url) as connection, connection.channel() as channel:
        for queue in ("celery", *(lane.queue for lane in DEFAULT_LANES)):
            channel.queue_delete(queue)
            channel.queue_delete(queue + LOW_SUFFIX)
    yield url
    # A pooled connection remembers what it has declared, and would not do so again.
    pools.reset()


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=ON_RABBITMQ)])
def broker_url(request: pytest.FixtureRequest) -> str:
    """Each broker in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def servers(request: pytest.FixtureRequest, redis_url: str) -> Servers:
    """The broker of this test (``broker_url`` where it asks for that, else Redis), and Redis."""
    asked = [name for name in ("broker_url", "rabbitmq_url") if name in request.fixturenames]
    broker = request.getfixturevalue(asked[0]) if asked else redis_url
    return Servers(broker=broker, backend=redis_url)


@pytest.fixture
def worker(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """``worker("tests.worker.x_app", "-Q", "file_read")`` starts a real worker for this test."""
    workers = Workers(servers, tmp_path_factory.mktemp("workers"))
    yield workers
    workers.leave()


@pytest.fixture
def load_app(servers: Servers) -> Iterator[Apps]:
    """``load_app("tests.worker.x_app")`` imports that module anew, connected to ``servers``."""
    with ExitStack() as stack:
        yield lambda module, **environment: stack.enter_context(
            fresh_app(module, servers, environment)
        )


@pytest.fixture(scope="session")
def new_servers(redis_database: Callable[[], str]) -> Callable[[], Servers]:
    """A function that returns Redis for one of several workers, which share no queue."""

    def new() -> Servers:
        url = redis_database()
        return Servers(broker=url, backend=url)

    return new


@pytest.fixture(scope="module")
def module_servers(new_servers: Callable[[], Servers]) -> Servers:
    """Redis for a whole test module."""
    return new_servers()


@pytest.fixture(scope="module")
def module_worker(
    module_servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workers]:
    """As ``worker``, but for a whole test module."""
    workers = Workers(module_servers, tmp_path_factory.mktemp("workers"))
    yield workers
    workers.leave()


@pytest.fixture(scope="module")
def load_module_app(module_servers: Servers) -> Iterator[Apps]:
    """As ``load_app``, but for a whole test module."""
    with ExitStack() as stack:
        yield lambda module, **environment: stack.enter_context(
            fresh_app(module, module_servers, environment)
        )
