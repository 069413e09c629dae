"""``Desk``: answers what the page asks, apart from the stream of news.

Whether the sender may ask is settled before.

Runs in the process that serves the page. See also: :mod:`celery_budgets.web.application` and
:mod:`celery_budgets.flower`, which connect it to servers.
"""

from __future__ import annotations

import html
import json
import logging
import threading
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from celery_budgets.sending.remote_control import Inspection
from celery_budgets.sending.stacks import stacks
from celery_budgets.sending.why.asking import why
from celery_budgets.web.actions import Action, action_of
from celery_budgets.web.exchange import Answer, Request, as_json, refusal
from celery_budgets.web.news import ANSWER_SECONDS, News

__all__ = ["PATHS", "Desk"]

logger = logging.getLogger(__name__)

#: Longest id of a task that is looked for, characters.
LONGEST_ID = 200
#: Most questions about single calls at a time: each asks the workers in its own thread.
MOST_QUESTIONS = 4
_FILES = {
    "/app.js": "text/javascript; charset=utf-8",
    "/style.css": "text/css; charset=utf-8",
}
#: What can be read, below where the page is mounted.
PATHS = ("/", *_FILES, "/lanes.json", "/kills.json", "/limits.json", "/history.json",
         "/why.json", "/stack.json")  # fmt: skip


class Desk:
    """Answers requests for the lanes of *app*.

    Args:
        app: The Celery app.
        news: Knows the state of the lanes.
        read_only: Whether it changes nothing.
        home: Where a link above the page leads, and its text.
    """

    def __init__(
        self,
        app: Any,
        news: News,
        *,
        read_only: bool = True,
        home: tuple[str, str] | None = None,
    ) -> None:
        self._app = app
        self.news = news
        self.read_only = read_only
        self._home = home
        self._places = threading.BoundedSemaphore(MOST_QUESTIONS)
        self._readers: dict[str, Callable[[Request], Answer]] = {
            "/lanes.json": self._lanes,
            "/kills.json": self._kills,
            "/limits.json": self._limits,
            "/history.json": self._history,
            "/why.json": self._why,
            "/stack.json": self._stack,
        }

    def answer(self, request: Request) -> Answer:
        """Return the answer to *request*; an error of ours becomes one of 500."""
        try:
            return self._answer(request)
        except Exception:
            logger.exception("budgets.page_failed path=%r", request.path)
            return refusal(500, "this failed; the log of the server says why")

    def _answer(self, request: Request) -> Answer:
        action = action_of(request.path)
        if action is not None:
            return self._act(request, action)
        if request.path not in PATHS:
            return refusal(404, "there is no such page")
        if request.method not in ("GET", "HEAD"):
            return refusal(405, "this can only be read", ("Allow", "GET, HEAD"))
        if request.path in _FILES:
            return Answer(200, _file(request.path[1:]), _FILES[request.path])
        return self._readers[request.path](request)

    def _act(self, request: Request, action: Action) -> Answer:
        """Do what an operator asks for, unless the page only shows."""
        if request.method != "POST":
            return refusal(405, "this is done by POST", ("Allow", "POST"))
        if self.read_only:
            return refusal(403, "this page only shows, and changes nothing")
        if not request.is_ours:
            return refusal(403, "this was not sent by the page: its X-Lanes-Xsrf is wrong")
        return action.do(self._app, request)

    def page(self, xsrf: str) -> Answer:
        """Return the page; with *xsrf* it proves that what it sends comes from it."""
        facts = {
            "app": self._app.main or "",
            "readOnly": self.read_only,
            "interval": self.news.interval,
            "xsrf": xsrf,
            "home": self._home,
        }
        text = _file("index.html").decode().replace("{{facts}}", html.escape(json.dumps(facts)))
        return Answer(200, text.encode(), "text/html; charset=utf-8")

    def _lanes(self, _: Request) -> Answer:
        bulletin = self.news.latest()
        if bulletin.status is None:
            return refusal(503, bulletin.problem or "no worker has been asked yet")
        stale = self.news.stale_seconds(bulletin)
        return as_json({**bulletin.status, **({} if stale is None else {"stale_seconds": stale})})

    def _kills(self, _: Request) -> Answer:
        bulletin = self.news.latest()
        if bulletin.status is None:
            return refusal(503, bulletin.problem or "no worker has been asked yet")
        return as_json(bulletin.kills)

    def _limits(self, _: Request) -> Answer:
        bulletin = self.news.latest()
        if bulletin.status is None:
            return refusal(503, bulletin.problem or "no worker has been asked yet")
        return as_json(bulletin.limits)

    def _history(self, _: Request) -> Answer:
        history = self.news.history()
        if history is None:
            return refusal(503, "no worker has told of the last two hours yet")
        return as_json(history)

    def _why(self, request: Request) -> Answer:
        def ask(task_id: str) -> Any:
            found = why(self._app, Inspection(self._app), task_id, timeout=ANSWER_SECONDS)
            return {**found.to_json(), "text": str(found), "remedy": found.remedy}

        return self._about_call(request, ask)

    def _stack(self, request: Request) -> Answer:
        def ask(task_id: str) -> Any:
            found, _ = stacks(
                self._app, Inspection(self._app), task_id=task_id, timeout=ANSWER_SECONDS
            )
            return [one.to_json() for one in found]

        return self._about_call(request, ask)

    def _about_call(self, request: Request, ask: Callable[[str], Any]) -> Answer:
        """Answer a question about one call, unless too many are being asked."""
        task_id = request.query.get("task_id", "").strip()
        if not 0 < len(task_id) <= LONGEST_ID:
            return refusal(400, f"give the id of a task, of 1 to {LONGEST_ID} characters")
        if not self._places.acquire(blocking=False):
            return refusal(503, "others are asking; try again in a second", ("Retry-After", "1"))
        try:
            return as_json(ask(task_id))
        except Exception as exc:
            # Each transport has errors of its own.
            return refusal(503, f"the workers could not be asked: {' '.join(str(exc).split())}")
        finally:
            self._places.release()


@cache
def _file(name: str) -> bytes:
    return files("celery_budgets.web").joinpath("page", name).read_bytes()
