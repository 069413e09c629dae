"""The page of the lanes, served by a thread beside the job."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from celery_budgets.web.access import NeedToken
from celery_budgets.web.application import application_of
from celery_budgets.web.server import PageServer

__all__ = ["page"]


@contextmanager
def page() -> Iterator[str]:
    """Serve the page on a free port of this machine, and return its address with the token."""
    # Here: the app looks at the broker's address when it is imported.
    from examples.tools.app import app

    access = NeedToken()
    with PageServer("127.0.0.1", 0, application_of(app, access=access, read_only=False)) as server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield f"{server.url}?token={access.token}"
        finally:
            server.shutdown()
