"""``celery lanes top``: what the workers are doing, live."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from celery_budgets.cli.findings import require_broker
from celery_budgets.cli.options import seconds_option
from celery_budgets.cli.overview import Overview
from celery_budgets.config.settings import settings_of
from celery_budgets.sending.remote_control import Inspection

if TYPE_CHECKING:
    from rich.console import Console, Group

__all__ = ["Looks", "command"]

#: Seconds that workers have to answer; what is shown stands still for so long where one is silent.
ANSWER_SECONDS = 1.0
#: Seconds between two looks at the keyboard.
KEY_SECONDS = 0.1


@click.command("top")
@seconds_option("--interval", 1.0, "Seconds between two looks.")
@click.option("--once", is_flag=True, help="Print one table, with rates over one interval.")
@click.pass_context
def command(ctx: click.Context, *, interval: float, once: bool) -> None:
    """Show each lane of each worker, live: as status does, with calls per second.

    Where the output is no terminal, prints one table per interval. q and Ctrl-C quit.

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
        return  # Ctrl-C is how one leaves


class Looks:
    """Looks at the workers again and again; each look knows the rates since the last.

    Args:
        asking: Asks the workers.
        lanes: Names of the lanes of the app.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        asking: Inspection,
        lanes: Iterable[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._asking = asking
        self._lanes = list(lanes)
        self._clock = clock
        self._at: float | None = None
        #: What was seen last; ``None`` before the first look.
        self.overview: Overview | None = None
        #: Why the last look saw nothing; empty where it did.
        self.problem = ""

    def look(self) -> Overview | None:
        """Return what is seen now; what was seen last where the broker does not answer."""
        try:
            answers = self._asking.ask(ANSWER_SECONDS)
        except Exception as exc:
            # Each transport has errors of its own. The next look may do better.
            self.problem = f"the broker does not answer ({' '.join(str(exc).split())})"
            return self.overview
        now = self._clock()
        seconds = now - self._at if self._at is not None else None
        self.overview = Overview.of(answers, self._lanes, self.overview, seconds)
        self._at, self.problem = now, ""
        return self.overview

    @property
    def age(self) -> float | None:
        """Seconds since the last look that saw something."""
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
        # What is piped on is wanted now, not when a buffer is full.
        out.file.flush()
        time.sleep(max(0.0, interval - (time.monotonic() - began)))


def _show_live(out: Console, looks: Looks, interval: float) -> None:
    from rich.live import Live

    from celery_budgets.cli.terminal import single_keys

    left = threading.Event()
    # Keys are answered while a look waits for workers, or for a broker that has gone away.
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
