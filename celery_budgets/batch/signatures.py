"""Validates the signatures of a batch: each must have a single result that reports its end.

See also: :mod:`celery_budgets.batch.batch`.

Runs in the process that sends.
"""

from __future__ import annotations

from typing import Any

from celery import Signature, group
from celery.canvas import _chain, _chord

__all__ = ["no_single_result", "task_of"]


def task_of(index: int, signature: Any) -> Any:
    """Return the task of a valid signature; ``None`` if only its name is known.

    Args:
        index: Its position, for messages.
        signature: The object that was passed to the batch.

    Raises:
        TypeError: It is no signature, or has several results.
        ValueError: It ignores its result, which is needed to detect its end.
    """
    if not isinstance(signature, Signature):
        raise TypeError(f"batch: call {index} is {signature!r}; give signatures, as task.s(...)")
    last = _last_of(signature)
    if isinstance(last, group):
        raise no_single_result(index, signature)
    for each in (signature, last):
        task = _type_of(each)
        if each.options.get("ignore_result", getattr(task, "ignore_result", False)):
            raise ValueError(
                f"batch: call {index} ({each.task}) ignores its result, so that nobody can tell "
                "its end; set ignore_result=False"
            )
    return _type_of(signature)


def no_single_result(index: int, signature: Any) -> TypeError:
    """Return the error for a signature that has the results of several calls."""
    return TypeError(f"batch: call {index} ({signature}) has no single result: use a chord")


def _last_of(signature: Any) -> Any:
    """Return the part of a canvas whose result is the result of the whole."""
    while True:
        if isinstance(signature, _chain) and signature.tasks:
            signature = signature.tasks[-1]
        elif isinstance(signature, _chord):
            signature = signature.body
        else:
            return signature


def _type_of(signature: Any) -> Any:
    try:
        return signature.type
    except KeyError:
        return None
