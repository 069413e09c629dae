"""What the scripts of limits do, in plain Python: what they are held against."""

from __future__ import annotations

from dataclasses import dataclass, field

OFFERED = 1_000_000


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
        while (first := limit.first()) is not None and limit.room() >= min(first[1], limit.most):
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
            if limit.most and self.is_full(holder, limit, weight, since):
                return self.refuse(holder, wanted, place, 0, since)
            if limit.interval:
                due = max(limit.due_at, self.now) + (weight - limit.burst) * limit.interval
                if due > self.now:
                    return self.refuse(holder, wanted, place, due - self.now, since)
        for limit, weight in wanted:
            self.leave(holder, limit, weight)
            if limit.most:
                limit.held[holder] = (weight, self.now + self.length, False)
            if limit.interval:
                limit.due_at = max(limit.due_at, self.now) + weight * limit.interval
        return True, 0, 0

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
            if limit.most:
                self.leave(holder, limit, weight)
                self.tidy(limit)
