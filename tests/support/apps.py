"""The app of a test, connected to the servers of that test."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from celery import Celery, _state


@dataclass(frozen=True)
class Servers:
    """The broker and the result backend of a test."""

    broker: str
    backend: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which Celery finds them; they win over the app's own configuration."""
        return {"CELERY_BROKER_URL": self.broker, "CELERY_RESULT_BACKEND": self.backend}


@contextmanager
def fresh_app(module: str, servers: Servers, environment: dict[str, str]) -> Iterator[ModuleType]:
    """Import *module* anew, connected to *servers*, and close its connections at the end.

    Anew, because an app keeps the pools of the broker that it met first. Afterwards Celery
    forgets the module's tasks, which it would otherwise add to every later app.
    """
    before = dict(os.environ)
    os.environ.update(servers.environment | environment)
    known = sys.modules.pop(module, None)
    shared_tasks = set(_state._on_app_finalizers)
    try:
        loaded = importlib.import_module(module)
        loaded.app.set_default()
        yield loaded
        _hang_up(loaded.app)
    finally:
        _state._on_app_finalizers.intersection_update(shared_tasks)
        sys.modules.pop(module, None)
        if known is not None:
            sys.modules[module] = known
        os.environ.clear()
        os.environ.update(before)


def _hang_up(app: Celery) -> None:
    """Close the connections of *app*: Celery's close() forgets them, and they are freed open.

    Whichever test the garbage collector then runs in would fail, for a warning is an error.
    """
    if app._pool is not None:
        # Not for good: kombu has one pool for all apps that are connected to one address.
        app._pool.force_close_all(close_pool=False)
        app._pool.setup()
    backend = app._backend
    if backend is not None:
        consumer = getattr(backend, "result_consumer", None)
        if consumer is not None:
            consumer.stop()
            # A result that is freed later would connect anew to say so, to a server that is gone.
            consumer._pubsub = None
        if "client" in vars(backend):
            backend.client.connection_pool.disconnect()
    app.close()
