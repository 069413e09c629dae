"""``Flow``: the calls that this worker has started, per lane: how many, and how old their messages.

The *watermark* of a lane is the time at which the message of the call that it started last was
published. Where a queue is served in order, what was published before that instant is not at the
broker any more.

Messages have their publishing time in the header ``budgets_due_at``, set by every sender with
``Budgets(app)``, also by ``send_task``. Senders without the package, and other languages, set
nothing of the kind: Celery fills no ``timestamp`` property. Their messages leave a watermark where
it is.

Lives in the worker main process. See also: :mod:`celery_budgets.worker.backlog.backlog`.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from celery_budgets.model.headers import HEADER_DUE_AT
from celery_budgets.model.priority import Broker, Priority, level_of

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["PERIOD", "Flow", "published_of"]

#: Rates are of the last minute, seconds.
PERIOD = 60.0
#: Starts of each lane that are remembered.
LAST = 256
#: Shortest time between two samples of the counts, seconds.
STEP = 1.0


def published_of(request: Delivery) -> float | None:
    """Return when the message of *request* was published, seconds since the epoch.

    ``None`` if it does not say so: its sender has no ``Budgets(app)``, or it has an ETA, which its
    header names instead.
    """
    headers = request.request_dict
    if headers.get("eta") is not None:
        return None
    published: float | None = headers.get(HEADER_DUE_AT)
    return published


class Flow:
    """Counts the calls that start.

    Args:
        broker: Where priorities are ordered; ``None`` if the app has none.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, broker: Broker | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._started: Counter[str] = Counter()
        #: When the last calls of each lane have started.
        self._instants: defaultdict[str, deque[float]] = defaultdict(partial(deque, maxlen=LAST))
        self._watermarks: dict[tuple[str, Priority | None], float] = {}
        #: The counts of the last minute, by when they were read.
        self._samples: deque[tuple[float, Counter[str]]] = deque([(clock(), Counter())])
        # Pool threads start calls, and the event loop and the metrics' thread read.
        self._lock = threading.Lock()

    def started(self, request: Delivery) -> None:
        """Note that the call of *request* has started; in any thread."""
        lane = request.lane.name
        with self._lock:
            self._started[lane] += 1
            self._instants[lane].append(self._clock())
        # What was handed back, or was lost with its worker, left the broker long ago.
        if request.delivery_info.get("redelivered"):
            return
        published = published_of(request)
        if published is None:
            return
        self._watermarks[lane, None] = published
        if self._broker is not None:
            level = level_of(request.delivery_info.get("priority"), self._broker)
            self._watermarks[lane, level] = published

    def watermark(self, lane: str, priority: Priority | None = None) -> float | None:
        """Return when the message that this worker started last in *lane* was published.

        Args:
            lane: Name of the lane.
            priority: Only of calls of this priority; needs ``budgets_priorities``.

        Returns:
            Seconds since the epoch, by the sender's clock; ``None`` before the first.
        """
        return self._watermarks.get((lane, priority))

    def starts(self, lane: str) -> tuple[int, float | None]:
        """Return how many calls of *lane* have started, and seconds since the last one."""
        with self._lock:
            instants = self._instants.get(lane)
            ago = self._clock() - instants[-1] if instants else None
            return self._started[lane], ago

    def departures_per_second(self, lane: str) -> float:
        """Return how many calls of *lane* this worker has started per second, in the last minute.

        Over the worker's age, where that is less.
        """
        with self._lock:
            self._sample()
            since, before = self._samples[0]
            seconds = max(self._clock() - since, STEP)
            return (self._started[lane] - before[lane]) / seconds

    def starts_per_second(self, lane: str, last: int) -> float | None:
        """Return how fast the *last* calls of *lane* have started, at most :data:`LAST`.

        For a lane that is busy now, and has not been for all of the last minute. ``None`` before
        its second call.
        """
        with self._lock:
            instants = list(self._instants[lane])[-last:]
        seconds = instants[-1] - instants[0] if len(instants) > 1 else 0.0
        return (len(instants) - 1) / seconds if seconds else None

    def look(self) -> None:
        """Sample the counts, at most once per second; called about that often."""
        with self._lock:
            self._sample()

    def _sample(self) -> None:
        now = self._clock()
        if now - self._samples[-1][0] < STEP:
            return
        self._samples.append((now, self._started.copy()))
        # The one that is a minute old stays: the rate is since then.
        while len(self._samples) > 1 and self._samples[1][0] <= now - PERIOD:
            self._samples.popleft()
