"""The table of lanes: the lanes by name and by queue, and the tasks that each one runs.

A *lane* is one queue with its concurrency and its budget. *Tools* are the tasks, by name or glob,
that the table assigns to lanes.

Covers: consistency of the table; all problems are reported at once.
Does not cover: where the values come from (:mod:`celery_budgets.config.settings`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from celery_budgets.errors import ConfigurationError, nearest
from celery_budgets.model.lane import Lane
from celery_budgets.model.priority import LOW_SUFFIX

__all__ = ["DEFAULT_LANES", "Lane", "Lanes"]


#: The lanes of an app that names none.
DEFAULT_LANES = (
    Lane("tool_call", concurrency=8),
    Lane("file_read", concurrency=16, tools=["fs_read"]),
    Lane("file_write", concurrency=4, tools=["fs_write"]),
    Lane("critic", concurrency=3, tools=["critics_run"]),
    Lane("forecast_model", concurrency=1, tools=["forecast_model"]),
)


class Lanes(Mapping[str, Lane]):
    """A mapping of lane names to lanes, with the tool table and the default lane.

    Args:
        lanes: The lanes.
        tools: Lane name by task name or glob; takes precedence over the lanes' own ``tools``.
        default: Name of the lane for all other tasks; ``None``: ``tool_call``, or the first
            lane if there is none of that name.
        global_concurrency: Calls that one worker may run at once over all its lanes.

    Raises:
        ConfigurationError: Lists every problem with the table.
    """

    def __init__(
        self,
        lanes: Iterable[Lane] = DEFAULT_LANES,
        *,
        tools: Mapping[str, str] | None = None,
        default: str | None = None,
        global_concurrency: int = 32,
    ) -> None:
        listed = tuple(lanes)
        ConfigurationError.raise_if(
            f"lanes: {lane!r} is not a Lane; write Lane(name, concurrency)"
            for lane in listed
            if not isinstance(lane, Lane)
        )
        self._by_name = {lane.name: lane for lane in listed}
        self._by_queue = {lane.queue: lane for lane in listed}
        self.global_concurrency = global_concurrency
        if default is None and "tool_call" not in self._by_name and listed:
            default = listed[0].name
        self._default = "tool_call" if default is None else default
        #: Lane name by task name or glob, first match wins.
        self.tools = dict(tools or {})
        self._given_tools = frozenset(self.tools)
        for lane in listed:
            for tool in lane.tools:
                self.tools.setdefault(tool, lane.name)
        ConfigurationError.raise_if(self._problems(listed))
        self._exact = {
            tool: self._by_name[name] for tool, name in self.tools.items() if not _is_glob(tool)
        }
        self._globs = [
            (tool, self._by_name[name]) for tool, name in self.tools.items() if _is_glob(tool)
        ]

    def __getitem__(self, name: str) -> Lane:
        try:
            return self._by_name[name]
        except KeyError:
            raise ConfigurationError(
                f"lane {name!r} is not known; {nearest(name, self._by_name)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return f"Lanes({', '.join(f'{lane.name}={lane.concurrency}' for lane in self.values())})"

    @property
    def default(self) -> Lane:
        """The lane of all tasks that no entry of the tool table matches."""
        return self._by_name[self._default]

    def of_queue(self, queue: str | None) -> Lane | None:
        """Return the lane of *queue*, or ``None`` if no lane has it."""
        if not queue:
            return None
        return self._by_queue.get(queue) or self._by_queue.get(queue.removesuffix(LOW_SUFFIX))

    def of_tool(self, task_name: str) -> Lane | None:
        """Return the lane of *task_name* by the tool table, or ``None``."""
        lane = self._exact.get(task_name)
        if lane is None and self._globs:
            lane = next((lane for glob, lane in self._globs if fnmatchcase(task_name, glob)), None)
        return lane

    def unmatched_tools(
        self, task_names: Iterable[str], tools: Mapping[str, str] | None = None
    ) -> list[str]:
        """Return a problem for each entry of the tool table that matches no task.

        Args:
            task_names: Names of the registered tasks.
            tools: The entries to check, lane by tool; by default the whole table.
        """
        names = list(task_names)
        return [
            f"tool {tool!r} of lane {lane!r} matches no registered task; {nearest(tool, names)}"
            for tool, lane in (self.tools if tools is None else tools).items()
            if not any(fnmatchcase(name, tool) for name in names)
        ]

    def _problems(self, listed: tuple[Lane, ...]) -> Iterator[str]:
        if not listed:
            yield "lanes: there is none; name at least one"
            return
        yield from _twins(listed)
        yield from self._shared_tools(listed)
        if self._default not in self._by_name:
            yield (
                f"budgets_default_lane {self._default!r} is not a lane; "
                f"{nearest(self._default, self._by_name)}"
            )
        for tool, name in self.tools.items():
            if name not in self._by_name:
                yield (f"tool {tool!r}: lane {name!r} is not known; {nearest(name, self._by_name)}")
        total = sum(lane.concurrency for lane in listed)
        if isinstance(self.global_concurrency, bool) or not isinstance(
            self.global_concurrency, int
        ):
            yield (
                f"budgets_global_concurrency {self.global_concurrency!r} is not a whole number; "
                f"give {total} or more"
            )
        elif total > self.global_concurrency:
            yield (
                f"the lanes' concurrency adds up to {total}, above budgets_global_concurrency "
                f"({self.global_concurrency}); raise it to {total} or lower a lane's concurrency"
            )
        else:
            for lane in listed:
                if lane.max is not None and lane.max > self.global_concurrency:
                    yield (
                        f"lane {lane.name!r}: max {lane.max} is above budgets_global_concurrency "
                        f"({self.global_concurrency}); lower it"
                    )

    def _shared_tools(self, listed: tuple[Lane, ...]) -> Iterator[str]:
        for lane in listed:
            for tool in lane.tools:
                if tool not in self._given_tools and self.tools[tool] != lane.name:
                    yield (
                        f"tool {tool!r} is named by the lanes {self.tools[tool]!r} and "
                        f"{lane.name!r}; leave it to one"
                    )


def _twins(listed: tuple[Lane, ...]) -> Iterator[str]:
    seen: dict[tuple[str, str], Lane] = {}
    for lane in listed:
        for what, value in (("name", lane.name), ("queue", lane.queue)):
            twin = seen.setdefault((what, value), lane)
            if twin is lane:
                continue
            if what == "name":
                yield f"lane {value!r} is named twice; rename one"
            elif twin.name != lane.name:
                yield (
                    f"lanes {twin.name!r} and {lane.name!r} share the queue {value!r}; "
                    "give each a queue of its own"
                )


def _is_glob(tool: str) -> bool:
    return any(character in tool for character in "*?[")
