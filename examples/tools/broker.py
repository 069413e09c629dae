"""The broker and the result backend of a run: those of the environment, or a server of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from kombu.connection import Connection
from kombu.exceptions import OperationalError

from celery_budgets.embedded import EmbeddedBroker
from celery_budgets.errors import ConfigurationError, NoServerError

__all__ = ["broker"]

#: Seconds that a given broker has to answer.
ANSWER_SECONDS = 5.0


@contextmanager
def broker() -> Iterator[str]:
    """Put the addresses where Celery looks for them, and give the broker's words for people.

    Raises:
        ConfigurationError: A broker is given that cannot hold results, and no result backend.
        NoServerError: The given broker does not answer, or none is given and none starts.
    """
    given = os.environ.get("CELERY_BROKER_URL")
    if given:
        _check(given)
        yield "broker of CELERY_BROKER_URL"
        return
    with EmbeddedBroker() as server:
        os.environ["CELERY_BROKER_URL"] = server.url(0)
        os.environ["CELERY_RESULT_BACKEND"] = server.url(1)
        yield "a server of its own"


def _check(address: str) -> None:
    # Asked here, because workers try again for ever and the caller for minutes.
    with Connection(address, connect_timeout=ANSWER_SECONDS) as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=ANSWER_SECONDS)
        except OperationalError as exc:
            raise NoServerError(
                f"the broker of CELERY_BROKER_URL, {connection.as_uri()}, does not answer ({exc}); "
                "start it, or unset the variable to use a server of the demo's own"
            ) from exc
    if not address.startswith(("redis:", "rediss:")) and not os.environ.get(
        "CELERY_RESULT_BACKEND"
    ):
        raise ConfigurationError(
            "CELERY_BROKER_URL is set, and CELERY_RESULT_BACKEND is not; set it to a server that "
            "keeps results by key, such as redis://localhost:6379/1"
        )
    os.environ.setdefault("CELERY_RESULT_BACKEND", address)
