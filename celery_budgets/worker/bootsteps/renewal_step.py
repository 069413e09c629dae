"""The bootstep by which a worker on Redis renews its unacknowledged deliveries.

See also: :mod:`celery_budgets.worker.transport.renewing.renewal`, which renews them, and
:mod:`celery_budgets.worker.calls.overtaken`, for those that were redelivered nevertheless.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from celery import bootsteps, signals
from celery.worker import state

from celery_budgets.config.broker_limits import renews, visibility_timeout
from celery_budgets.config.settings import settings_of
from celery_budgets.worker.calls.overtaken import Overtaken
from celery_budgets.worker.calls.roster import members_of
from celery_budgets.worker.runtime import runtime_of
from celery_budgets.worker.transport.renewing.channels import on_each_qos
from celery_budgets.worker.transport.renewing.fleet import Fleet
from celery_budgets.worker.transport.renewing.in_hand import messages_in_hand
from celery_budgets.worker.transport.renewing.renewal import Renewal
from celery_budgets.worker.transport.renewing.sweeping import Sweeping
from celery_budgets.worker.transport.renewing.unacked_index import UnackedIndex, has_index
from celery_budgets.worker.transport.renewing.unsent import Unsent

__all__ = ["RenewalStep"]


class RenewalStep(bootsteps.StartStopStep):
    """Starts the thread when the worker consumes, and passes it each new connection."""

    label = "Budgets renewal"
    requires = ("celery_budgets.worker.bootsteps.lanes_step:LanesStep",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        timeout = visibility_timeout(c.app)
        # Celery calls include_if() after it has created the step.
        self.enabled = renews(c.app) and timeout is not None
        if timeout is None or not self.enabled:
            return
        self._transport: Any = None
        #: Requests that wait for their ETA, of which Celery before 5.7 keeps no set.
        self._later: WeakSet[Any] = WeakSet()
        signals.task_received.connect(self._on_received, sender=c)
        overtaken = Overtaken(settings_of(c.app).lanes, runtime_of(c.app).roster, self._requests)
        self.fleet = Fleet(c.hostname)
        unsent = Unsent()
        self._leftovers = runtime_of(c.app).leftovers
        self.renewal = Renewal(
            timeout, self._in_hand, overtaken.tell, self.fleet.look, unsent, self._fetches_as,
            clock=self._leftovers.holder.time,
        )  # fmt: skip
        sweeping = Sweeping(self._may_sweep, c.app.conf.broker_transport_options or {})
        connect = c.connection_for_read

        def join(qos: Any) -> None:
            sweeping.join(qos)
            unsent.join(qos)

        c.connection_for_read = lambda **options: on_each_qos(connect(**options), join)

    def start(self, c: Any) -> None:
        """Renew over the new connection; again after each reconnect."""
        channel = c.connection.default_channel
        if not has_index(channel):
            return
        self._transport = c.connection.transport
        self.fleet.listen(c.gossip)
        self.renewal.attach(UnackedIndex(channel, self.renewal.period / 2))

    def stop(self, c: Any) -> None:
        """Keep renewing: in a warm shutdown calls run on, and their channels stay open."""

    def shutdown(self, c: Any) -> None:
        """Stop, once the pool has."""
        self.renewal.stop()

    def _in_hand(self) -> dict[str, Any]:
        # Those that lost their connection first: the next one may take them over meanwhile.
        carried = dict(self._leftovers.carried)
        return carried | messages_in_hand(self._transport)

    def _fetches_as(self) -> int | None:
        channels = list(self._transport.channels or ()) if self._transport is not None else ()
        fetches = any(getattr(channel, "fetches", False) for channel in channels)
        return self._leftovers.holder.number if fetches else None

    def _may_sweep(self) -> bool:
        if self._transport is None:
            return False  # kombu looks as soon as it is connected: nothing is known of others yet
        known = self.fleet.is_known and not self.fleet.others
        return known and self.renewal.is_steady()

    def _on_received(self, request: Any, **_: Any) -> None:
        if request.eta is not None:
            self._later.add(request)

    def _requests(self) -> Iterator[Any]:
        for requests in (state.active_requests, state.reserved_requests, self._later):
            yield from members_of(requests)
