"""Remote control of all workers that also reports which workers did not answer.

A broker does not report how many workers listen. A worker counts as silent if it has answered this
process before, or, where the transport keeps the table of mailboxes itself (Redis does, RabbitMQ
does not), if its mailbox still exists: it hangs or was killed. A worker without budgets, or of a
version that lacks the command, replies with an error, which is no answer: it is called plain.

Each request uses a connection of its own. A connection of Celery's pool would keep its pending
command that waits for replies (Redis, BRPOP). If the process forks then, each child reads the
reply to it while closing inherited connections (kombu, ``resource._after_fork_cleanup_resource``):
the second child blocks for ever, and the parent gets no reply any more. A new connection also
cannot have been closed by the broker meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kombu.exceptions import OperationalError

__all__ = ["Inspection", "Replies"]

logger = logging.getLogger(__name__)


class Replies(NamedTuple):
    """The answers by worker name, and the names of the workers that did not answer."""

    by_worker: Mapping[str, Mapping[str, Any]]
    #: Workers that did not reply, and the plain ones.
    silent: tuple[str, ...]
    #: Those of the silent workers that replied, but do not know the command.
    plain: tuple[str, ...] = ()


class Inspection:
    """Sends remote control commands to the workers of *app*, and remembers who has answered.

    Args:
        app: The Celery app.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._seen: set[str] = set()

    def ask(
        self,
        timeout: float = 1.0,
        also: Iterable[str] = (),
        arguments: Mapping[str, Any] | None = None,
        command: str = "budgets",
        tells: str | None = None,
    ) -> Replies:
        """Return the answers of all workers to ``inspect budgets``, or to another question.

        Args:
            timeout: How long workers may take, seconds; it returns earlier once all known workers
                have answered.
            also: Names of workers to expect, besides those that the broker names.
            arguments: Arguments of the command.
            command: Name of the remote control command.
            tells: Name of the list by which an answer to it is known.

        Raises:
            kombu.exceptions.OperationalError: The broker does not answer.
        """
        arguments = arguments or {}
        tells = tells or ("scope" if "scope" in arguments else "lanes")
        with self._app.connection_for_write() as connection:
            return self._ask(connection, timeout, set(also), arguments, command, tells)

    def _ask(
        self,
        connection: Any,
        timeout: float,
        also: set[str],
        arguments: Mapping[str, Any],
        command: str,
        tells: str,
    ) -> Replies:
        mailboxes = self._mailboxes(connection)
        # If the broker lists mailboxes, a worker without one has shut down properly.
        expected = (mailboxes or set(self._seen)) | also
        limit = len(expected) if mailboxes else None
        replies = self._broadcast(connection, command, arguments, timeout, limit)
        if limit and not set(replies) <= expected:
            # A new worker's answer was counted instead of a missing one.
            self._seen.update(_ours(replies, tells))
            return self._ask(connection, timeout, {*also, *replies}, arguments, command, tells)
        by_worker = _ours(replies, tells)
        self._seen.update(by_worker)
        plain = set(replies) - set(by_worker)
        silent = (expected | plain) - set(by_worker)
        return Replies(by_worker, tuple(sorted(silent)), tuple(sorted(plain)))

    def control(
        self,
        command: str,
        arguments: Mapping[str, Any],
        workers: Sequence[str],
        timeout: float,
    ) -> Replies:
        """Send a control *command* to the named *workers*, and return their replies.

        Args:
            command: Name of a remote control command.
            arguments: Its arguments.
            workers: Names of the workers; not empty, which would address all of them.
            timeout: How long they may take, seconds.

        Raises:
            kombu.exceptions.OperationalError: The broker does not answer.
        """
        with self._app.connection_for_write() as connection:
            by_worker = self._broadcast(
                connection, command, arguments, timeout, len(workers), list(workers)
            )
        return Replies(dict(sorted(by_worker.items())), tuple(sorted({*workers} - {*by_worker})))

    def _broadcast(
        self,
        connection: Any,
        command: str,
        arguments: Mapping[str, Any],
        timeout: float,
        limit: int | None,
        destination: list[str] | None = None,
    ) -> dict[str, Any]:
        replies = self._app.control.broadcast(
            command, arguments=dict(arguments), destination=destination, reply=True,
            timeout=timeout, limit=limit, connection=connection,
        )  # fmt: skip
        return {name: answer for reply in replies or () for name, answer in reply.items()}

    def _mailboxes(self, connection: Any) -> set[str]:
        """Return the names of workers with a mailbox at the broker; empty if it lists none."""
        mailbox = self._app.control.mailbox
        try:
            get_table = getattr(connection.default_channel, "get_table", None)
            table = get_table(mailbox.exchange.name) if get_table is not None else ()
        except OperationalError:
            raise
        except Exception as exc:
            # Only some transports have the table; without it earlier answers tell who is silent.
            logger.debug("budgets.no_mailbox_table: %s", exc)
            return set()
        ending = f".{mailbox.namespace}.pidbox"
        return {row[-1].removesuffix(ending) for row in table if row[-1].endswith(ending)}


def _ours(replies: Mapping[str, Any], tells: str) -> dict[str, Any]:
    """Return the *replies* that are answers, by worker: not errors, or of another command."""
    kind = Mapping if tells == "lanes" else list
    return {
        name: reply
        for name, reply in sorted(replies.items())
        if isinstance(reply, Mapping) and isinstance(reply.get(tells), kind)
    }
