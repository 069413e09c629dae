"""Single commands and scripts of a channel, whose reply the caller waits for."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from kombu.transport import redis
from redis.exceptions import NoScriptError

from celery_budgets.worker.transport.holder import ANYBODY
from celery_budgets.worker.transport.leftovers import Leftovers
from celery_budgets.worker.transport.scripts import HAND_BACK, MOST_AT_ONCE, UNDECODABLE, Script

__all__ = ["Commands", "tell_of_undecodable"]

logger = logging.getLogger(__name__)


#: What older versions of redis-py ask for and newer ones warn of, as kombu has noted it.
_COMMAND_NAME = () if getattr(redis, "_REDIS_GET_CONNECTION_WITHOUT_ARGS", True) else ("_",)


class Commands:
    """What a channel asks of Redis by a connection of its pool, all keys with their prefix."""

    # Of kombu's channel.
    ResponseError: type[Exception]
    global_keyprefix: str
    pool: Any
    unacked_index_key: str
    unacked_key: str
    #: What this connection could not tell, and the next one will.
    leftovers: Leftovers

    def key(self, name: str) -> str:
        """Return *name* as it stands at Redis."""
        return f"{self.global_keyprefix}{name}"

    def keys(self, names: Iterable[str]) -> list[str]:
        """Return the keys of a script: unacked, its index, and *names*."""
        return [self.key(name) for name in (self.unacked_key, self.unacked_index_key, *names)]

    def ask(self, *command: Any) -> Any:
        """Return the reply to *command*."""
        pool = self.pool
        connection = pool.get_connection(*_COMMAND_NAME)
        try:
            connection.send_command(*command)
            return connection.read_response()
        except self.ResponseError:
            raise
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def run(self, script: Script, names: Iterable[str], arguments: list[Any]) -> Any:
        """Return what *script* returns for the lists *names*."""
        keys = self.keys(names)
        try:
            return self.ask(*script.call(keys, arguments))
        except NoScriptError:
            return self.ask(*script.call(keys, arguments, whole=True))

    def settle(self, tags: list[str]) -> None:
        """Acknowledge *tags* at once, those that nobody else holds by now."""
        for start in range(0, len(tags), MOST_AT_ONCE):
            some = tags[start : start + MOST_AT_ONCE]
            self.run(HAND_BACK, [], [len(some), self.leftovers.holder.number, *some, "RPUSH"])

    def put_aside(self, tag: str, name: str, text: bytes | str) -> None:
        """Take a message that nobody can read out of unacked, into a list beside its own."""
        tell_of_undecodable(name, text)
        self.run(HAND_BACK, [name + UNDECODABLE], [0, ANYBODY, "LPUSH", tag, text, 1, 0])


def tell_of_undecodable(name: str, text: bytes | str) -> None:
    """Log that the list *name* had something that is no message."""
    logger.error("budgets.message_undecodable list=%s text=%.200r", name, text)
