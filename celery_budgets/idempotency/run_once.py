"""Idempotency keys: of the calls that carry one key, one runs and all get its result.

The call that comes first takes a lease on task name and key, which is renewed while it runs. Its
twins find the lease held and come back later, through the broker; or they find the work done, and
end with its value. The value stands beside the note that the work is done, and is written with
it: so a twin needs no result backend, and no crash can leave the one without the other.

Covers: what is done in the process that runs a call, around its body.
Does not cover: how the caller says the key (:mod:`celery_budgets.sending.options`), who keeps
leases (:mod:`celery_budgets.shared_state.leases`) and where
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

from celery_budgets.execution.limits.watchdog import TICK, watchdog
from celery_budgets.execution.outcome import TwinFailed, TwinWaits
from celery_budgets.model.headers import HEADER_IDEMPOTENCY_KEY, HEADER_TERMS, HEADER_WAITED_FOR
from celery_budgets.shared_state.lease_store import leases_of
from celery_budgets.shared_state.leases import Found, Lease, Leases, State
from celery_budgets.shared_state.renewal import keeper

if TYPE_CHECKING:
    from celery_budgets.execution.call import Call

__all__ = ["checked_key", "forget_failure", "run_once", "stands_for_twin", "task_id_of"]

logger = logging.getLogger(__name__)

_NAMESPACE = uuid5(NAMESPACE_URL, "celery-budgets:idempotency-key")
LONGEST_KEY = 1000
#: A twin's first wait, seconds; each further one is twice as long, up to what is left.
FIRST_WAIT = 0.5
#: How long a holder whose lease has ended already may go on, seconds.
SECONDS_TO_STOP = 1.0


def checked_key(key: Any) -> str:
    """Return *key*.

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
    """Drop the failure of an earlier call: its caller-to-be would take it for its own.

    A success that is stored in between may be dropped too; the new call ends with it again.
    """
    # Each twin has published it. What nobody waited for is kept for who comes next
    # (celery.backends.asynchronous.BaseResultConsumer.on_state_change).
    published = getattr(backend, "_pending_messages", None)
    while published is not None and published.take(task_id, None) is not None:
        pass
    try:
        if backend.get_state(task_id) in states.EXCEPTION_STATES:
            backend.forget(task_id)
    except NotImplementedError:
        pass  # results are kept nowhere


def stands_for_twin(headers: Mapping[str, Any], task_name: str, task_id: str) -> bool:
    """Return whether a delivery has waited for a twin, and its result is the twin's as well.

    Where it ends without a body, because of a limit of its own, the twin may still run.
    """
    key = headers.get(HEADER_IDEMPOTENCY_KEY)
    if headers.get(HEADER_WAITED_FOR) is None or not isinstance(key, str):
        return False
    return task_id == task_id_of(task_name, key)


def run_once(task: Any, call: Call | None, body: Callable[[], Any]) -> Any:
    """Run *body* where no twin runs or has run; return the twin's value where one has.

    Args:
        task: The task, in the process that runs its call.
        call: The running call; ``None`` where it is not measured.
        body: Runs the call.

    Raises:
        TwinFailed: The twin that this call has waited for failed, and that is stored.
        TwinWaits: Another holds the lease; a message that comes back for it is sent.
        ConfigurationError: No Redis keeps the keys of the app.
        Exception: What the body raised, here or in the twin that this call has waited for.
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
    """End as the call that was found has ended, or come back when it may have."""
    if found.state is State.DONE:
        return _unpack(found.value)
    if found.state is State.FAILED:
        error: Exception = task.backend.exception_to_python(_unpack(found.value))
        if _shares_its_result(task):
            # Stored again it would be told again, to callers who may wait for a later run.
            raise TwinFailed(repr(error))
        raise error
    seconds = min(found.left, FIRST_WAIT * 2 ** min(times, 30))
    raise _come_back(task, seconds, found.fence, times + 1)


def _shares_its_result(task: Any) -> bool:
    """Return whether all that tells the call's end is a stored result, and that is its twin's."""
    request = task.request
    if request.errbacks or request.chord or request.chain or request.group:
        return False
    return bool(request.id == task_id_of(task.name, getattr(request, HEADER_IDEMPOTENCY_KEY)))


def _run_holding(
    task: Any, call: Call | None, leases: Leases, lease: Lease, body: Callable[[], Any]
) -> Any:
    """Run *body*, renewing *lease* meanwhile, and note how it ended."""
    renewing, request = keeper(), task.request
    if request.headers and HEADER_WAITED_FOR in request.headers:
        # A retry of the holder's own has waited for nobody.
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
            # Stopped for the lease, not for its time: whoever has it now decides the result.
            raise _come_back(task, 0.0, lease.fence, 0) from exc
        _settle_ended(task, leases, lease, exc)
        raise
    _settle_done(task, leases, lease, value)
    return value


def _runs(call: Call) -> bool:
    """Return whether a body may still be at work, which was given up where it could not be ended.

    A thread that comes back after that is kept for later, and does not get here again.
    """
    return call.open or not call.hard_sent


def _stop(call: Call | None, lease: Lease) -> None:
    """Bring the limits of *call* forward: its lease runs out, and a twin may start then."""
    if call is None:
        return
    now = monotonic()
    # Where its lease has ended already, a twin may run, and the result is that one's: then the
    # call is better stopped by the soft limit, after which nothing is stored.
    ends = now + SECONDS_TO_STOP
    if lease.valid_until > now:
        ends = max(now, lease.valid_until - watchdog().interrupt.hard_grace - 2 * TICK)
    call.bring_forward(soft_at=now, hard_at=ends)
    if call.moved is not None:
        call.moved(call)


def _settle_done(task: Any, leases: Leases, lease: Lease, value: Any) -> None:
    """Note that the work is done; insist while nobody else can have taken the lease."""
    packed = b""
    if not task.request.ignore_result:
        try:
            packed = _pack(task.backend.prepare_value(value), task.app.conf.result_serializer)
        except Exception as exc:
            # Celery cannot store it either, and fails the call.
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
    """Let the lease go: as failed, or as free where the call ended otherwise than by failing."""
    failed = isinstance(error, Exception) and not isinstance(error, Retry | Reject | Ignore)
    state, value = State.FREE, b""
    try:
        if failed:
            state = State.FAILED
            value = _pack(task.backend.prepare_exception(error, "json"), "json")
        leases.settle(lease, state, value)
    except Exception as exc:
        # It runs out by itself.
        logger.warning("budgets.lease_not_let_go name=%s: %s", lease.name, exc)


def _come_back(task: Any, seconds: float, fence: int, times: int) -> Exception:
    """Send a message that comes back in *seconds*, and return the error that ends this one.

    It is no retry: nothing is counted and no state is stored, because the result may be the
    holder's. Sent before this delivery is acknowledged, so that one is always left.
    """
    request = task.request
    headers = {**(request.headers or {}), HEADER_WAITED_FOR: [fence, times]}
    headers.pop(HEADER_TERMS, None)
    try:
        task.signature_from_request(
            request, headers=headers, countdown=seconds, retries=request.retries
        ).apply_async(add_to_parent=False)
    except Exception as exc:
        if task.acks_late:
            error: Exception = Reject(exc, requeue=True)
            return error
        raise
    return TwinWaits(f"a twin runs; back in {seconds:.1f} s")


def _waited(request: Any) -> tuple[int, int]:
    """Return the fence that the message has waited for, and how often it has come back."""
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
    """Return the value that :func:`_pack` was given; ``None`` where results are ignored."""
    if not packed:
        return None
    content_type, encoding, body = packed.split(b"\n", 2)
    return loads(body, content_type.decode(), encoding.decode(), accept={content_type.decode()})
