"""Asking all workers, and knowing who did not answer.

The broker tells nobody how many workers listen. So silence is found out in two ways: a worker
that has answered this process before; and, where the transport keeps the table of mailboxes
itself (Redis does, RabbitMQ does not), one whose mailbox was never taken down: it hangs or was
killed. A worker without budgets, or of a version that lacks the command, replies with an error:
that is no answer either, and it is called plain.

Each question has a connection of its own. One of Celery's pool would keep the command by which
it waits for answers (Redis, BRPOP), and of a process that forks then each child reads the reply
to it as it closes what it has inherited (kombu, ``resource._after_fork_cleanup_resource``): the
second child waits for ever, and the parent never hears of a worker again. Nor does a question
fail for a connection that the broker has closed meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kombu.exceptions import OperationalError

__all__ = ["Inspection", "Replies"]

logger = logging.getLogger(__name__)


class Replies(NamedTuple):
    """What the workers answered, by the name of each, and who did not."""

    by_worker: Mapping[str, Mapping[str, Any]]
    #: Those that said nothing, and the plain ones.
    silent: tuple[str, ...]
    #: Those of the silent that replied, and do not know what they were asked.
    plain: tuple[str, ...] = ()


class Inspection:
    """Asks the workers of *app*, again and again.

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
    ) -> Replies:
        """Return the answers of all workers to ``inspect budgets``.

        Args:
            timeout: How long workers may take, seconds; less where all that are known of have
                answered before.
            also: Workers that are known to be there, beside those that the broker names.
            arguments: Those of the command.

        Raises:
            kombu.exceptions.OperationalError: The broker does not answer.
        """
        with self._app.connection_for_write() as connection:
            return self._ask(connection, timeout, set(also), arguments or {})

    def _ask(
        self, connection: Any, timeout: float, also: set[str], arguments: Mapping[str, Any]
    ) -> Replies:
        mailboxes = self._mailboxes(connection)
        # Where the broker can tell, a worker without a mailbox has left properly.
        expected = (mailboxes or set(self._seen)) | also
        limit = len(expected) if mailboxes else None
        replies = self._broadcast(connection, "budgets", arguments, timeout, limit)
        if limit and not set(replies) <= expected:
            # A newcomer's answer took the place of one that was still to come.
            self._seen.update(_ours(replies, arguments))
            return self._ask(connection, timeout, {*also, *replies}, arguments)
        by_worker = _ours(replies, arguments)
        self._seen.update(by_worker)
        plain = set(replies) - set(by_worker)
        silent = (expected | plain) - set(by_worker)
        return Replies(by_worker, tuple(sorted(silent)), tuple(sorted(plain)))

    def tell(
        self,
        command: str,
        arguments: Mapping[str, Any],
        workers: Sequence[str],
        timeout: float,
    ) -> Replies:
        """Send a control *command* to the named *workers*, and return what each says to it.

        Args:
            command: Name of a remote control command.
            arguments: Its arguments.
            workers: Their names; not empty, which would be all.
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
        """Return the names of workers whose mailbox stands at the broker, where it can tell."""
        mailbox = self._app.control.mailbox
        try:
            get_table = getattr(connection.default_channel, "get_table", None)
            table = get_table(mailbox.exchange.name) if get_table is not None else ()
        except OperationalError:
            raise
        except Exception as exc:
            # Only a convenience of some transports; without it silence is known from before.
            logger.debug("budgets.no_mailbox_table: %s", exc)
            return set()
        ending = f".{mailbox.namespace}.pidbox"
        return {row[-1].removesuffix(ending) for row in table if row[-1].endswith(ending)}


def _ours(replies: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the *replies* to ``inspect budgets`` that are answers to it, by worker."""
    is_answer = _tells_scope if "scope" in arguments else _tells_all
    return {name: reply for name, reply in sorted(replies.items()) if is_answer(reply)}


def _tells_scope(reply: Any) -> bool:
    return isinstance(reply, Mapping) and isinstance(reply.get("scope"), list)


def _tells_all(reply: Any) -> bool:
    """Return whether *reply* tells of lanes: an error does not, nor what another command says."""
    return isinstance(reply, Mapping) and isinstance(reply.get("lanes"), Mapping)
