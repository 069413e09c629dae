"""``celery lanes web``: the state of the lanes in a browser.

Runs in the operator's terminal.
"""

from __future__ import annotations

import click

from celery_budgets.cli.options import seconds_option
from celery_budgets.config.settings import settings_of

__all__ = ["command"]

DEFAULT_PORT = 5556


@click.command("web")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True,
    help="Port to listen on; 0: any that is free.",
)  # fmt: skip
@click.option(
    "--auth", metavar="USER:PASSWORD", envvar="CELERY_LANES_WEB_AUTH", show_envvar=True,
    help="Have the browser ask for these, instead of a token in the address.",
)  # fmt: skip
@click.option("--read-only", is_flag=True, help="Show, and change nothing.")
@seconds_option("--interval", 2.0, "Seconds between two questions to the workers.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    host: str,
    port: int,
    auth: str | None,
    read_only: bool,
    interval: float,
) -> None:
    """Show the lanes, live, on a page for a browser.

    It prints the address, which works as it stands: it carries a token that changes with each
    start. An address that other machines reach needs --auth. Workers are asked only while somebody
    looks on, once per interval however many do. Ctrl-C ends it.

    \b
    Examples:
      $ celery -A tools lanes web
      $ celery -A tools lanes web --port 8080 --read-only
      $ CELERY_LANES_WEB_AUTH=ann:secret celery -A tools lanes web --host 0.0.0.0
    """
    from celery_budgets.web.access import NeedPassword, NeedToken
    from celery_budgets.web.application import application_of
    from celery_budgets.web.server import PageServer, is_loopback

    app = ctx.obj.app
    settings_of(app)
    if auth is None and not is_loopback(host):
        raise click.UsageError(
            f"--host {host} can be reached from other machines: give --auth USER:PASSWORD"
        )
    access: NeedPassword | NeedToken = NeedToken()
    if auth is not None:
        name, _, password = auth.partition(":")
        if not name or not password:
            raise click.UsageError("--auth: write USER:PASSWORD")
        access = NeedPassword(name, password)
    page = application_of(app, read_only=read_only, access=access, interval=interval)
    with PageServer(host, port, page) as server:
        token = f"?token={access.token}" if isinstance(access, NeedToken) else ""
        click.echo(f"The lanes are at {server.url}{token}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return  # Ctrl-C is a normal way to quit
