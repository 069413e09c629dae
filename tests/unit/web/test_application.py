"""The page as a WSGI application: what it answers, and whom it refuses."""

from __future__ import annotations

import base64
import io
import json
import logging
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from celery_budgets import Budgets
from celery_budgets.errors import ConfigurationError
from celery_budgets.sending.lane_changes import Changed
from celery_budgets.web import actions
from celery_budgets.web.access import AskProgram, NeedPassword, NeedToken
from celery_budgets.web.application import Application
from celery_budgets.web.desk import Desk
from celery_budgets.web.news import News
from celery_budgets.web.stream import MOST_STREAMS
from tests.support.answers import answer, ended, lane

XSRF = "celery_lanes_xsrf=abcdefghijklmnopqrstuvwxyz"


class Client:
    """Asks an application as a server would, below a path of its own."""

    def __init__(self, application: Any, **always: str) -> None:
        self.application = application
        self.always = {"SCRIPT_NAME": "/shop/lanes", **always}
        self.status, self.headers = 0, []

    def __call__(
        self, path: str, method: str = "GET", body: bytes = b"", **more: Any
    ) -> tuple[int, bytes]:
        path, _, query = path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query,
            "HTTP_HOST": "here.example", "REMOTE_ADDR": "127.0.0.1", "wsgi.multithread": True,
            "wsgi.input": io.BytesIO(body), **self.always, **more,
        }  # fmt: skip
        if body:
            environ.setdefault("CONTENT_LENGTH", str(len(body)))
        setup_testing_defaults(environ)
        found = self.application(environ, self._start)
        if self.header("Content-Type").startswith("text/event-stream"):
            return self.status, found
        return self.status, b"".join(found)

    def _start(self, status: str, headers: list[tuple[str, str]], *_: Any) -> None:
        self.status, self.headers = int(status.split()[0]), headers

    def header(self, name: str) -> str:
        return "\n".join(value for key, value in self.headers if key == name)


@pytest.fixture
def make(app, workers):
    """Make a client of a page whose workers are those of the test."""

    def make(access: Any = None, *, read_only: bool = True, **always: str) -> Client:
        desk = Desk(app, News(app, 0.05, inspection=workers), read_only=read_only)
        return Client(Application(desk, access or AskProgram(None)), **always)

    return make


def test_the_page_and_its_files(make):
    """Small, of one origin, with addresses below where it is mounted."""
    client = make()
    sizes = []
    for path, kind in (("/", "html"), ("/app.js", "javascript"), ("/style.css", "css")):
        status, body = client(path)
        assert (status, kind in client.header("Content-Type")) == (200, True)
        assert "default-src 'none'" in client.header("Content-Security-Policy")
        assert "unsafe" not in client.header("Content-Security-Policy")
        assert b"http://" not in body.replace(b"http://www.w3.org/", b"")
        assert b"https://" not in body
        assert b"innerHTML" not in body
        sizes.append(len(body))
    assert sum(sizes) < 100_000
    status, page = client("/")
    assert b'href="style.css"' in page
    assert b"{{" not in page
    assert "HttpOnly; SameSite=Strict" in client.header("Set-Cookie")
    assert "Path=/shop/lanes" in client.header("Set-Cookie")
    assert client("/", method="HEAD") == (200, b"")


def test_without_a_slash_it_leads_to_the_page(make):
    """A browser takes relative addresses from the last slash."""
    client = make()
    assert client("?token=x")[0] == 308
    assert client.header("Location") == "/shop/lanes/?token=x"


def test_lanes_json_is_what_status_prints(make, workers, app):
    """The same document, from the same answers."""
    status, body = make()("/lanes.json")
    printed = json.loads(body)
    assert status == 200
    assert printed["lanes"][0]["worker"] == "a@h"
    assert set(printed) == {"lanes", "workers", "silent", "plain", "unserved", "summary"}


def test_before_any_news_it_is_503_and_afterwards_the_last(make, workers):
    """With how old it is."""
    workers.away = OSError("no route")
    client = make()
    assert client("/lanes.json") == (503, b"the broker does not answer (no route)\n")
    workers.away = None
    client.application._desk.news.after(client.application._desk.news._bulletin.number, 5)
    assert client("/lanes.json")[0] == 200
    workers.away = OSError("no route")
    news = client.application._desk.news
    while not news.after(news._bulletin.number, 5).problem:
        pass
    status, body = client("/lanes.json")
    assert status == 200
    assert json.loads(body)["stale_seconds"] >= 0


def test_the_token_then_the_cookie(make):
    """The address that is printed works as it stands; then the cookie replaces it."""
    access = NeedToken()
    client = make(access)
    assert client("/")[0] == 403
    assert client("/lanes.json?token=wrong")[0] == 403
    assert client("/events")[0] == 403
    assert client(f"/?token={access.token}")[0] == 200
    cookies = client.header("Set-Cookie").splitlines()
    assert all("HttpOnly; SameSite=Strict" in cookie for cookie in cookies)
    assert access.token not in client.header("Set-Cookie")
    cookie = "; ".join(each.partition(";")[0] for each in cookies)
    for path in ("/", "/app.js", "/lanes.json"):
        assert client(path, HTTP_COOKIE=cookie)[0] == 200
    assert make(NeedToken())("/lanes.json", HTTP_COOKIE=cookie)[0] == 403


def test_name_and_password(make):
    """As HTTP basic authentication has it, in any characters."""
    client = make(NeedPassword("ann", "pass:wörd"))
    assert client("/")[0] == 401
    assert client.header("WWW-Authenticate").startswith("Basic ")

    def sent(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    assert client("/", HTTP_AUTHORIZATION=sent("ann:pass:wörd"))[0] == 200
    for wrong in (sent("ann:pass"), sent("bob:pass:wörd"), "Basic %%%", "Bearer x", "Basic", ""):
        assert client("/lanes.json", HTTP_AUTHORIZATION=wrong)[0] == 401


def test_the_program_decides_where_it_mounts_the_page(app):
    """And must, before anything can be changed."""
    budgets = Budgets.of(app)
    with pytest.raises(ConfigurationError, match="authorize="):
        budgets.wsgi(read_only=False)
    page = budgets.wsgi(authorize=lambda environ: environ.get("REMOTE_USER") == "ann")
    assert Client(page)("/")[0] == 403
    assert Client(page, REMOTE_USER="ann")("/")[0] == 200
    assert Client(budgets.wsgi())("/app.js")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"HTTP_ORIGIN": "http://evil.example"},
        {"HTTP_ORIGIN": "null"},
        {"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_SEC_FETCH_MODE": "no-cors"},
        {"HTTP_SEC_FETCH_SITE": "same-site", "HTTP_ORIGIN": "http://other.here.example"},
    ],
)
def test_a_foreign_origin_is_refused(make, headers):
    """Whatever it asks for."""
    for path in ("/lanes.json", "/events", "/app.js"):
        assert make()(path, **headers)[0] == 403
    assert make(read_only=False)("/lanes/quick/pause", "POST", **headers)[0] == 403


def test_a_link_from_elsewhere_opens_the_page(make):
    """A person has followed it."""
    link = {"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_SEC_FETCH_MODE": "navigate"}
    assert make()("/", **link)[0] == 200
    assert make()("/lanes.json", **link)[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/../desk.py", "/..%2fdesk.py", "/page/../../desk.py", "//etc/passwd", "/index.html",
        "/app.js/", "/app.js\0", "/%2e%2e/desk.py", "/лanes", "/lanes.json/x", "/lanes/quick",
        "/lanes//pause", "/scopes/", "/lanes/quick/unknown",
    ],
)  # fmt: skip
def test_there_are_no_other_paths(make, path):
    """Files are named one by one; nothing is looked up."""
    assert make()(path)[0] == 404
    assert make(read_only=False)(path, "POST")[0] == 404


def test_what_is_large_is_refused_unread(make):
    """Ten megabytes, a long address, many values, and a length that is none."""
    client = make(read_only=False)

    class Unread:
        def read(self, *_: Any) -> bytes:
            raise AssertionError("it was read")

    unread = {"wsgi.input": Unread()}
    path = "/lanes/quick/pause"
    assert client(path, "POST", CONTENT_LENGTH=str(10_000_000), **unread)[0] == 413
    assert client(path, "POST", CONTENT_LENGTH="-1", **unread)[0] == 413
    assert client(path, "POST", CONTENT_LENGTH="ten", **unread)[0] == 400
    assert client("/why.json?task_id=" + "x" * 5000)[0] == 414
    assert client("/why.json?" + "&".join(f"a{n}=1" for n in range(100)))[0] == 400
    assert client("/why.json?task_id=" + "x" * 500)[0] == 400
    assert client("/why.json")[0] == 400


def test_only_so_many_streams(make):
    """The further ones are told to come again, and a place that is given back is there."""
    client = make()
    streams = [client("/events")[1] for _ in range(MOST_STREAMS)]
    assert b"retry" in next(streams[0])
    assert client("/events")[0] == 503
    streams[0].close()
    streams[0].close()
    status, stream = client("/events")
    assert status == 200
    for each in (*streams, stream):
        each.close()


def test_a_server_with_one_thread_has_no_streams(make):
    """One would hold up all others: the page asks for itself instead."""
    assert make()("/events", **{"wsgi.multithread": False}) == (204, b"")


def test_the_stream_tells_lanes_kills_and_silence(make, workers):
    """Lanes in each round, kills once, and since when there is no news."""
    _, stream = make()("/events")
    told = {"lanes": [], "kills": [], "limits": [], "stale": []}

    def hear(kind: str) -> Any:
        while not told[kind]:
            event = next(stream).decode()
            if event.startswith("event: "):
                for part in event.strip().split("\n\n"):
                    head, data = part.split("\n")
                    told[head.removeprefix("event: ")].append(json.loads(data[6:]))
        return told[kind][-1]

    assert hear("lanes")["workers"] == ["a@h"]
    assert hear("kills")["total"] == 0
    told["lanes"].clear()
    hear("lanes")
    assert len(told["kills"]) == len(told["limits"]) == 1
    workers.away = OSError("gone")
    assert hear("stale")["problem"] == "the broker does not answer (gone)"
    stream.close()


def test_markup_in_names_stays_text(make, workers, app):
    """In JSON as in the page, which has the name of the app."""
    name = "</script><img src=x onerror=alert(1)>"
    calls = ended("quick", 1.0, succeeded=1)
    calls.calls["quick", name] = calls.calls.pop(("quick", "task"))
    workers.answer = lambda **more: answer({"quick": lane()}, calls, **more)
    client = make()
    _, body = client("/lanes.json")
    assert client.header("Content-Type") == "application/json"
    assert client.header("X-Content-Type-Options") == "nosniff"
    assert json.loads(body)["summary"][0]["tasks"][0]["task"] == name
    app.main = '"><img src=x>'
    assert b"<img" not in client("/")[1]


class TestActions:
    """Pausing, resuming, limits and scopes."""

    @pytest.fixture
    def asked(self, monkeypatch) -> list[tuple[Any, ...]]:
        done: list[tuple[Any, ...]] = []

        def change(app: Any, command: str, lane: str, workers: Any, **more: Any) -> Changed:
            done.append((command, lane, list(workers), more))
            return Changed([("a@h", "done")], [], [], [], sent=True)

        monkeypatch.setattr(actions, "change_lane", change)
        return done

    @pytest.fixture
    def post(self, make):
        client = make(read_only=False)
        ours = {"HTTP_COOKIE": XSRF, "HTTP_X_LANES_XSRF": XSRF.partition("=")[2]}

        def post(path: str, body: Any = None, **more: Any) -> tuple[int, bytes]:
            raw = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
            return client(path, "POST", raw, **{**ours, **more})

        return post

    def test_a_lane_is_changed_and_a_record_is_left(self, post, asked, caplog):
        """Who did what to what; the workers say what came of it."""
        caplog.set_level(logging.WARNING, "celery_budgets")
        status, body = post("/lanes/quick/pause", REMOTE_USER="ann")
        assert status == 200
        assert json.loads(body) == {"done": [{"worker": "a@h", "text": "done"}], "failed": []}
        post("/lanes/quick/resume", {"workers": ["a@h"]})
        post("/lanes/quick/set", {"concurrency": 3})
        assert asked == [
            ("pause_lane", "quick", [], {}),
            ("resume_lane", "quick", ["a@h"], {}),
            ("lane_limit", "quick", [], {"concurrency": 3}),
        ]
        first, *_, last = [record.getMessage() for record in caplog.records]
        assert first.startswith("budgets.operator action=pause name='quick' by='ann@127.0.0.1'")
        assert "action=set" in last
        assert "concurrency" in last

    def test_nothing_with_read_only(self, make, asked):
        """Whatever is sent along."""
        ours = {"HTTP_COOKIE": XSRF, "HTTP_X_LANES_XSRF": XSRF.partition("=")[2]}
        for path in ("/lanes/quick/pause", "/scopes/req/cancel", "/limits/api/release"):
            assert make()(path, "POST", b"{}", **ours)[0] == 403
        assert asked == []

    @pytest.mark.parametrize(
        "headers",
        [
            {"HTTP_COOKIE": "", "HTTP_X_LANES_XSRF": ""},
            {"HTTP_X_LANES_XSRF": ""},
            {"HTTP_X_LANES_XSRF": "guessed"},
            {"HTTP_COOKIE": "", "HTTP_X_LANES_XSRF": "abc"},
            {"HTTP_COOKIE": "celery_lanes_xsrf="},
        ],
    )
    def test_another_page_cannot_send_it(self, post, asked, headers):
        """It can have the browser send cookies, and does not know what is in them."""
        assert post("/lanes/quick/pause", **headers)[0] == 403
        assert asked == []

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/lanes/quick/set", {}),
            ("/lanes/quick/set", {"concurrency": "3"}),
            ("/lanes/quick/set", {"concurrency": True}),
            ("/lanes/quick/pause", {"workers": "all"}),
            ("/lanes/quick/pause", b"[1]"),
            ("/lanes/quick/pause", b"\xff{"),
            ("/lanes/quick/pause", b"[" * 4000),
            ("/scopes/req/cancel", {"running": "yes"}),
            ("/limits/api/release", {}),
            ("/limits/api/release", {"holder": 1}),
        ],
    )
    def test_arguments_are_checked(self, post, asked, path, body):
        """Before anybody is asked."""
        assert post(path, body)[0] == 400
        assert asked == []

    def test_it_is_done_by_post(self, make):
        """A link changes nothing."""
        client = make(read_only=False)
        assert client("/lanes/quick/pause")[0] == 405
        assert client("/lanes.json", "POST", b"{}")[0] == 405

    def test_an_unknown_lane_is_a_wrong_request(self, make):
        """Said in our words."""
        client = make(read_only=False)
        ours = {"HTTP_COOKIE": XSRF, "HTTP_X_LANES_XSRF": XSRF.partition("=")[2]}
        status, body = client("/lanes/nowhere/pause", "POST", b"", **ours)
        assert (status, b"nowhere" in body) == (400, True)


def test_it_keeps_to_the_protocol_of_wsgi(make):
    """As the validator of the standard library sees it."""
    client = make()
    client.application = validator(client.application)
    environ: dict[str, Any] = {"SCRIPT_NAME": "", "PATH_INFO": "/lanes.json", "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    found = client.application(environ, lambda *args: lambda data: None)
    assert b'"summary"' in b"".join(found)
    found.close()
