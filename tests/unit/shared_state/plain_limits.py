"""What the scripts of limits do, in plain Python: what they are held against."""

from __future__ import annotations

from dataclasses import dataclass, field

OFFERED = 1_000_000
LOOK = 500_000


@dataclass
class PlainLimit:
    """One limit and key: its holders by name, those in line by since when, and its rate."""

    most: int
    interval: float
    burst: int
    #: Weight, end of the lease, and whether it is only offered.
    held: dict[str, tuple[int, int, bool]] = field(default_factory=dict)
    line: dict[tuple[str, int], int] = field(default_factory=dict)
    due_at: float = 0.0
    #: Closed until then, and who tries it since: name, and the end of its lease.
    opens: int | None = None
    tries: tuple[str, int] | None = None

    def room(self):
        return self.most - sum(weight for weight, _, _ in self.held.values())

    def first(self):
        return min(self.line, key=lambda one: (self.line[one], f"{one[0]} {one[1]}"), default=None)


class PlainLimits:
    """All limits, with a clock of their own."""

    def __init__(self, limits, length):
        self.limits, self.length, self.now = limits, length, 0
        self.listening, self.told = set(), []

    def tidy(self, limit):
        gone = {name: held for name, held in limit.held.items() if held[1] <= self.now}
        still = {name.partition(":")[0] for name, held in gone.items() if held[2]}
        limit.line = {k: at for k, at in limit.line.items() if k[0].partition(":")[0] not in still}
        for name in gone:
            del limit.held[name]
        while (
            limit.opens is None
            and (first := limit.first()) is not None
            and limit.room() >= min(first[1], limit.most)
        ):
            del limit.line[first]
            if first[0].partition(":")[0] in self.listening:
                limit.held[first[0]] = (min(first[1], limit.most), self.now + OFFERED, True)
                self.told.append(first[0])

    def leave(self, holder, limit, weight):
        limit.held.pop(holder, None)
        limit.line.pop((holder, weight), None)

    def is_full(self, holder, limit, weight, since):
        self.tidy(limit)
        if holder in limit.held:
            return False
        if limit.opens is not None:
            return limit.room() < weight
        first = limit.first()
        return limit.room() < weight or (first is not None and limit.line[first] < since)

    def acquire(self, holder, demands, since):
        """*demands*: name and weight. Returns as the script does."""
        since = since or self.now
        wanted = [(self.limits[name], weight) for name, weight in demands]
        counted = [limit for limit, _ in wanted if limit.most]
        if counted and all(not limit.held.get(holder, (0, 0, True))[2] for limit in counted):
            for limit in counted:
                limit.held[holder] = (limit.held[holder][0], self.now + self.length, False)
            return True, 0, 0
        for place, (limit, weight) in enumerate(wanted, 1):
            wait = self.wait(holder, limit, weight, since)
            if wait is not None:
                return self.refuse(holder, wanted, place, wait, since)
        for limit, weight in wanted:
            self.leave(holder, limit, weight)
            if limit.most:
                limit.held[holder] = (weight, self.now + self.length, False)
            if limit.opens is not None:
                limit.tries = holder, self.now + self.length
            if limit.interval:
                limit.due_at = max(limit.due_at, self.now) + weight * limit.interval
        return True, 0, 0

    def wait(self, holder, limit, weight, since):
        """Return how long it has to wait, 0: in line; ``None``: not at all."""
        if closed := self.closed(holder, limit):
            return closed
        if limit.most and self.is_full(holder, limit, weight, since):
            return 0
        due = max(limit.due_at, self.now) + (weight - limit.burst) * limit.interval
        return due - self.now if limit.interval and due > self.now else None

    def closed(self, holder, limit):
        """Return for how long nobody but who tries it may start."""
        if limit.opens is None:
            return 0
        if self.now < limit.opens:
            return limit.opens - self.now
        name, ends = limit.tries or ("", 0)
        if limit.most:
            _, ends, offered = limit.held.get(name, (0, 0, True))
            ends = 0 if offered else ends
        return LOOK if name != holder and self.now < ends else 0

    def throttle(self, name, seconds):
        limit = self.limits[name]
        limit.opens = max(limit.opens or 0, self.now + seconds * 1_000_000)
        limit.tries = None

    def refuse(self, holder, wanted, refused, wait, since):
        for place, (limit, weight) in enumerate(wanted, 1):
            if not limit.most:
                continue
            self.leave(holder, limit, weight)
            if place == refused and not wait:
                limit.line[holder, weight] = since
            else:
                self.tidy(limit)
        return False, refused, wait

    def renew(self, holder, demands):
        """Return whether it holds all of them on."""
        kept = []
        for name, weight in demands:
            limit = self.limits[name]
            if not limit.most:
                continue
            held = limit.held.get(holder)
            if held is None or held[2]:
                for other, (_, ends, _) in list(limit.held.items()):
                    if ends <= self.now:
                        del limit.held[other]
                if limit.room() < weight:
                    kept.append(False)
                    continue
            limit.held[holder] = (weight, self.now + self.length, False)
            kept.append(True)
        return all(kept)

    def release(self, holder, demands):
        for name, weight in demands:
            limit = self.limits[name]
            if limit.tries is not None and limit.tries[0] == holder:
                limit.opens = limit.tries = None
            if limit.most:
                self.leave(holder, limit, weight)
                self.tidy(limit)
