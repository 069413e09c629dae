"""Who may look at the page: by a token, by a password, or as the program says that serves it.

Each kind of access says of a request who sends it, or answers with a refusal.

Runs in the process that serves the page.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from secrets import token_urlsafe
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from celery_budgets.web.exchange import Answer, refusal

__all__ = [
    "Access", "AskProgram", "NeedPassword", "NeedToken", "Sender", "comes_from_elsewhere",
    "cookie_in", "set_cookie",
]  # fmt: skip

Environ = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sender:
    """Somebody who may look, and act where acting is allowed."""

    name: str
    #: Headers for the answer.
    headers: tuple[tuple[str, str], ...] = ()


class Access(Protocol):
    """Decides about a request."""

    def __call__(self, environ: Environ) -> Sender | Answer:
        """Return the sender of the request in a WSGI *environ*, or the refusal."""
        ...


class NeedToken:
    """Lets in who has the token of the printed address, and then the cookie that replaces it.

    Args:
        token: The token; a new one by default.
    """

    def __init__(self, token: str | None = None) -> None:
        self.token = token or token_urlsafe(24)
        # Cookies do not know ports: each server has a cookie of its own, which is not the token.
        digest = hashlib.sha256(f"cookie {self.token}".encode()).hexdigest()
        self._cookie, self._value = f"celery_lanes_{digest[:8]}", digest[8:]

    def __call__(self, environ: Environ) -> Sender | Answer:
        """Return the sender, or a refusal."""
        given = parse_qs(str(environ.get("QUERY_STRING", ""))).get("token", [""])[0]
        if _equal(given, self.token):
            return Sender("token", (set_cookie(environ, self._cookie, self._value),))
        if _equal(cookie_in(environ, self._cookie), self._value):
            return Sender("token")
        return refusal(403, "open the address that was printed at the start, with its token")


class NeedPassword:
    """Lets in who knows the name and the password (HTTP basic authentication).

    Args:
        name: Name of the user.
        password: Their password.
    """

    def __init__(self, name: str, password: str) -> None:
        self._name, self._password = name, password

    def __call__(self, environ: Environ) -> Sender | Answer:
        """Return the sender, or a refusal that has the browser ask."""
        kind, _, coded = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(coded, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                given = ""
            if _equal(given, f"{self._name}:{self._password}"):
                return Sender(self._name)
        return refusal(
            401, "give name and password",
            ("WWW-Authenticate", 'Basic realm="celery lanes", charset="UTF-8"'),
        )  # fmt: skip


class AskProgram:
    """Lets in whom the program lets in; everybody where it does not say.

    Args:
        authorize: Returns whether the request in a WSGI environ is allowed.
    """

    def __init__(self, authorize: Callable[[Environ], Any] | None) -> None:
        self._authorize = authorize

    def __call__(self, environ: Environ) -> Sender | Answer:
        """Return the sender, or a refusal."""
        if self._authorize is not None and not self._authorize(environ):
            return refusal(403, "you may not look at this")
        return Sender(str(environ.get("REMOTE_USER") or "anonymous"))


def comes_from_elsewhere(environ: Environ, *, opens_page: bool) -> bool:
    """Return whether a page of another origin has sent this request.

    Args:
        environ: The WSGI environ.
        opens_page: Whether it is for the page itself, to which others may have a link.
    """
    # Browsers set it, and no page can: right also behind a proxy that changes the host.
    site = environ.get("HTTP_SEC_FETCH_SITE")
    origin = environ.get("HTTP_ORIGIN")
    if site is not None:
        opens = opens_page and environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        return site not in ("same-origin", "none") and not opens
    if origin is None:
        return False
    return urlsplit(str(origin)).netloc.lower() != str(environ.get("HTTP_HOST", "")).lower()


def cookie_in(environ: Environ, name: str) -> str:
    """Return the cookie *name* of a request; empty if there is none."""
    try:
        found = SimpleCookie(str(environ.get("HTTP_COOKIE", ""))).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def set_cookie(environ: Environ, name: str, value: str) -> tuple[str, str]:
    """Return the header that sets a cookie of this page alone, which no script can read."""
    path = str(environ.get("SCRIPT_NAME", "")) or "/"
    secure = "; Secure" if environ.get("wsgi.url_scheme") == "https" else ""
    return "Set-Cookie", f"{name}={value}; Path={path}; HttpOnly; SameSite=Strict{secure}"


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
