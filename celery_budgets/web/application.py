"""The page as a WSGI application: works below any path, in any server.

Runs in the process that serves the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hmac import compare_digest
from http import HTTPStatus
from secrets import token_urlsafe
from typing import Any
from urllib.parse import parse_qsl, quote

from celery_budgets.web.access import (
    Access,
    AskProgram,
    Sender,
    comes_from_elsewhere,
    cookie_in,
    set_cookie,
)
from celery_budgets.web.desk import Desk
from celery_budgets.web.exchange import MOST_BYTES, SAFE_HEADERS, Answer, Request, refusal
from celery_budgets.web.news import INTERVAL, News
from celery_budgets.web.stream import Stream, Streams

__all__ = ["Application", "application_of"]

#: The cookie whose value the page sends back with whatever it changes.
_XSRF = "celery_lanes_xsrf"

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


class Application:
    """Serves the page of *desk* to those whom *access* lets in.

    Args:
        desk: Answers the requests.
        access: Says who sends a request.
    """

    def __init__(self, desk: Desk, access: Access) -> None:
        self._desk = desk
        self._access = access
        self._streams = Streams(desk.news)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request, as PEP 3333 has it."""
        answer = _refused(environ)
        headers: tuple[tuple[str, str], ...] = ()
        if answer is None:
            sender = self._access(environ)
            if isinstance(sender, Answer):
                answer = sender
            else:
                headers = sender.headers
                found = self._answer(environ, sender)
                if isinstance(found, Stream):
                    kind = ("Content-Type", "text/event-stream; charset=utf-8")
                    # Proxies such as nginx would keep events back until there are many.
                    buffering = ("X-Accel-Buffering", "no")
                    start_response("200 OK", [kind, buffering, *SAFE_HEADERS, *headers])
                    return found
                answer = found
        status = f"{answer.status} {HTTPStatus(answer.status).phrase}"
        kind = ("Content-Type", answer.kind)
        length = ("Content-Length", str(len(answer.body)))
        start_response(status, [kind, length, *SAFE_HEADERS, *answer.headers, *headers])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else answer.body]

    def _answer(self, environ: Environ, sender: Sender) -> Answer | Stream:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        if not path:
            # The page's own addresses are relative to a path that ends with a slash.
            query = environ.get("QUERY_STRING", "")
            there = quote(environ.get("SCRIPT_NAME", "")) + "/" + (f"?{query}" if query else "")
            return refusal(308, "it is one slash further", ("Location", there))
        if path == "/" and method in ("GET", "HEAD"):
            return self._page(environ)
        if path == "/events" and method == "GET":
            return self._stream(environ)
        try:
            query = dict(parse_qsl(environ.get("QUERY_STRING", ""), max_num_fields=20))
        except ValueError:
            return refusal(400, "at most 20 values are read")
        request = Request(
            method, _decoded(path), query, _body_of(environ) if method == "POST" else b"",
            sender=f"{sender.name}@{environ.get('REMOTE_ADDR') or 'unknown'}",
            is_ours=_is_ours(environ),
        )  # fmt: skip
        return self._desk.answer(request)

    def _page(self, environ: Environ) -> Answer:
        headers: tuple[tuple[str, str], ...] = ()
        xsrf = cookie_in(environ, _XSRF)
        if not xsrf.isascii() or not 20 <= len(xsrf) <= 100:
            xsrf = token_urlsafe(24)
            headers = (set_cookie(environ, _XSRF, xsrf),)
        page = self._desk.page(xsrf)
        return Answer(page.status, page.body, page.kind, headers)

    def _stream(self, environ: Environ) -> Answer | Stream:
        if not environ.get("wsgi.multithread"):
            # It would hold up all others; the page asks again and again instead.
            return Answer(204, b"")
        stream = self._streams.open()
        if stream is None:
            return refusal(503, "too many look on", ("Retry-After", "30"))
        return stream


def _decoded(path: str) -> str:
    """Return a path as text: PEP 3333 has its bytes as Latin-1."""
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def _body_of(environ: Environ) -> bytes:
    """Return the body; its length has been looked at."""
    size = int(environ.get("CONTENT_LENGTH") or 0)
    return bytes(environ["wsgi.input"].read(size)) if size else b""


def _is_ours(environ: Environ) -> bool:
    """Return whether the sender can read the page: it knows the value that only that tells."""
    cookie, told = cookie_in(environ, _XSRF), str(environ.get("HTTP_X_LANES_XSRF", ""))
    return bool(cookie) and compare_digest(cookie.encode(), told.encode())


def _refused(environ: Environ) -> Answer | None:
    """Return the refusal of a request that is too large, or comes from another page."""
    try:
        size = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        return refusal(400, "the length of the body is no number")
    if size > MOST_BYTES or size < 0:
        return refusal(413, f"at most {MOST_BYTES} bytes are read")
    if len(environ.get("PATH_INFO", "")) + len(environ.get("QUERY_STRING", "")) > MOST_BYTES:
        return refusal(414, f"at most {MOST_BYTES} bytes are read")
    opens_page = environ["REQUEST_METHOD"] == "GET" and environ.get("PATH_INFO", "") in ("", "/")
    if comes_from_elsewhere(environ, opens_page=opens_page):
        return refusal(403, "this was sent by a page of another origin")
    return None


def application_of(
    app: Any,
    *,
    read_only: bool = True,
    access: Access | None = None,
    interval: float = INTERVAL,
    home: tuple[str, str] | None = None,
) -> Application:
    """Return the page of the lanes of *app* as a WSGI application.

    Args:
        app: The Celery app.
        read_only: Whether it changes nothing.
        access: Says who sends a request; by default everybody may look.
        interval: Seconds between two questions to the workers.
        home: Where a link above the page leads, and its text.
    """
    desk = Desk(app, News(app, interval), read_only=read_only, home=home)
    return Application(desk, access or AskProgram(None))
