"""A tab *Lanes* in Flower: ``import celery_budgets.flower`` in ``flowerconfig.py``.

Flower has no interface for extensions, but runs that file before it makes its web application of
the list ``flower.urls.handlers`` and the dict ``flower.urls.settings``: both are extended here. The
tab obeys Flower's authentication and its ``read_only``.

Runs in the process of Flower (2.0 to 2.2).
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from secrets import token_urlsafe
from threading import BoundedSemaphore
from time import monotonic
from weakref import WeakKeyDictionary

from flower import urls
from flower.utils import strtobool
from flower.views import BaseHandler
from tornado import web
from tornado.iostream import StreamClosedError
from tornado.template import Loader, Template

from celery_budgets.web.access import comes_from_elsewhere
from celery_budgets.web.desk import Desk
from celery_budgets.web.exchange import MOST_BYTES, SAFE_HEADERS, Answer, Request, refusal
from celery_budgets.web.news import News
from celery_budgets.web.stream import LONGEST_SECONDS, MOST_STREAMS, SILENCE_SECONDS, events_of

__all__ = ["EventsHandler", "LanesHandler", "PageHandler"]

_XSRF = "celery_lanes_xsrf"
#: Seconds between two looks whether there are news, which cost nothing.
LOOK_SECONDS = 0.25
_TAB = (
    '<li class="nav-item"><a class="nav-link" href="{{ reverse_url(\'celery_lanes\') }}">Lanes</a>'
    "</li></ul>"
)

#: What answers, by Flower's application; and threads of its own: Flower's may all wait for workers.
_desks: WeakKeyDictionary[web.Application, Desk] = WeakKeyDictionary()
_places = BoundedSemaphore(MOST_STREAMS)
_threads = ThreadPoolExecutor(8, thread_name_prefix="celery-budgets-page")


class _OfLanes(BaseHandler):
    """What the handlers of the tab have in common."""

    @property
    def desk(self) -> Desk:
        """What answers the requests of this Flower."""
        desk = _desks.get(self.application)
        if desk is None:
            desk = _desks[self.application] = Desk(
                self.capp, News(self.capp), read_only=self._only_shows, home=("../", "Flower")
            )
        return desk

    @property
    def _only_shows(self) -> bool:
        """Whether nothing may be changed: as Flower's own API, which needs authentication."""
        options = self.application.options
        knows_who = options.basic_auth or options.auth
        opened = strtobool(os.environ.get("FLOWER_UNAUTHENTICATED_API") or "false")
        return bool(getattr(options, "read_only", False)) or not (knows_who or opened)

    def set_default_headers(self) -> None:
        """Set our headers; Flower's would let other origins read where nobody needs to log in."""
        for name, value in SAFE_HEADERS:
            self.set_header(name, value)

    def check_xsrf_cookie(self) -> None:
        """Leave it to the desk, which holds the page's own value against its cookie."""

    def prepare(self) -> None:
        """Refuse what comes from a page of another origin, or is large."""
        headers = {
            f"HTTP_{name.upper().replace('-', '_')}": value
            for name, value in self.request.headers.items()
        }
        opens = self.request.method == "GET" and isinstance(self, PageHandler)
        if comes_from_elsewhere(headers, opens_page=opens):
            self.send(refusal(403, "this was sent by a page of another origin"))
        elif len(self.request.body) > MOST_BYTES or len(self.request.uri or "") > MOST_BYTES:
            self.send(refusal(413, f"at most {MOST_BYTES} bytes are read"))

    def send(self, answer: Answer) -> None:
        """Send *answer*, and end the request."""
        self.set_status(answer.status)
        self.set_header("Content-Type", answer.kind)
        for name, value in answer.headers:
            self.set_header(name, value)
        # 204 and its kin have no body.
        self.finish(answer.body or None)


class PageHandler(_OfLanes):
    """The page itself."""

    @web.authenticated
    def get(self) -> None:
        """Send the page; at the address without the last slash, where it is."""
        if not self.request.path.endswith("/"):
            self.send(refusal(302, "it is one slash further", ("Location", "lanes/")))
            return
        xsrf = self.get_cookie(_XSRF) or ""
        if not xsrf.isascii() or not 20 <= len(xsrf) <= 100:
            xsrf = token_urlsafe(24)
            self.set_cookie(_XSRF, xsrf, path=self.request.path, httponly=True, samesite="Strict")
        self.send(self.desk.page(xsrf))


class LanesHandler(_OfLanes):
    """What the page reads, and what operators do."""

    @web.authenticated
    async def get(self, path: str) -> None:
        """Answer a question."""
        await self._answer(path)

    @web.authenticated
    async def post(self, path: str) -> None:
        """Do something, where Flower lets it be done."""
        await self._answer(path)

    async def _answer(self, path: str) -> None:
        told = self.request.headers.get("X-Lanes-Xsrf", "")
        query = {
            name: values[-1].decode("utf-8", "replace")
            for name, values in self.request.query_arguments.items()
        }
        cookie = self.get_cookie(_XSRF) or ""
        request = Request(
            self.request.method or "", f"/{path}", query, self.request.body,
            sender=f"{self._who()}@{self.request.remote_ip}",
            is_ours=len(cookie) >= 20 and cookie == told,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        self.send(await loop.run_in_executor(_threads, partial(self.desk.answer, request)))

    def _who(self) -> str:
        user = self.current_user
        if user is not True:
            return str(user)
        return "basic" if self.application.options.basic_auth else "anonymous"


class EventsHandler(_OfLanes):
    """The stream of news; none of Flower's threads waits for it."""

    @web.authenticated
    async def get(self) -> None:
        """Send the news for as long as somebody listens."""
        if not _places.acquire(blocking=False):
            self.send(refusal(503, "too many look on", ("Retry-After", "30")))
            return
        try:
            self.set_header("Content-Type", "text/event-stream; charset=utf-8")
            self.write("retry: 2000\n\n")
            await self._tell(self.desk.news)
        except StreamClosedError:
            pass
        finally:
            _places.release()

    async def _tell(self, news: News) -> None:
        number, told_at = -1, monotonic()
        bulletin, until = news.after(0, 0.0), told_at + LONGEST_SECONDS
        while monotonic() < until:
            if bulletin is not None:
                self.write(events_of(news, bulletin, number))
                number = bulletin.number
                told_at = monotonic()
            elif monotonic() - told_at > SILENCE_SECONDS:
                self.write(": nothing new\n\n")
                told_at = monotonic()
            await self.flush()
            await asyncio.sleep(LOOK_SECONDS)
            bulletin = news.after(max(number, 0), 0.0)


class _LoaderWithTab(Loader):
    """Loads Flower's templates; its navigation gets one more tab."""

    def _create_template(self, name: str) -> Template:
        """Mirrors tornado.template.Loader._create_template; differs for the navigation."""
        if name != "navbar.html":
            return super()._create_template(name)
        path = os.path.join(self.root, name)
        with open(path, encoding="utf-8") as file:
            text = file.read().replace("</ul>", _TAB, 1)
        return Template(text, name=name, loader=self)


def _add_tab() -> None:
    """Add the tab once; before the last handler, which takes all other paths."""
    if any(getattr(handler, "name", "") == "celery_lanes" for handler in urls.handlers):
        return
    urls.handlers[-1:-1] = [
        web.url(r"/lanes/", PageHandler, name="celery_lanes"),
        web.url(r"/lanes", PageHandler),
        web.url(r"/lanes/events", EventsHandler),
        web.url(r"/lanes/(.+)", LanesHandler),
    ]
    urls.settings["template_loader"] = _LoaderWithTab(urls.settings["template_path"])


_add_tab()
