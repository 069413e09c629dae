"""Runs the body of only one of the calls with the same idempotency key.

The first call takes a lease on task name and key, which is renewed while it runs. Another call
with the key, a twin, finds the lease held and replaces itself by a delayed message; or it finds
the work done and ends with its value. The value is stored in the same record as the state and
written together with it: so a twin needs no result backend, and a crash cannot separate the two.

Covers: the process that runs a call, around its body.
Does not cover: how the caller gives the key (:mod:`celery_budgets.sending.options`), the leases
(:mod:`celery_budgets.shared_state.leases`) and where they are stored
(:mod:`celery_budgets.shared_state.lease_store`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from celery import states
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from kombu.serialization import dumps, loads
from redis.exceptions import RedisError

from celery_budgets.execution.call import SECONDS_TO_STOP
from celery_budgets.execution.limits.watchdog import TICK, watchdog
from celery_budgets.execution.outcome import TwinFailed, TwinWaits
from celery_budgets.execution.sent_again import send_again
from celery_budgets.model.headers import HEADER_IDEMPOTENCY_KEY, HEADER_WAITED_FOR
from celery_budgets.shared_state.lease_store import leases_of
from celery_budgets.shared_state.leases import Found, Lease, Leases, State
from celery_budgets.shared_state.renewal import keeper

if TYPE_CHECKING:
    from celery_budgets.execution.call import Call

__all__ = ["checked_key", "forget_failure", "run_once", "stands_for_twin", "task_id_of"]

logger = logging.getLogger(__name__)

_NAMESPACE = uuid5(NAMESPACE_URL, "celery-budgets:idempotency-key")
LONGEST_KEY = 1000
#: A twin's first delay, seconds; each further one is twice as long, up to the rest of the lease.
FIRST_WAIT = 0.5


def checked_key(key: Any) -> str:
    """Return *key* after validation.

    Raises:
        ValueError: It is not text, empty, or longer than 1,000 characters.
    """
    if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY:
        raise ValueError(f"idempotency_key: {key!r} must be text of 1 to {LONGEST_KEY} characters")
    return key


def task_id_of(task_name: str, key: str) -> str:
    """Return the task id that all calls of *task_name* with *key* share.

    Example:
        >>> AsyncResult(task_id_of("fs_write", "upload-17")).get()
    """
    return str(uuid5(_NAMESPACE, f"{task_name}\0{key}"))


def forget_failure(backend: Any, task_id: str) -> None:
    """Delete the stored failure of an earlier call, which the new caller would take for its own.

    A success that is stored in between may be deleted too; the new call then returns it again.
    """
    # Each twin has published it, and Celery keeps a message that nobody has waited for
    # (celery.backends.asynchronous.BaseResultConsumer.on_state_change).
    published = getattr(backend, "_pending_messages", None)
    while published is not None and published.take(task_id, None) is not None:
        pass
    try:
        if backend.get_state(task_id) in states.EXCEPTION_STATES:
            backend.forget(task_id)
    except NotImplementedError:
        pass  # the backend stores no results


def stands_for_twin(headers: Mapping[str, Any], task_name: str, task_id: str) -> bool:
    """Return whether a delivery has waited for a twin with which it shares its result.

    If it ends without running its body, because of a limit of its own, the twin may still run.
    """
    key = headers.get(HEADER_IDEMPOTENCY_KEY)
    if headers.get(HEADER_WAITED_FOR) is None or not isinstance(key, str):
        return False
    return task_id == task_id_of(task_name, key)


def run_once(task: Any, call: Call | None, body: Callable[[], Any]) -> Any:
    """Run *body*, unless a twin runs or has run; return the value of one that has.

    Args:
        task: The task, in the process that runs its call.
        call: The running call; ``None`` if it is not measured.
        body: Runs the call.

    Raises:
        TwinFailed: The twin that this call has waited for has failed, and stored that.
        TwinWaits: A twin holds the lease; a delayed message was sent to replace this one.
        ConfigurationError: The app has no Redis for the keys.
        Exception: Raised by the body, here or in the twin that this call has waited for.
    """
    key = checked_key(getattr(task.request, HEADER_IDEMPOTENCY_KEY, None))
    leases = leases_of(task.app)
    waited_for, times = _waited(task.request)
    try:
        found = leases.take(task_id_of(task.name, key), waited_for)
    except RedisError as exc:
        logger.warning("budgets.lease_not_taken task=%s key=%s: %s", task.name, key, exc)
        raise _come_back(task, leases.length, waited_for, times) from exc
    if found.lease is not None:
        return _run_holding(task, call, leases, found.lease, body)
    if call is not None:
        call.twin = True
    logger.info("budgets.twin task_id=%s key=%s found=%s", task.request.id, key, found.state)
    return _end_as_twin(task, found, times)


def _end_as_twin(task: Any, found: Found, times: int) -> Any:
    """End like the twin that was found, or send a message that checks again later."""
    if found.state is State.DONE:
        return _unpack(found.value)
    if found.state is State.FAILED:
        error: Exception = task.backend.exception_to_python(_unpack(found.value))
        if _shares_its_result(task):
            # Stored again, it would be published again, to callers who may wait for a later run.
            raise TwinFailed(repr(error))
        raise error
    seconds = min(found.left, FIRST_WAIT * 2 ** min(times, 30))
    raise _come_back(task, seconds, found.fence, times + 1)


def _shares_its_result(task: Any) -> bool:
    """Return whether only a stored result reports the call's end, and it is that of its twin."""
    request = task.request
    if request.errbacks or request.chord or request.chain or request.group:
        return False
    return bool(request.id == task_id_of(task.name, getattr(request, HEADER_IDEMPOTENCY_KEY)))


def _run_holding(
    task: Any, call: Call | None, leases: Leases, lease: Lease, body: Callable[[], Any]
) -> Any:
    """Run *body* while renewing *lease*, and record how it ended."""
    renewing, request = keeper(), task.request
    if request.headers and HEADER_WAITED_FOR in request.headers:
        # A retry of the holder must not be taken for a twin that has waited.
        request.headers = {**request.headers}
        del request.headers[HEADER_WAITED_FOR]
    try:
        try:
            renewing.hold(leases, lease, partial(_stop, call), lambda: call is None or _runs(call))
            value = body()
        finally:
            renewing.let_go(lease)
    except BaseException as exc:
        if lease.lost and isinstance(exc, SoftTimeLimitExceeded):
            # Stopped because of the lease, not of its time: its new holder decides the result.
            raise _come_back(task, 0.0, lease.fence, 0) from exc
        _settle_ended(task, leases, lease, exc)
        raise
    _settle_done(task, leases, lease, value)
    return value


def _runs(call: Call) -> bool:
    """Return whether the body of an abandoned call may still run.

    A thread that ends after that is parked, and does not get here again.
    """
    return call.open or not call.hard_sent


def _stop(call: Call | None, lease: Lease) -> None:
    """Bring the limits of *call* forward to the expiry of its lease, when a twin may start."""
    if call is None:
        return
    now = monotonic()
    # If its lease has expired already, a twin may run and owns the result: then it is better to
    # stop the call by the soft limit, after which nothing is stored.
    ends = now + SECONDS_TO_STOP
    if lease.valid_until > now:
        ends = max(now, lease.valid_until - watchdog().interrupt.hard_grace - 2 * TICK)
    call.bring_forward(soft_at=now, hard_at=ends)


def _settle_done(task: Any, leases: Leases, lease: Lease, value: Any) -> None:
    """Record that the work is done; retry while no other process can have taken the lease."""
    packed = b""
    if not task.request.ignore_result:
        try:
            packed = _pack(task.backend.prepare_value(value), task.app.conf.result_serializer)
        except Exception as exc:
            # The value cannot be serialized: Celery fails the call as well.
            _settle_ended(task, leases, lease, exc)
            return
    while True:
        try:
            if not leases.settle(lease, State.DONE, packed):
                logger.error(
                    "budgets.lease_overrun task=%s task_id=%s fence=%s: a twin may have run too",
                    task.name, task.request.id, lease.fence,
                )  # fmt: skip
            return
        except RedisError as exc:
            if monotonic() >= lease.valid_until:
                logger.error(
                    "budgets.lease_not_settled task=%s task_id=%s: a twin may run again: %s",
                    task.name, task.request.id, exc,
                )  # fmt: skip
                return
            sleep(min(1.0, leases.length / 10))


def _settle_ended(task: Any, leases: Leases, lease: Lease, error: BaseException) -> None:
    """Release the lease: as failed, or as free if the call neither succeeded nor failed."""
    failed = isinstance(error, Exception) and not isinstance(error, Retry | Reject | Ignore)
    state, value = State.FREE, b""
    try:
        if failed:
            state = State.FAILED
            value = _pack(task.backend.prepare_exception(error, "json"), "json")
        leases.settle(lease, state, value)
    except Exception as exc:
        # It expires by itself.
        logger.warning("budgets.lease_not_let_go name=%s: %s", lease.name, exc)


def _come_back(task: Any, seconds: float, fence: int, times: int) -> Exception:
    """Send the message again with a delay of *seconds*, and return the error that ends this call.

    It is no retry, because the result may be that of the holder.
    """
    rejected = send_again(task, seconds, {HEADER_WAITED_FOR: [fence, times]})
    return rejected or TwinWaits(f"a twin runs; back in {seconds:.1f} s")


def _waited(request: Any) -> tuple[int, int]:
    """Return the fencing token that the message waits for, and how often it was sent again."""
    header = getattr(request, HEADER_WAITED_FOR, None)
    if isinstance(header, list | tuple) and len(header) == 2:
        fence, times = header
        if isinstance(fence, int) and isinstance(times, int) and fence >= 0 and times >= 0:
            return fence, times
    return 0, 0


def _pack(value: Any, serializer: str) -> bytes:
    content_type, encoding, payload = dumps(value, serializer=serializer)
    body = payload if isinstance(payload, bytes) else payload.encode()
    return f"{content_type}\n{encoding}\n".encode() + body


def _unpack(packed: bytes) -> Any:
    """Return the value packed by :func:`_pack`; ``None`` if results are ignored."""
    if not packed:
        return None
    content_type, encoding, body = packed.split(b"\n", 2)
    return loads(body, content_type.decode(), encoding.decode(), accept={content_type.decode()})
