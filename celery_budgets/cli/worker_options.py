"""The options after ``--`` of ``celery lanes up``, which are passed to every worker.

The parser of ``celery worker`` itself reads them, so that it knows each spelling of an option,
and the options that a program has added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

__all__ = ["WithWorkerOptions", "check_options", "worker_options"]

_META = "celery_budgets.worker_options"
#: Why an option cannot go to every worker, and what to do instead, by its parameter.
_REMEDIES = {
    "queues": "each worker has the queue of its lane; choose lanes with --lane before --",
    "exclude_queues": "each worker has the queue of its lane; choose lanes with --lane before --",
    "hostname": (
        "each worker is named after its lane; for a name of your own: "
        "celery -A MODULE lanes worker LANE -- -n NAME"
    ),
    "concurrency": (
        "each worker has the concurrency of its lane; lower all with --concurrency-scale before "
        "--, or change the lane's"
    ),
    "detach": "the workers end with their supervisor; start that in the background",
    "beat": "every worker would send each entry of the schedule; run celery beat beside them",
    "--help": "see celery worker --help",
}
#: Options that name a file, which workers cannot share.
_FILES = ("pidfile", "statedb")


class WithWorkerOptions(click.Command):
    """A command that sets the options after ``--`` aside for the workers."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Split *args* at the first ``--``, which click would drop."""
        place = args.index("--") if "--" in args else len(args)
        ctx.meta[_META] = args[place + 1 :]
        try:
            return super().parse_args(ctx, args[:place])
        except click.NoSuchOption as exc:
            worker = _worker(ctx)
            if not _known(exc.option_name, worker):
                raise
            text = f"{exc.format_message()} Options of the workers go after --."
            raise click.UsageError(text, ctx) from None


def worker_options(ctx: click.Context, *, scaled: bool) -> list[str]:
    """Return the options after ``--`` on this command line.

    Args:
        ctx: Context of a :class:`WithWorkerOptions` command.
        scaled: Whether ``--concurrency-scale`` lowers the concurrency of the lanes.

    Raises:
        click.UsageError: An option cannot be passed to every worker; the message has the remedy.
    """
    options: list[str] = ctx.meta[_META]
    check_options(ctx, options, "after --, for celery worker", scaled=scaled)
    return options


def check_options(
    ctx: click.Context, options: Sequence[str], where: str, *, scaled: bool = False
) -> None:
    """Check that *options* can be passed to each worker of several.

    Args:
        ctx: Context of the command.
        options: Options of ``celery worker``.
        where: Where they stand, for an error.
        scaled: Whether ``--concurrency-scale`` lowers the concurrency of the lanes.

    Raises:
        click.UsageError: One cannot be passed on; the message has the remedy.
    """
    worker = _worker(ctx)
    try:
        values, _, order = worker.make_parser(click.Context(worker, ctx)).parse_args(list(options))
    except click.NoSuchOption as exc:
        if _known(exc.option_name, ctx.find_root().command):
            _refuse(exc.option_name, "give it before lanes: celery OPTIONS lanes up")
        raise click.UsageError(f"{where}: {exc.format_message()}") from None
    except click.UsageError as exc:
        raise click.UsageError(f"{where}: {exc.format_message()}") from None
    for parameter in order:
        _check(parameter, values, scaled=scaled)


def _check(parameter: click.Parameter, values: dict[str, Any], *, scaled: bool) -> None:
    spelling = "/".join(parameter.opts)
    # click chooses the parameter name of --help.
    name = spelling if spelling == "--help" else parameter.name or ""
    if name in _REMEDIES:
        _refuse(spelling, _REMEDIES[name])
    if name == "autoscale" and scaled:
        _refuse(spelling, "--concurrency-scale fixes the concurrency; drop one")
    if name in _FILES and not any(part in str(values[name]) for part in ("%n", "%p")):
        _refuse(spelling, f"each worker needs a file of its own; put %n into it: {name}-%n")


def _refuse(spelling: str, remedy: str) -> None:
    raise click.UsageError(f"{spelling} cannot go to every worker: {remedy}")


def _worker(ctx: click.Context) -> click.Command:
    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    return root.commands["worker"]


def _known(option: str, command: click.Command) -> bool:
    return any(option in parameter.opts for parameter in command.params)
