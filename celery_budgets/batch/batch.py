"""Batches: thousands of calls, a few at a time, with their results in order.

A batch holds only the calls and results in its window, however long it is. Its calls are in a
request scope of their own, so that an early end of the iteration, also by Ctrl-C, revokes all
calls that have not started, without a list of them.

See also: :mod:`celery_budgets.batch.arrivals`, for how results are awaited.

Runs in the process that sends.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from celery import states
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, assert_will_not_block

from celery_budgets.batch.arrivals import PUSH_SECONDS, Arrivals
from celery_budgets.batch.items import BatchItem, BatchSummary
from celery_budgets.batch.progress import Progress
from celery_budgets.batch.signatures import no_single_result, task_of
from celery_budgets.tasks.task import BudgetedTask
from celery_budgets.units import parse_duration

if TYPE_CHECKING:
    from celery_budgets.sending.scope import Scope

__all__ = ["Batch", "BatchOptions"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Sent:
    """A call whose item has not been read yet."""

    index: int
    task: str
    result: Any
    #: Monotonic instant at which the call times out.
    deadline: float
    #: Whether twins share the result.
    shared: bool
    #: Set when it has ended.
    item: BatchItem | None = None


class BatchOptions(TypedDict, total=False):
    """The options of a :class:`Batch`, which describes them."""

    max_in_flight: int
    on_error: Literal["continue", "stop"]
    on_close: Literal["leave", "wait"]
    timeout: float | str | None
    on_progress: Callable[[Progress], object] | None
    total: int | None
    forget: bool


class Batch:
    """An iterable over the items of a batch, in order; see :meth:`celery_budgets.Budgets.batch`.

    Args:
        scope: The request scope of its calls, used by this batch alone.
        signatures: The calls; consumed lazily, as slots of the window free up.
        max_in_flight: Most calls that are sent and have not ended; as many ended ones may wait
            behind a slow call until they are read.
        on_error: ``"stop"``: after a failed call send no more, revoke waiting calls, and yield
            the items of all calls that were sent.
        on_close: What to do with running calls when the iteration ends early: ``"leave"`` them
            running, or ``"wait"`` for them. Waiting calls are revoked.
        timeout: Seconds after sending at which a call without a result fails with
            ``TimeoutError`` and is revoked; ``None``: never.
        on_progress: Called when a figure has changed.
        total: Number of calls, for *on_progress*; by default the length of *signatures*, if it
            has one.
        forget: Delete each result from the backend once it is read, except those of calls with
            an idempotency key, which twins share.

    Raises:
        ValueError: An argument is invalid.
    """

    def __init__(
        self,
        scope: Scope,
        signatures: Iterable[Any],
        *,
        max_in_flight: int = 16,
        on_error: Literal["continue", "stop"] = "continue",
        on_close: Literal["leave", "wait"] = "leave",
        timeout: float | str | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        total: int | None = None,
        forget: bool = False,
    ) -> None:
        if isinstance(max_in_flight, bool) or max_in_flight < 1:
            raise ValueError(f"batch: max_in_flight {max_in_flight!r} must be 1 or more")
        for what, word, known in (
            ("on_error", on_error, ("continue", "stop")), ("on_close", on_close, ("leave", "wait")),
        ):  # fmt: skip
            if word not in known:
                raise ValueError(f"batch: {what} {word!r} is not one of {', '.join(known)}")
        #: The request scope of its calls: for their statistics.
        self.scope = scope
        #: The totals of the items that were read.
        self.summary = BatchSummary()
        self._signatures = signatures
        self._most = max_in_flight
        self._on_error = on_error
        self._on_close = on_close
        self._timeout = float("inf") if timeout is None else parse_duration(timeout)
        self._on_progress = on_progress
        self._total = len(signatures) if total is None and isinstance(signatures, Sized) else total
        self._forget = forget
        self._iterated = False

    def __iter__(self) -> Iterator[BatchItem]:
        if self._iterated:
            raise RuntimeError("batch: its calls are sent once; make another batch")
        self._iterated = True
        assert_will_not_block()  # as AsyncResult.get does in a task
        return _Run(self).items()


class _Run:
    """One iteration over a batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._signatures = enumerate(batch._signatures)
        #: By identity of the result, in the order in which they were sent.
        self._unfinished: dict[int, _Sent] = {}
        #: In order; the first is read next.
        self._window: deque[_Sent] = deque()
        #: By identity of the result backend.
        self._arrivals: dict[int, Arrivals] = {}
        self._all_sent = self._sending = self._stopped = False
        self._done = self._failed = 0
        self._plain_ids: set[str] = set()

    def items(self) -> Iterator[BatchItem]:
        """Send, wait and yield; an early end revokes the calls that have not started."""
        whole = False
        try:
            while True:
                self._send()
                if not self._window:
                    break
                if self._window[0].item is None:
                    self._wait()
                    continue
                yield self._read()
            whole = True
        finally:
            try:
                if not whole:
                    self._give_up()
            except Exception:
                # Not raised: it would hide the exception that has ended the iteration.
                logger.exception("budgets.batch_not_revoked scope=%s", self.batch.scope.path)
            finally:
                for arrivals in self._arrivals.values():
                    arrivals.close()

    def _send(self) -> None:
        """Fill the window: calls that have not ended, and as many ended ones that were not read."""
        most, before = self.batch._most, len(self._window)
        while not self._all_sent and len(self._unfinished) < most and len(self._window) < 2 * most:
            following = next(self._signatures, None)
            if following is None:
                self._all_sent = True
            else:
                self._send_one(*following)
        if len(self._window) > before:
            self._tell()

    def _send_one(self, index: int, signature: Any) -> None:
        task, shared = task_of(index, signature), "idempotency_key" in signature.options
        # If an interrupt comes before it is stored below, only its scope knows the call.
        self._sending = True
        with self.batch.scope:
            result = signature.apply_async()
        if not isinstance(result, AsyncResult):
            raise no_single_result(index, signature)
        deadline = monotonic() + self.batch._timeout
        sent = _Sent(index, signature.task, result, deadline, shared)
        self._window.append(sent)
        self._unfinished[id(result)] = sent
        self._sending = False
        if not isinstance(task, BudgetedTask):
            self._plain_ids.add(result.id)  # its worker does not look at scopes
        backend = result.backend
        arrivals = self._arrivals.get(id(backend))
        if arrivals is None:
            arrivals = self._arrivals[id(backend)] = Arrivals(backend)
        arrivals.expect(result, may_be_there=shared)

    def _wait(self) -> None:
        """Process results that have arrived, and calls that have timed out."""
        now = monotonic()
        deadline = next(iter(self._unfinished.values())).deadline  # sent first, due first
        # Several backends are polled in turn; the first that has a result ends the wait.
        patience = max(0.0, min(PUSH_SECONDS, deadline - now)) / max(1, len(self._arrivals))
        arrived = [result for each in self._arrivals.values() for result in each.wait(patience)]
        for result in arrived:
            self._end(self._unfinished[id(result)], _error_of(result))
        if monotonic() >= deadline:
            self._end_overdue()
        if arrived:
            self._tell()

    def _end(self, sent: _Sent, error: BaseException | None) -> None:
        result = sent.result
        del self._unfinished[id(result)]
        self._plain_ids.discard(result.id)
        value = result.result if error is None else None
        sent.item = BatchItem(sent.index, sent.task, result.id, value, error)
        self._done += 1
        if error is None:
            return
        self._failed += 1
        if self.batch._on_error == "stop" and not self._stopped:
            self._stopped = self._all_sent = True
            self._revoke()

    def _end_overdue(self) -> None:
        now = monotonic()
        for sent in [each for each in self._unfinished.values() if each.deadline <= now]:
            result = sent.result
            self._arrivals[id(result.backend)].forget(result)
            if not sent.shared:  # the id is that of other callers' calls, too
                result.revoke()
            self._end(sent, CeleryTimeoutError(f"no result within {self.batch._timeout:g} s"))

    def _read(self) -> BatchItem:
        sent = self._window.popleft()
        item = sent.item
        assert item is not None
        if self.batch._forget and not sent.shared:
            sent.result.forget()
        self.batch.summary.add(item)
        return item

    def _tell(self) -> None:
        if self.batch._on_progress is not None:
            in_flight, total = len(self._unfinished), self.batch._total
            self.batch._on_progress(Progress(self._done, self._failed, in_flight, total))

    def _revoke(self) -> None:
        """Revoke the calls that were sent and have not started."""
        self.batch.scope.cancel()
        if self._plain_ids:
            self.batch.scope.app.control.revoke(list(self._plain_ids))

    def _give_up(self) -> None:
        """End early: revoke waiting calls, and wait for running ones if ``on_close`` says so."""
        self.batch.summary.unread = len(self._window)
        self._all_sent = True
        if not self._unfinished and not self._sending:
            return
        self._revoke()
        while self.batch._on_close == "wait" and self._unfinished:
            self._wait()


def _error_of(result: Any) -> BaseException | None:
    """Return the exception of a call, or ``None`` if it succeeded."""
    if result.state == states.SUCCESS:
        return None
    error = result.result
    return error if isinstance(error, BaseException) else RuntimeError(repr(error))
