"""``celery lanes top``: the current state of each lane on each worker, live."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from celery_budgets.cli.findings import require_broker
from celery_budgets.cli.options import seconds_option
from celery_budgets.config.settings import settings_of
from celery_budgets.sending.remote_control import Inspection
from celery_budgets.sending.status.overview import Overview

if TYPE_CHECKING:
    from rich.console import Console, Group

__all__ = ["Looks", "command"]

#: Seconds that workers have to answer; a silent worker delays each refresh by this long.
ANSWER_SECONDS = 1.0
#: Seconds between two checks of the keyboard.
KEY_SECONDS = 0.1


@click.command("top")
@seconds_option("--interval", 1.0, "Seconds between two refreshes.")
@click.option("--once", is_flag=True, help="Print one table, with rates over one interval.")
@click.pass_context
def command(ctx: click.Context, *, interval: float, once: bool) -> None:
    """Show what status shows, live, and calls per second.

    q and Ctrl-C quit. Without a terminal, it prints one table per interval.

    Exits with 0; with --once, with 1 when no worker answers.

    \b
    Examples:
      $ celery -A tools lanes top
      $ celery -A tools lanes top --interval 5
      $ celery -A tools lanes top --once
    """
    from celery_budgets.cli.terminal import console, is_interactive

    app = ctx.obj.app
    looks = Looks(Inspection(app), settings_of(app).lanes)
    require_broker(app)
    out = console(no_color=ctx.obj.no_color)
    try:
        if once:
            ctx.exit(0 if _print_once(out, looks, interval) else 1)
        elif is_interactive():
            _show_live(out, looks, interval)
        else:
            _print_on(out, looks, interval)
    except KeyboardInterrupt:
        return  # Ctrl-C is a normal way to quit


class Looks:
    """Polls the workers; each poll computes the rates since the previous one.

    Args:
        inspection: Asks the workers.
        lanes: Names of the app's lanes.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        inspection: Inspection,
        lanes: Iterable[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inspection = inspection
        self._lanes = list(lanes)
        self._clock = clock
        self._at: float | None = None
        #: The last overview; ``None`` before the first poll.
        self.overview: Overview | None = None
        #: Why the last poll failed; empty where it did not.
        self.problem = ""

    def look(self) -> Overview | None:
        """Return the current overview, or the previous one when the broker does not answer."""
        try:
            answers = self._inspection.ask(ANSWER_SECONDS)
        except Exception as exc:
            # Each transport has errors of its own. The next poll may succeed.
            self.problem = f"the broker does not answer ({' '.join(str(exc).split())})"
            return self.overview
        now = self._clock()
        seconds = now - self._at if self._at is not None else None
        self.overview = Overview.of(answers, self._lanes, self.overview, seconds)
        self._at, self.problem = now, ""
        return self.overview

    @property
    def age(self) -> float | None:
        """Seconds since the last successful poll."""
        return self._clock() - self._at if self._at is not None else None


def _print_once(out: Console, looks: Looks, interval: float) -> bool:
    looks.look()
    time.sleep(interval)
    overview = looks.look()
    out.print(_screen(looks, interval, out.width))
    return overview is not None and bool(overview.answered)


def _print_on(out: Console, looks: Looks, interval: float) -> None:
    while True:
        began = time.monotonic()
        looks.look()
        out.print(_screen(looks, interval, out.width))
        # The reader of a pipe needs each table now, not when a buffer is full.
        out.file.flush()
        time.sleep(max(0.0, interval - (time.monotonic() - began)))


def _show_live(out: Console, looks: Looks, interval: float) -> None:
    from rich.live import Live

    from celery_budgets.cli.terminal import single_keys

    left = threading.Event()
    # In a thread, so that keys work while a poll waits for workers or for the broker.
    threading.Thread(target=_keep_looking, args=(looks, interval, left), daemon=True).start()
    try:
        with single_keys() as keys, Live(console=out, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_screen(looks, interval, out.width, keys="q quits"), refresh=True)
                typed = keys.pressed(KEY_SECONDS)
                if typed is None or "q" in typed.lower():
                    return
    finally:
        left.set()


def _keep_looking(looks: Looks, interval: float, left: threading.Event) -> None:
    while not left.is_set():
        began = time.monotonic()
        looks.look()
        left.wait(max(0.0, interval - (time.monotonic() - began)))


def _screen(looks: Looks, interval: float, width: int, keys: str = "") -> Group:
    from rich.console import Group
    from rich.text import Text

    from celery_budgets.cli.lanes_table import drawn

    words = [f"celery lanes top  {datetime.now():%H:%M:%S}  every {interval:g} s"]
    words += [keys] if keys else []
    head: list[Any] = [Text("  ".join(words), style="bold")]
    if looks.problem:
        head.append(Text(looks.problem, style="bold red"))
    age = looks.age
    if age is not None and age > 3 * max(interval, ANSWER_SECONDS):
        head.append(Text(f"last seen {age:.0f} s ago", style="bold red"))
    if looks.overview is None:
        return Group(*head, Text("" if looks.problem else "asking the workers ..."))
    return Group(*head, drawn(looks.overview, width, live=True))
