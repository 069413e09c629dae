"""``LimitStore``: takes, renews and gives back places of limits, in Redis.

A call takes all of its limits at once or none. A place is a lease: it ends by itself unless it is
renewed, by the clock of Redis.

Runs in each process that runs calls with limits. See also:
:mod:`celery_budgets.shared_state.scripts.limits`, and
:mod:`celery_budgets.shared_state.limit_agent`, which waits and renews.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from redis.exceptions import NoScriptError

from celery_budgets.model.limit import Demand, Limit
from celery_budgets.shared_state.answers import Answer, Aside, Ask, Release
from celery_budgets.shared_state.limit_names import arguments_of, key_in_use, short
from celery_budgets.shared_state.scripts.asides import POLL, PUT_ASIDE, SENT, TAKE_BACK
from celery_budgets.shared_state.scripts.demands import CLOCK
from celery_budgets.shared_state.scripts.limits import ACQUIRE, RELEASE, RENEW, THROTTLE

__all__ = ["CHANNELS", "OFFERED", "LimitStore"]

#: How long a place stays free for the first in line, which has been told, seconds.
OFFERED = 1.0
#: One hash tag: a script changes the names of several limits at once.
_NAMES = "celery-budgets:{limits}:"
#: Before the name of a process: the channel on which it is told what it is offered.
CHANNELS = "celery-budgets:limits:"
#: More than there can be.
_ANY = 1_000_000
#: A script, its names and its arguments.
_Command: TypeAlias = tuple[Any, list[str], list[Any]]


class LimitStore:
    """The places of limits on one server.

    Args:
        client: A client of the server.
        length: How long a place is held unless it is renewed, seconds.
        prefix: Put before each name.
        clock: The script that reads the time into ``now``.
    """

    def __init__(self, client: Any, *, length: float, prefix: str = "", clock: str = CLOCK) -> None:
        self.client = client
        #: How many messages that were put aside this process sends back at once; 0: it sends none.
        self.takes = 0
        #: What it is to send back.
        self.taken: list[Aside] = []
        self.length = length
        self.channels = prefix + CHANNELS
        self._prefix = prefix + _NAMES
        self._length = max(1, round(length * 1e6))
        self._acquire = client.register_script(clock + ACQUIRE)
        self._renew = client.register_script(clock + RENEW)
        self._release = client.register_script(clock + RELEASE)
        self._throttle = client.register_script(clock + THROTTLE)
        self._put_aside = client.register_script(clock + PUT_ASIDE)
        self._take_back = client.register_script(clock + TAKE_BACK)
        self._poll = client.register_script(clock + POLL)
        self._sent = client.register_script(SENT)

    def send_back(self, most: int) -> None:
        """Have answers bring along up to *most* messages that are to be sent back."""
        self.takes = most

    def taken_over(self) -> list[Aside]:
        """Return what answers have brought along since."""
        taken, self.taken = self.taken, []
        return taken

    def acquire(
        self, holder: str, demands: Sequence[Demand], since: int = 0, aside: str = ""
    ) -> Answer:
        """Take all of *demands*, or stand in line for the first that is full.

        Args:
            holder: ``process:number``, of one call; it may ask again.
            demands: What the call needs.
            since: Of the answer to it before; keeps its place in the order.
            aside: Its name if it can be put aside, for a limit with a key that is full.

        Raises:
            redis.exceptions.RedisError: The server does not answer. It may have granted them; ask
                again, or release them.
        """
        return self.exchange([], [Ask(holder, demands, since, aside)])[0]

    def exchange(self, releases: Iterable[Release], asks: Sequence[Ask]) -> list[Answer]:
        """Give back what holders have, then have others ask, all in one round trip.

        Raises:
            redis.exceptions.RedisError: The server does not answer. Any part may have been done,
                and all may be repeated.
        """
        commands = [
            self._command(self._release, one.holder, one.demands, 0, one.aside, one.held)
            for one in releases
        ]
        commands += [
            self._command(self._acquire, ask.holder, ask.demands, ask.since, ask.aside)
            for ask in asks
        ]
        replies = self._run(commands)
        count = len(replies) - len(asks)
        for taken in replies[:count]:
            self._take(taken)
        return [
            self._answer(ask.demands, *reply)
            for ask, reply in zip(asks, replies[count:], strict=True)
        ]

    def _command(
        self, script: Any, holder: str, demands: Sequence[Demand], *arguments: Any
    ) -> _Command:
        return script, [*self._names(demands)], self._arguments(holder, demands, *arguments)

    def _run(self, commands: Sequence[_Command]) -> list[Any]:
        """Run scripts in one round trip; redis-py asks before each pipeline whether it has them."""
        if not commands:
            return []
        if len(commands) == 1:
            script, keys, arguments = commands[0]
            return [script(keys=keys, args=arguments)]
        try:
            return self._run_known(commands)
        except NoScriptError:
            for script in dict.fromkeys(script for script, *_ in commands):
                self.client.script_load(script.script)
            return self._run_known(commands)

    def _run_known(self, commands: Sequence[_Command]) -> list[Any]:
        with self.client.pipeline(transaction=False) as pipe:
            for script, keys, arguments in commands:
                pipe.evalsha(script.sha, len(keys), *keys, *arguments)
            replies: list[Any] = pipe.execute()
            return replies

    def _answer(
        self, demands: Sequence[Demand], granted: int, refused: int, wait: int, since: bytes,
        ends: int, now: bytes, taken: Any,
    ) -> Answer:  # fmt: skip
        self._take(taken)
        if granted:
            return Answer(granted=True, waited=(int(now) - int(since)) / 1e6)
        return Answer(
            False, demands[refused - 1], max(0, wait) / 1e6, int(since), ends / 1e6, wait < 0
        )

    def put_aside(self, asides: Iterable[tuple[Ask, Answer, bytes]]) -> None:
        """Put calls aside, each in the line of what it was refused; may be repeated.

        Args:
            asides: Of each what it asked, the answer, and its message.

        Raises:
            redis.exceptions.RedisError: The server does not answer. They may be there or not.
        """
        commands = []
        for ask, answer, message in asides:
            assert answer.refused is not None
            script, names, arguments = self._command(
                self._put_aside, ask.holder, ask.demands, answer.since, ask.aside
            )
            full = ask.demands.index(answer.refused) + 1
            commands.append((script, names, [*arguments, full, message]))
        for taken in self._run(commands):
            self._take(taken)

    def take_back(self, holder: str, demands: Sequence[Demand], name: str) -> None:
        """Forget what was put aside as *name*: its message goes elsewhere.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        for taken in self._run([self._command(self._take_back, holder, demands, 0, name)]):
            self._take(taken)

    def poll(self, limits: Mapping[str, Limit]) -> float | None:
        """Look at the keys that are due; return the seconds until the next, ``None`` if none.

        Args:
            limits: The limits of the app. Whoever waits for one that is gone waits no more.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        due, wait, taken = self._poll(keys=[*self._names(())], args=self._arguments("-:0", (), 0))
        self._take(taken)
        demands = []
        for which in due:
            name, _, key = which.decode("utf-8", "surrogatepass").partition(":")
            demands.append(Demand(limits.get(name) or Limit(name, _ANY, key="key"), key))
        if demands:
            self.release("-:0", demands)
            return 0.0
        return None if wait < 0 else wait / 1e6

    def sent(self, asides: Iterable[Aside]) -> None:
        """Forget *asides*, which were sent back to their queues.

        Raises:
            redis.exceptions.RedisError: The server does not answer. They are sent again, later.
        """
        arguments = [one for aside in asides for one in (aside.name, aside.ends)]
        names = self.name_for_all("back"), self.name_for_all("asides")
        self._sent(keys=names, args=arguments)

    def hand_on(self, asides: Iterable[Aside]) -> None:
        """Have another process send *asides*, which this one has taken and not sent.

        Raises:
            redis.exceptions.RedisError: The server does not answer. Another sends them later.
        """
        names = {aside.name: 0 for aside in asides}
        self.client.zadd(self.name_for_all("back"), names, xx=True)

    def renew(self, held: Sequence[Release]) -> list[bool]:
        """Start the leases of all *held* anew; return of each holder whether it holds all of them.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        holders, names, arguments = [], [], []
        for one in held:
            for demand in one.demands:
                if demand.limit.concurrency is not None:
                    holders.append(one.holder)
                    names.append(self._name("held", demand))
                    names += [self.name_of(what, demand.limit.name) for what in ("set", "used")]
                    arguments += [one.holder, demand.limit.concurrency, demand.weight]
                    arguments += [key_in_use(demand), f"{one.held:.6f}"]
        if not holders:
            return [True for _ in held]
        renewed = self._renew(keys=names, args=[self._length, *arguments])
        lost = {holder for holder, one in zip(holders, renewed, strict=True) if not one}
        return [one.holder not in lost for one in held]

    def release(self, holder: str, demands: Sequence[Demand]) -> None:
        """Give back what *holder* has, or end its wait; it may be done twice.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        self.exchange([Release(holder, demands)], [])

    def throttle(self, limit: str, key: str | None, seconds: float) -> None:
        """Close *limit* for *seconds*: for one *key* alone, or with ``None`` for all of them.

        After that one call tries it; the others start when that one has ended well.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        name = self.name_of("brakes" if key is None else "brake", limit, key)
        self._throttle(keys=[name], args=[max(1, round(seconds * 1e6))])

    def _names(self, demands: Iterable[Demand]) -> Iterator[str]:
        for demand in demands:
            yield from (self._name(what, demand) for what in ("held", "line", "rate", "brake"))
            yield from (self.name_of(what, demand.limit.name) for what in ("brakes", "set", "used"))
        yield from map(self.name_for_all, ("asides", "looks", "back"))

    def _name(self, what: str, demand: Demand) -> str:
        return self.name_of(what, demand.limit.name, demand.key)

    def name_of(self, what: str, limit: str, key: str | None = None) -> str:
        """Return the name in Redis of *what* of *limit*: for *key*, or for all of them."""
        if key is None:
            return f"{self._prefix}{what}:{limit}"
        return f"{self._prefix}{what}:{limit}:{short(key)}"

    def name_for_all(self, what: str) -> str:
        """Return the name in Redis of *what* is kept of all limits together."""
        return self._prefix + what

    def _arguments(
        self, holder: str, demands: Iterable[Demand], since: int, aside: str = "", held: float = 0.0
    ) -> list[Any]:
        return [
            self._length, holder, round(OFFERED * 1e6), self.channels, since, aside, self.takes,
            f"{held:.6f}", *chain.from_iterable(map(arguments_of, demands)),
        ]  # fmt: skip

    def _take(self, taken: Iterable[tuple[bytes, bytes, bytes]]) -> None:
        for name, message, ends in taken:
            self.taken.append(Aside(name.decode(), message, ends))
