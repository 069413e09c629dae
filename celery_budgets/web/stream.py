"""The stream of news: server-sent events, of which each server holds a bounded number.

Runs in the process that serves the page.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from time import monotonic

from celery_budgets.web.news import Bulletin, News

__all__ = ["MOST_STREAMS", "Stream", "Streams", "events_of"]

#: Most streams at a time; each takes a thread.
MOST_STREAMS = 32
#: A browser connects anew after so many seconds: what has been lost on the way is let go.
LONGEST_SECONDS = 600.0
#: Seconds of silence after which a comment shows whether anybody still listens.
SILENCE_SECONDS = 10.0


def events_of(news: News, bulletin: Bulletin, seen: int) -> bytes:
    """Return *bulletin* as events; kills and limits if they have changed since the round *seen*.

    ``lanes`` is what ``/lanes.json`` has, ``stale`` since when nothing has come.
    """
    stale = news.stale_seconds(bulletin)
    if stale is not None or bulletin.status is None:
        told = {
            "stale_seconds": stale if bulletin.status is not None else None,
            "problem": bulletin.problem,
        }
        return f"event: stale\ndata: {json.dumps(told)}\n\n".encode()
    text = f"event: lanes\ndata: {bulletin.text}\n\n"
    if bulletin.kills_number > seen:
        text += f"event: kills\ndata: {json.dumps(bulletin.kills)}\n\n"
    if bulletin.limits_number > seen:
        text += f"event: limits\ndata: {json.dumps(bulletin.limits)}\n\n"
    return text.encode()


class Streams:
    """The streams of one server.

    Args:
        news: Where they come from.
        most: Most streams at a time.
    """

    def __init__(self, news: News, most: int = MOST_STREAMS) -> None:
        self._news = news
        self._places = threading.BoundedSemaphore(most)

    def open(self) -> Stream | None:
        """Return a new stream; ``None`` if there are too many."""
        if not self._places.acquire(blocking=False):
            return None
        return Stream(self._news, self._places.release)


class Stream:
    """The news for one who looks on, until they leave.

    Args:
        news: Where it comes from.
        on_close: Called once, when it ends.
    """

    def __init__(self, news: News, on_close: Callable[[], object]) -> None:
        self._events = _events(news)
        self._on_close: Callable[[], object] | None = on_close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        """Give its place back; WSGI servers call this at the end, however it comes."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


def _events(news: News) -> Iterator[bytes]:
    until, number = monotonic() + LONGEST_SECONDS, -1
    yield b"retry: 2000\n\n"
    # Somebody who opens the page does not wait for the next round.
    bulletin: Bulletin | None = news.latest(timeout=0.0)
    while monotonic() < until:
        if bulletin is None or not bulletin.number:
            yield b": nothing new\n\n"
        else:
            yield events_of(news, bulletin, number)
            number = bulletin.number
        bulletin = news.after(number, SILENCE_SECONDS)
