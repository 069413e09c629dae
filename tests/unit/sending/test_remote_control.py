"""Asking all workers: who is silent, when the broker's table of mailboxes is known or is not."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from celery_budgets.sending.remote_control import Inspection


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
        #: What a worker replies, where it is no answer.
        self.replies: dict[str, Any] = {}
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
        return [{name: self.replies.get(name, {"lanes": {}})} for name in answering]


def test_the_broker_knows_who_should_answer():
    """Once as many have answered as there are mailboxes, nobody is waited for."""
    app = FakeApp(mailboxes=["b@h", "a@h", "hung@h"])
    app.answering = [["b@h", "a@h"]]
    answers = Inspection(app).ask()
    assert list(answers.by_worker) == ["a@h", "b@h"]
    assert answers.silent == ("hung@h",)
    assert app.limits == [3]


def test_where_the_broker_does_not_tell_silence_is_known_from_before():
    """RabbitMQ: all of the timeout is waited, and the first question misses nobody."""
    app = FakeApp(mailboxes=None)
    app.answering = [["a@h", "b@h"], ["b@h"]]
    asking = Inspection(app)
    assert asking.ask().silent == ()
    assert asking.ask().silent == ("a@h",)
    assert app.limits == [None, None]


def test_a_newcomer_does_not_make_another_one_silent():
    """It started between the look at the mailboxes and the question: asked again."""
    app = FakeApp(mailboxes=["a@h"])
    app.answering = [["new@h", "a@h"], ["new@h", "a@h"]]
    answers = Inspection(app).ask()
    assert list(answers.by_worker) == ["a@h", "new@h"]
    assert answers.silent == ()
    assert app.limits == [1, 2]


def test_nobody_answers():
    """Nothing is made up."""
    app = FakeApp(mailboxes=[])
    app.answering = [[]]
    assert Inspection(app).ask() == ({}, (), ())
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
    assert list(Inspection(app).ask().by_worker) == ["a@h"]
    refuse(OperationalError("away"))
    with pytest.raises(OperationalError, match="away"):
        Inspection(app).ask()


NO_ANSWERS = [
    {"error": "KeyError('budgets')"},
    {"ok": "done"},
    {},
    {"lanes": None, "statistics": []},
    {"lanes": []},
    {"statistics": []},
    None,
    [],
    "pong",
    3,
]


@pytest.mark.parametrize("mailboxes", [["a@h", "plain@h"], None], ids=["redis", "rabbitmq"])
@pytest.mark.parametrize("reply", NO_ANSWERS, ids=repr)
def test_a_reply_of_another_shape_is_no_answer(reply, mailboxes):
    """It is named among the silent, at the first question as well as later."""
    app = FakeApp(mailboxes)
    app.replies["plain@h"] = reply
    app.answering = [["plain@h", "a@h"]] * 2 + [["a@h"]]
    asking = Inspection(app)
    for _ in range(2):
        answers = asking.ask()
        assert list(answers.by_worker) == ["a@h"]
        assert answers.silent == answers.plain == ("plain@h",)
    # Without a table of mailboxes nobody expects one that has never answered.
    silent = ("plain@h",) if mailboxes else ()
    assert asking.ask() == ({"a@h": {"lanes": {}}}, silent, ())


@pytest.mark.parametrize("reply", [*NO_ANSWERS, {"lanes": {}}, {"scope": None}], ids=repr)
def test_a_scope_is_told_of_by_those_that_know_scopes(reply):
    """An older worker may know the command, and not this argument of it."""
    app = FakeApp(["a@h", "plain@h"])
    app.replies = {"plain@h": reply, "a@h": {"scope": []}}
    app.answering = [["plain@h", "a@h"]]
    answers = Inspection(app).ask(arguments={"scope": "req-42"})
    assert answers == ({"a@h": {"scope": []}}, ("plain@h",), ("plain@h",))
