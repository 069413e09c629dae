"""``celery lanes``: the command group, registered by the entry point ``celery.commands``.

Every ``celery`` command imports this module, so a subcommand is imported only when it is run.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
from click_didyoumean import DYMGroup

# Importing them registers `celery inspect budgets` and the control commands with the command line.
import celery_budgets.worker.remote.commands
import celery_budgets.worker.remote.drain
import celery_budgets.worker.remote.health
import celery_budgets.worker.remote.history
import celery_budgets.worker.remote.lane_commands
import celery_budgets.worker.remote.stacks
import celery_budgets.worker.remote.why  # noqa: F401
from celery_budgets.errors import BudgetsError

__all__ = ["lanes"]

#: Module below this package by the name of the command; each has a ``command``.
COMMANDS = {
    "list": "list_lanes",
    "check": "check",
    "worker": "worker",
    "up": "up",
    "status": "status",
    "health": "health",
    "top": "top",
    "web": "web",
    "why": "why",
    "stack": "stack",
    "kills": "kills",
    "limits": "limits",
    "drain": "drain",
    "set": "set_limit",
    "pause": "pause",
    "resume": "resume",
}


class LanesGroup(DYMGroup):
    """A group that imports its commands on demand and shows our errors as one message."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command *name*, or ``None`` where there is none."""
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"{__name__}.{COMMANDS[name]}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of this package ends it with its message and code 1."""
        try:
            return super().invoke(ctx)
        except click.ClickException:
            raise
        except BudgetsError as exc:
            raise click.ClickException(str(exc)) from exc


@click.group(cls=LanesGroup, invoke_without_command=True)
@click.pass_context
def lanes(ctx: click.Context) -> None:
    """Show, check and run the lanes of an app.

    Without a command, it lists the lanes.

    \b
    Examples:
      $ celery -A tools lanes
      $ celery -A tools lanes check
      $ celery -A tools lanes up
    """
    if ctx.invoked_subcommand is None:
        command = lanes.get_command(ctx, "list")
        assert command is not None
        ctx.invoke(command)
