"""What one call needs of limits over the fleet: by its task, its arguments and its headers.

Pure data, the same in the process that sends a call, in the worker, and in the process that runs
it. See also: :mod:`celery_budgets.model.limit`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from celery_budgets.errors import nearest
from celery_budgets.model.headers import HEADER_LIMIT_KEYS, HEADER_WEIGHT
from celery_budgets.model.limit import Demand, Limit

__all__ = ["CallLimits", "key_problems", "limit_problems", "weight_problems"]

#: Reads the key of a call from its arguments.
Reader = Callable[[Sequence[Any], Mapping[str, Any]], Any]


class CallLimits:
    """The limits that the calls of one task are held to.

    Args:
        task: The task, or what has its ``limits``, ``weight`` and ``run``.
        known: The limits of the app; those that it does not have are left out.
        reads: Whether the arguments are those of the task itself, and no lists of a ``map``.
    """

    def __init__(self, task: Any, known: Mapping[str, Limit], *, reads: bool = True) -> None:
        self.limits = [known[name] for name in dict.fromkeys(task.limits) if name in known]
        self._weight = task.weight
        self._readers = {
            limit.name: _reader(limit.key, task.run) if reads else None
            for limit in self.limits
            if limit.key is not None
        }
        #: Whether any of them has a key.
        self.keyed = bool(self._readers)

    def demands(
        self,
        args: Any,
        kwargs: Any,
        headers: Mapping[str, Any],
        tell: Callable[[str, Exception | None], object] = lambda limit, error: None,
    ) -> tuple[Demand, ...]:
        """Return what one call needs.

        Args:
            args: Positional arguments of the call.
            kwargs: Its keyword arguments.
            headers: Headers of its message; a key there wins.
            tell: Called with the name of a limit whose key is missing, and with what a function of
                the program has raised.
        """
        return tuple(
            Demand(
                limit, self._key(limit, args, kwargs, headers, tell), self._weigh(limit, headers)
            )
            for limit in self.limits
        )

    def _key(self, limit: Limit, args: Any, kwargs: Any, headers: Any, tell: Any) -> str:
        if limit.key is None:
            return ""
        given = headers.get(HEADER_LIMIT_KEYS)
        key = given.get(limit.name) if isinstance(given, Mapping) else None
        error: Exception | None = None
        read = self._readers[limit.name]
        if key is None and read is not None:
            try:
                key = read(args or (), kwargs or {})
                key = None if key is None else str(key)
            except Exception as exc:
                key, error = None, exc
        if key is None or key == "":
            tell(limit.name, error)
            return ""
        return str(key)

    def _weigh(self, limit: Limit, headers: Mapping[str, Any]) -> int:
        """Return for how many calls it counts: at most as many as the limit ever lets start."""
        own = _weight_for(limit.name, self._weight, 1)
        return min(_weight_for(limit.name, headers.get(HEADER_WEIGHT), own), most_of(limit)[0])


def most_of(limit: Limit) -> tuple[int, str]:
    """Return the highest weight that *limit* can grant, and which of its numbers says so."""
    bounds = []
    if limit.concurrency is not None:
        bounds.append((limit.concurrency, "concurrency"))
    if limit.rate is not None:
        bounds.append((limit.burst, "burst"))
    return min(bounds)


def limit_problems(task: Any, known: Mapping[str, Limit]) -> Iterator[str]:
    """Yield a problem for each limit that *task* names and cannot be held to."""
    for name in task.limits:
        if name not in known:
            yield f"task {task.name!r}: limit {name!r} is not known; {nearest(name, known)}"
            continue
        key = known[name].key
        if isinstance(key, str) and _reader(key, task.run) is None:
            names = ", ".join(inspect.signature(task.run).parameters) or "none"
            yield (
                f"task {task.name!r}: limit {name!r}: its key {key!r} is no argument of the task "
                f"(its arguments: {names}); add it, name another, or give the limit a function of "
                "(args, kwargs) as key"
            )
    yield from weight_problems(f"task {task.name!r}", task.weight, task.limits, known)


def weight_problems(
    subject: str, weight: Any, names: Sequence[str], known: Mapping[str, Limit]
) -> Iterator[str]:
    """Yield a problem for each weight that is none, or that a limit of *names* can never grant."""
    if isinstance(weight, Mapping):
        for name in weight:
            if name not in names:
                yield (
                    f"{subject}: weight: {name!r} is no limit that it names; {nearest(name, names)}"
                )
        entries = [(f" for limit {name!r}", one) for name, one in weight.items()]
    else:
        entries = [("", weight)]
    invalid = [(where, one) for where, one in entries if not _is_weight(one)]
    for where, one in invalid:
        yield f"{subject}: weight {one!r}{where} must be a whole number of 1 or more"
    if invalid:
        return
    for name in dict.fromkeys(names):
        own = _weight_for(name, weight, 1)
        if name in known and own > 1:
            most, what = most_of(known[name])
            if own > most:
                yield (
                    f"{subject}: weight {own} is above what limit {name!r} ever grants, its "
                    f"{what} of {most}; lower the weight, or raise that"
                )


def key_problems(
    subject: str, keys: Any, names: Sequence[str], known: Mapping[str, Limit]
) -> Iterator[str]:
    """Yield a problem for each entry of ``limit_keys`` that is of no limit with keys in *names*."""
    if not isinstance(keys, Mapping):
        yield (
            f"{subject}: limit_keys {keys!r} must be a mapping of limits to keys, such as "
            "{'tenant': 'acme'}"
        )
        return
    with_keys = [name for name in names if name in known and known[name].key is not None]
    for name in keys:
        if name not in with_keys:
            yield (
                f"{subject}: limit_keys: {name!r} is no limit with keys that it names; "
                f"{nearest(name, with_keys)}"
            )


def _is_weight(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _weight_for(name: str, weight: Any, default: int) -> int:
    """Return the weight for one limit; *default* where there is none, or an invalid one."""
    if isinstance(weight, Mapping):
        weight = weight.get(name)
    return weight if _is_weight(weight) else default


def _reader(key: Any, run: Callable[..., Any]) -> Reader | None:
    """Return what reads the key; ``None`` if *key* names no argument of *run*."""
    if callable(key):
        return key  # type: ignore[no-any-return]
    try:
        parameters = inspect.signature(run).parameters
    except (TypeError, ValueError):  # of C code
        return lambda args, kwargs: kwargs.get(key)
    found = parameters.get(key)
    kinds = [parameter.kind for parameter in parameters.values()]
    if found is None or found.kind in (found.VAR_POSITIONAL, found.VAR_KEYWORD):
        anything = inspect.Parameter.VAR_KEYWORD in kinds
        return (lambda args, kwargs: kwargs.get(key)) if anything else None
    default = None if found.default is found.empty else found.default
    if found.kind is found.KEYWORD_ONLY:
        return lambda args, kwargs: kwargs.get(key, default)
    place = list(parameters).index(key)

    def read(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return args[place] if len(args) > place else kwargs.get(key, default)

    return read
