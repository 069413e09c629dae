"""Calls that end by something which no handler of theirs is ready for."""

from __future__ import annotations

import asyncio
import os
import sys

from celery import Celery, Task, signals
from celery.exceptions import Ignore, Reject

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("odd_ends")
budgets = Budgets(
    app,
    lanes=[
        Lane("narrow", concurrency=int(os.environ.get("ODD_ENDS_SLOTS", "1")), timeout=5),
        Lane("other", concurrency=1),
    ],
)
task = {"base": BudgetedTask, "lane": "narrow", "shared": False}


class Unspeakable(Exception):
    """Cannot be put into words."""

    def __str__(self):
        raise ValueError("__str__")


class NoText(Exception):
    """As of a class whose text was never set."""

    detail = None

    def __str__(self):
        return self.detail


class NoRepr(Exception):
    def __repr__(self):
        raise ValueError("__repr__")


class NoWords(Exception):
    def __str__(self):
        raise ValueError("__str__")

    __repr__ = __str__


class ExitsInStr(Exception):
    def __str__(self):
        raise SystemExit("__str__")

    __repr__ = __str__


class NoReduce(Exception):
    def __reduce__(self):
        raise ValueError("__reduce__")


class BadReduce(Exception):
    def __init__(self, one, two):
        super().__init__(one)


class NoEq(Exception):
    def __eq__(self, other):
        raise ValueError("__eq__")

    __hash__ = None


class NoTruth(Exception):
    def __bool__(self):
        raise ValueError("__bool__")

    __len__ = __bool__


class NoArgs(Exception):
    @property
    def args(self):
        raise ValueError("args")


class Nameless(Exception):
    """Claims to be of no class."""

    @property
    def __class__(self):
        raise ValueError("__class__")


class OddIgnore(Ignore):
    def __str__(self):
        raise ValueError("__str__")

    __repr__ = __str__


class OddReject(Reject):
    def __str__(self):
        raise ValueError("__str__")

    __repr__ = __str__


class OwnBase(BaseException):
    pass


class UnspeakableBase(BaseException):
    def __str__(self):
        raise ValueError("__str__")

    __repr__ = __str__


async def cancelled():
    asyncio.current_task().cancel()
    await asyncio.sleep(5)


#: What leaves the body, by name.
ERRORS = {
    "unspeakable": lambda: Unspeakable("x"),
    "no_text": lambda: NoText("x"),
    "no_repr": lambda: NoRepr("x"),
    "no_words": lambda: NoWords("x"),
    "exits_in_str": lambda: ExitsInStr("x"),
    "no_reduce": lambda: NoReduce("x"),
    "bad_reduce": lambda: BadReduce(1, 2),
    "no_eq": lambda: NoEq("x"),
    "no_truth": lambda: NoTruth("x"),
    "no_args": lambda: NoArgs("x"),
    "nameless": lambda: Nameless("x"),
    "unpicklable": lambda: ValueError(lambda: None),
    "group": lambda: ExceptionGroup("many", [Unspeakable(), NoText()]),
    "odd_ignore": lambda: OddIgnore("x"),
    "odd_reject": lambda: OddReject("x", requeue=False),
    "memory_error": lambda: MemoryError("x"),
    "stop_iteration": lambda: StopIteration(1),
    # No Exception.
    "exit": lambda: SystemExit(3),
    "exit_text": lambda: SystemExit("enough"),
    "interrupt": lambda: KeyboardInterrupt(),
    "generator_exit": lambda: GeneratorExit(),
    "own_base": lambda: OwnBase("x"),
    "unspeakable_base": lambda: UnspeakableBase("x"),
}


@app.task(**task, name="misbehave")
def misbehave(how: str) -> None:
    if how == "sys_exit":
        sys.exit(1)
    if how == "cancelled":
        asyncio.run(cancelled())
    raise ERRORS[how]()


class OddResult:
    def __repr__(self):
        raise ValueError("__repr__")

    def __eq__(self, other):
        raise ValueError("__eq__")

    def __bool__(self):
        raise ValueError("__bool__")

    def __reduce__(self):
        raise ValueError("__reduce__")


@app.task(**task, name="odd_result")
def odd_result() -> OddResult:
    return OddResult()


@app.task(**task, name="odd_result_ignored", ignore_result=True)
def odd_result_ignored() -> OddResult:
    return OddResult()


class OddHooks(BudgetedTask):
    """Each of its handlers raises what the call's argument names."""

    abstract = True

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        _raise_in("on_failure", args)

    def on_success(self, retval, task_id, args, kwargs):
        _raise_in("on_success", args)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        _raise_in("after_return", args)

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        _raise_in("on_retry", args)


RAISED = {
    "exception": ValueError,
    "base": OwnBase,
    "exit": SystemExit,
    "memory": MemoryError,
    "reject": Reject,
}


def _raise_in(where, args):
    if args and args[0] == where:
        raise RAISED[args[1]](where)


hooked = {**task, "base": OddHooks}


@app.task(**hooked, name="hooked", bind=True)
def hooks(self: Task, where: str, how: str, then: str = "succeed") -> str:
    """End in *then*; the handler named *where* raises."""
    if then == "fail":
        raise RuntimeError(where)
    if then == "die":
        os._exit(1)
    if then == "hang":
        while True:
            try:
                asyncio.run(asyncio.sleep(10))
            except Exception:
                continue
    return where


@signals.task_failure.connect
def failed(args=None, **_):
    _raise_in("task_failure", args or ())


@signals.task_success.connect
def succeeded(sender=None, **_):
    _raise_in("task_success", sender.request.args or ())


@signals.task_postrun.connect
def ran(args=None, **_):
    _raise_in("task_postrun", args or ())


@signals.task_prerun.connect
def runs(args=None, **_):
    _raise_in("task_prerun", args or ())


@app.task(**task, name="ping")
def ping() -> str:
    return "pong"
