"""Asking all workers: who is silent, when the broker's table of mailboxes is known or is not."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from celery_budgets.asking import Asking


class FakeApp:
    """The part of an app that is asked through: mailboxes at the broker, and who answers."""

    def __init__(self, mailboxes: list[str] | None = None) -> None:
        exchange = SimpleNamespace(name="celery.pidbox")
        self.control = SimpleNamespace(
            mailbox=SimpleNamespace(namespace="celery", exchange=exchange),
            broadcast=self._broadcast,
        )
        #: That of the channel; none where the transport has no table.
        self.get_table: Any = None
        if mailboxes is not None:
            rows = [("", "", f"{name}.celery.pidbox") for name in mailboxes]
            self.get_table = {"celery.pidbox": [*rows, ("", "", "another.queue")]}.__getitem__
        #: One list of workers for each question to come.
        self.answering: list[list[str]] = []
        self.limits: list[int | None] = []
        self.connection: Any = None

    @contextmanager
    def connection_for_write(self) -> Any:
        channel = SimpleNamespace(**({"get_table": self.get_table} if self.get_table else {}))
        self.connection = SimpleNamespace(default_channel=channel)
        yield self.connection
        self.connection = None

    def _broadcast(self, command: str, **options: Any) -> list[dict[str, Any]]:
        assert (command, options["reply"]) == ("budgets", True)
        assert options["connection"] is self.connection is not None
        self.limits.append(options["limit"])
        answering = self.answering.pop(0)[: options["limit"]]
        return [{name: {"uptime": 1.0}} for name in answering]


def test_the_broker_knows_who_should_answer():
    """Once as many have answered as there are mailboxes, nobody is waited for."""
    app = FakeApp(mailboxes=["b@h", "a@h", "hung@h"])
    app.answering = [["b@h", "a@h"]]
    answers = Asking(app).ask()
    assert list(answers.by_worker) == ["a@h", "b@h"]
    assert answers.silent == ("hung@h",)
    assert app.limits == [3]


def test_where_the_broker_does_not_tell_silence_is_known_from_before():
    """RabbitMQ: all of the timeout is waited, and the first question misses nobody."""
    app = FakeApp(mailboxes=None)
    app.answering = [["a@h", "b@h"], ["b@h"]]
    asking = Asking(app)
    assert asking.ask().silent == ()
    assert asking.ask().silent == ("a@h",)
    assert app.limits == [None, None]


def test_a_newcomer_does_not_make_another_one_silent():
    """It started between the look at the mailboxes and the question: asked again."""
    app = FakeApp(mailboxes=["a@h"])
    app.answering = [["new@h", "a@h"], ["new@h", "a@h"]]
    answers = Asking(app).ask()
    assert list(answers.by_worker) == ["a@h", "new@h"]
    assert answers.silent == ()
    assert app.limits == [1, 2]


def test_nobody_answers():
    """Nothing is made up."""
    app = FakeApp(mailboxes=[])
    app.answering = [[]]
    assert Asking(app).ask() == ({}, ())
    assert app.limits == [None]


def test_a_broker_that_is_away_is_an_error_and_a_table_that_fails_is_not():
    """The table is a convenience of some transports."""
    app = FakeApp(mailboxes=["a@h"])

    def refuse(exception: Exception) -> None:
        def fail(_: str) -> Any:
            raise exception

        app.get_table = fail

    refuse(NotImplementedError())
    app.answering = [["a@h"]]
    assert list(Asking(app).ask().by_worker) == ["a@h"]
    refuse(OperationalError("away"))
    with pytest.raises(OperationalError, match="away"):
        Asking(app).ask()
