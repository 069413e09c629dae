"""What this worker knows of one call: whether it has it, what it waits for, how it ended.

Lives in the worker main process; asked by ``lanes_why``. See also: :mod:`celery_budgets.model.why`
and :mod:`celery_budgets.sending.why.verdict`, which joins the answers of all workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_budgets.model.headers import (
    HEADER_DUE_AT,
    HEADER_IDEMPOTENCY_KEY,
    HEADER_WAITED_FOR,
)
from celery_budgets.model.lanes import Lane
from celery_budgets.model.why import Cause, Why
from celery_budgets.units import format_duration, format_size
from celery_budgets.worker.lanes.held_deliveries import MEMORY, is_waiting
from celery_budgets.worker.runtime import WorkerRuntime

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["Whereabouts"]

#: Most calls that are named where they hold the slots of a lane.
NAMED = 3
#: Fewest starts that tell how fast a lane is, and the mean duration from which the time between
#: two calls in a slot does not matter, seconds.
_STARTS = 20
_LONG = 1.0


class Whereabouts:
    """Finds a call among those that a worker has, or has had.

    Args:
        runtime: The runtime of the worker.
        consumer: Its Celery consumer.
    """

    def __init__(self, runtime: WorkerRuntime, consumer: Any) -> None:
        self._runtime = runtime
        self._consumer = consumer
        self._ended = runtime.roster.tally.statistics().lanes

    def of(self, task_id: str) -> list[dict[str, Any]]:
        """Return each delivery of *task_id* that is in hand, as JSON of ``Why``.

        With ``key``, the task and the idempotency key, where it may be the twin of a running call.
        """
        return list(self._running(task_id)) or list(self._waiting(task_id))

    def holders(self, task: str, key: str) -> list[dict[str, Any]]:
        """Return the running calls of *task* with that idempotency key, as JSON of ``Why``."""
        return [
            self._run(request)
            for request in list(self._runtime.roster.in_hand.values())
            if request.type == task and request.request_dict.get(HEADER_IDEMPOTENCY_KEY) == key
        ]

    def lane_now(self, lane: Lane) -> dict[str, Any]:
        """Return what decides when a call of *lane* that waits at the broker starts here."""
        runtime, slots = self._runtime, self._runtime.slots.lanes[lane.name]
        gate = runtime.gate
        return {
            "queue": lane.queue,
            "paused": sorted(runtime.queue_pauses.paused.get(lane.queue, ())),
            "paused_at": runtime.pauses.paused_at(lane),
            "gate": None if gate.is_open else [gate.since, _gate_text(gate)],
            "active": len(slots.taken),
            "limit": runtime.slots.limit_of(lane),
            "waiting": len(slots.held),
            "holders": _named(list(slots.taken)) if slots.taken else "",
            "rate": self.rate(lane.name),
            "watermark": runtime.flow.watermark(lane.name),
        }

    def rate(self, lane: str) -> float | None:
        """Return how many calls of *lane* this worker starts per second while some wait.

        What its slots allow at the mean duration, where calls take long and the lane has its slots
        for itself; else as fast as the last ones have started. ``None`` if neither is known.
        """
        slots, calls = self._runtime.slots, self._ended.get(lane)
        limit = slots.limit_of(slots.lanes[lane].lane)
        mean = calls.duration.mean if calls is not None else None
        lately = self._runtime.flow.starts_per_second(lane, max(_STARTS, 4 * limit))
        if not mean or lately is None:
            return limit / mean if mean else lately
        shared = sum(each.limit for each in slots.lanes.values() if each.served) > slots.capacity
        most = limit / mean
        return most if mean >= _LONG and not shared else min(most, lately)

    def _running(self, task_id: str) -> Iterator[dict[str, Any]]:
        for request in list(self._runtime.roster.in_hand.values()):
            if request.id == task_id:
                yield self._run(request)

    def _waiting(self, task_id: str) -> Iterator[dict[str, Any]]:
        """Yield what waits for a slot, for the gate, or for its time."""
        found: dict[int, dict[str, Any]] = {}
        for request, before in self._runtime.slots.held_of_id(task_id):
            found[id(request)] = self._held(request, before)
        for reason, request in self._runtime.held.of_id(task_id):
            found[id(request)] = self._kept(request, reason)
        for request, why in self._rated(task_id):
            found.setdefault(id(request), why)
        for request in list(self._runtime.awaited):
            if request.id == task_id and getattr(request, "outcome", None) is None:
                found.setdefault(id(request), self._awaited(request))
        for request in self._runtime.slots.reserved():
            if request.id == task_id and request.outcome is None:
                found.setdefault(id(request), self._about_to_start(request))
        yield from found.values() or self._plain(task_id)

    def _run(self, request: Delivery) -> dict[str, Any]:
        return self._why(
            request, Cause.RUNNING, since=request.time_start, detail="; ".join(self._used(request))
        )

    def _used(self, request: Delivery) -> Iterator[str]:
        """Yield where a running call is, and how much of its limits it has used."""
        pid = request.worker_pid
        yield f"on {request.hostname} in process {pid}" if pid else f"on {request.hostname}"
        flights, limits = self._runtime.flights, request.limits
        flight = flights.read(pid, request.id) if flights is not None else None
        started = flight.started_at if flight is not None else request.time_start
        ran = max(0.0, time() - (started or time()))
        left = flight.soft_deadline - monotonic() if flight is not None else limits.soft - ran
        most = format_duration(round(ran + left, 1))
        yield f"{ran / max(ran + left, 0.001):.0%} of its soft limit of {most}"
        stack = self._runtime.black_box.now(request)
        if stack is not None:
            yield f"in {stack.label}"
        if flight is not None:
            peak, most = format_size(flight.rss_peak_bytes), format_size(request.hard_rss)
            yield f"memory at most {peak} of {most}"

    def _held(self, request: Delivery, before: int) -> dict[str, Any]:
        """Say what a call waits for that has no slot: its own lane, or the others."""
        slots = self._runtime.slots.lanes[request.lane.name]
        full = len(slots.taken) >= self._runtime.slots.limit_of(request.lane)
        holders = list(slots.taken) if full else self._runtime.slots.reserved()
        rate = self.rate(request.lane.name)
        leases = self._runtime.leases
        refused = leases.refused(request) if leases is not None and not full else None
        if refused is not None:
            limit, known = refused
            return self._why(
                request, Cause.LIMIT if known else Cause.LIMIT_UNKNOWN, since=_due(request),
                position=before, limit=limit, detail=f"on {request.hostname}",
            )  # fmt: skip
        return self._why(
            request, Cause.LANE if full else Cause.GLOBAL, since=_due(request), position=before,
            starts_in=(before + 1) / rate if rate else None,
            detail=f"on {request.hostname}, {_named(holders)}",
        )  # fmt: skip

    def _kept(self, request: Delivery, reason: str) -> dict[str, Any]:
        """Say why a call is kept unacknowledged."""
        if reason == MEMORY:
            gate = self._runtime.gate
            return self._why(request, Cause.MEMORY, since=gate.since, detail=_gate_text(gate))
        since = self._runtime.pauses.paused_at(request.lane)
        return self._why(
            request,
            Cause.PAUSED,
            since=since,
            detail=f"paused by an operator on {request.hostname}",
        )

    def _rated(self, task_id: str) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield what waits in one of Celery's token buckets (Consumer._limit_task)."""
        for name, bucket in list(self._consumer.task_buckets.items()):
            waiting = bucket.contents.copy() if bucket else ()
            for place, (request, _) in enumerate(waiting):
                if request.id == task_id:
                    task = self._consumer.app.tasks[name]
                    seconds = bucket.expected_time(1) + place / bucket.fill_rate
                    yield request, self._why(
                        request, Cause.RATE, since=_due(request), position=place,
                        limit=f"{name} {task.rate_limit}", starts_in=seconds,
                        detail=f"on {request.hostname}",
                    )  # fmt: skip

    def _awaited(self, request: Any) -> dict[str, Any]:
        """Say why a call has an ETA: it waits for a twin, it is a retry, or its sender said so."""
        headers = request.request_dict
        due = headers.get(HEADER_DUE_AT)
        due = due if isinstance(due, int | float) else request.eta.timestamp()
        facts: dict[str, Any] = {"starts_in": max(0.0, due - time())}
        detail = f"on {request.hostname}"
        if request.id in state.revoked:
            detail += "; it is revoked, and will not run"
        if headers.get(HEADER_WAITED_FOR) is not None:
            return self._why(request, Cause.TWIN, detail=detail)
        if headers.get("retries"):
            detail += f"; retry {headers['retries']}"
            return self._why(request, Cause.RETRY, detail=detail, **facts)
        return self._why(request, Cause.ETA, detail=detail, **facts)

    def _about_to_start(self, request: Delivery) -> dict[str, Any]:
        """Say of a call with a slot that it is being passed to the pool, or waits for it."""
        if is_waiting(self._consumer, request):
            detail = f"on {request.hostname}, whose pool has no free place"
            return self._why(request, Cause.GLOBAL, since=_due(request), detail=detail)
        detail = f"on {request.hostname}, which is passing it to the pool"
        return self._why(request, Cause.RUNNING, certain=False, detail=detail)

    def _plain(self, task_id: str) -> Iterator[dict[str, Any]]:
        """Yield a call of a plain Celery task, or one that the worker is just taking in."""
        request = state.requests.get(task_id)
        if request is None or getattr(request, "outcome", None) is not None:
            return
        if request in state.active_requests:
            yield self._why(
                request, Cause.RUNNING, since=request.time_start, detail=f"on {request.hostname}"
            )
        else:
            detail = f"on {request.hostname}, which has received it"
            yield self._why(request, Cause.GLOBAL, certain=False, detail=detail)

    def _why(self, request: Any, cause: Cause, **facts: Any) -> dict[str, Any]:
        lane = getattr(request, "lane", None)
        name = lane.name if lane is not None else None
        why = Why(request.id, cause, lane=name, worker=request.hostname, **facts).to_json()
        headers = request.request_dict
        key = headers.get(HEADER_IDEMPOTENCY_KEY)
        # A twin takes a slot now and then, to look whether the other call still runs.
        if isinstance(key, str) and (cause is Cause.RUNNING or HEADER_WAITED_FOR in headers):
            why["key"] = [request.type, key]
        return why


def _named(holders: list[Delivery]) -> str:
    """Return how many slots *holders* take, and the first of them."""
    first = [f"{request.type} {request.id}" for request in holders[:NAMED]]
    more = f" and {len(holders) - NAMED} more" if len(holders) > NAMED else ""
    return f"{len(holders)} slots are taken by {', '.join(first)}{more}"


def _gate_text(gate: Any) -> str:
    """Return what has closed the memory gate."""
    if gate.by is None:
        return "the gate has just opened"
    used, limit = format_size(gate.by.used), format_size(gate.by.gauge.limit)
    return f"{gate.by.gauge.name}: {used} of {limit} when the gate closed"


def _due(request: Any) -> float | None:
    with suppress(AttributeError, TypeError, ValueError):
        return float(request.request_dict[HEADER_DUE_AT])
    return None
