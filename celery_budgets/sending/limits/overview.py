"""Reads how much of each limit over the fleet is in use, who holds it, and who waits.

Runs in the process that asks. See also: :mod:`celery_budgets.shared_state.scripts.limits`, which
says what stands in Redis, and :mod:`celery_budgets.sending.limits.changes`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from celery_budgets.config.settings import settings_of
from celery_budgets.model.limit import Demand, Limit
from celery_budgets.shared_state.limit_store import LimitStore
from celery_budgets.shared_state.limits_of_app import store_of

__all__ = ["Change", "Holder", "LimitView", "demands_in", "overview"]

#: Names that one question for those of a pattern looks at.
_SCANNED = 1000
_MEMBER = re.compile(r"(?P<holder>.+)(?P<mark>[#?])\d+")


@dataclass(frozen=True, slots=True)
class Holder:
    """A call, or a block, that holds places."""

    name: str
    places: int
    #: Until its lease ends, unless it is renewed, seconds.
    seconds: float
    #: Whether it has only been offered them, for a moment.
    offered: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator has set for a limit, which holds until it is taken back."""

    concurrency: int | None
    rate: str | None
    #: Who has set it, and when, seconds since the epoch.
    by: str
    at: float


@dataclass(frozen=True, slots=True)
class LimitView:
    """One limit, of one key: as it is now."""

    name: str
    key: str
    in_use: int
    #: Places in force; ``None``: any number.
    limit: int | None
    #: The rate in force, as text.
    rate: str | None
    #: Calls that may start at once by the rate.
    rate_left: int | None
    #: Those in line for a place; who waits for the rate is known to its own process.
    waiting: int
    #: How long the first in line has waited, seconds.
    oldest_wait: float | None
    #: For how long it is closed by ``Throttled``, seconds; 0: it is open.
    closed: float
    holders: tuple[Holder, ...]
    changed: Change | None

    @property
    def title(self) -> str:
        """How a person is told of it, with its key."""
        names = {"@lane": f"lane {self.key}", "@fleet": "budgets_fleet_concurrency"}
        return names.get(self.name, self.name + (f" [{self.key}]" if self.key else ""))

    def to_json(self) -> dict[str, Any]:
        """Return this view in values that JSON has; durations are seconds."""
        return asdict(self)


def overview(app: Any) -> list[LimitView]:
    """Return the limits of *app* as they are: of lanes, of the fleet, and by name.

    Of a limit with a key, only keys of which something stands in Redis.

    Raises:
        ConfigurationError: The app has no Redis for limits.
        redis.exceptions.RedisError: It does not answer.
    """
    store = store_of(app)
    return [_view(store, demand) for demand in demands_in(app, store)]


def demands_in(app: Any, store: LimitStore, name: str | None = None) -> Iterator[Demand]:
    """Yield what calls of *app* can ask for; only of the limit *name*, where it is given."""
    settings = settings_of(app)
    demands = [Demand(Limit("@lane", each.fleet), each.name)
               for each in settings.lanes.values() if each.fleet]  # fmt: skip
    if settings.fleet_concurrency is not None:
        demands.append(Demand(Limit("@fleet", settings.fleet_concurrency)))
    yield from (each for each in demands if name in (None, each.limit.name))
    for limit in settings.limits.values():
        if name in (None, limit.name):
            keys = [""] if limit.key is None else sorted(_keys(store, limit))
            yield from (Demand(limit, key) for key in keys)


def _keys(store: LimitStore, limit: Limit) -> set[str]:
    """Return the keys of which something stands in Redis; a long one is told by its hash."""
    found = set()
    for what in ("held", "line", "rate", "brake"):
        start = store.name_of(what, limit.name, "")
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", start) + "*"
        names = store.client.scan_iter(match=pattern, count=_SCANNED)
        found |= {_text(name)[len(start) :] for name in names}
    return found


def _view(store: LimitStore, demand: Demand) -> LimitView:
    limit = demand.limit
    name = {what: store.name_of(what, limit.name, demand.key)
            for what in ("held", "line", "rate", "brake")}  # fmt: skip
    pipeline = store.client.pipeline(transaction=False)
    pipeline.time()
    pipeline.zrange(name["held"], 0, -1, withscores=True)
    pipeline.zrange(name["line"], 0, -1, withscores=True)
    pipeline.mget(name["rate"], name["brake"], store.name_of("brakes", limit.name))
    pipeline.hgetall(store.name_of("set", limit.name))
    (seconds, micros), held, line, (rate, *brakes), fields = pipeline.execute()
    now = seconds * 1_000_000 + micros
    changed = _change({_text(field): _text(value) for field, value in fields.items()})
    if changed is not None:
        limit = _changed(limit, changed)
    holders = tuple(_holders(held, now))
    return LimitView(
        limit.name, demand.key,
        in_use=sum(holder.places for holder in holders),
        limit=limit.concurrency,
        rate=str(limit.rate) if limit.rate is not None else None,
        rate_left=_rate_left(limit, int(rate or 0), now),
        waiting=len(line),
        oldest_wait=max(0.0, (now - line[0][1]) / 1e6) if line else None,
        closed=max(0.0, *((_opens(brake) - now) / 1e6 for brake in brakes)),
        holders=holders, changed=changed,
    )  # fmt: skip


def _holders(held: list[tuple[bytes, float]], now: int) -> Iterator[Holder]:
    places: Counter[tuple[str, str]] = Counter()
    ends: dict[tuple[str, str], float] = {}
    for member, score in held:
        match = _MEMBER.fullmatch(_text(member))
        if match is not None and score > now:
            places[match["holder"], match["mark"]] += 1
            ends[match["holder"], match["mark"]] = (score - now) / 1e6
    for (holder, mark), count in sorted(places.items()):
        yield Holder(holder, count, ends[holder, mark], offered=mark == "?")


def _opens(brake: bytes | None) -> int:
    return int(_text(brake).partition(" ")[0]) if brake else 0


def _rate_left(limit: Limit, due: int, now: int) -> int | None:
    """Return how many calls may start at once by the rate (GCRA)."""
    if limit.rate is None:
        return None
    ahead = max(0, due - now) / (limit.rate.interval * 1e6)
    return max(0, math.floor(limit.burst - ahead + 1e-6))


def _change(fields: dict[str, str]) -> Change | None:
    if not fields:
        return None
    concurrency = fields.get("concurrency")
    return Change(
        int(concurrency) if concurrency else None, fields.get("rate"),
        fields.get("by", "?"), float(fields.get("at", 0)),
    )  # fmt: skip


def _changed(limit: Limit, change: Change) -> Limit:
    rate = change.rate or limit.rate
    return Limit(
        limit.name, change.concurrency or limit.concurrency, rate=rate, key=limit.key,
        burst=limit.burst if rate is not None else None,
    )  # fmt: skip


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
