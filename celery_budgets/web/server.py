"""A small server for the page, on the standard library: a thread per connection, not too many.

For operators and development; elsewhere mount :meth:`celery_budgets.Budgets.wsgi` in your server.

Runs in the process that serves the page.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from celery_budgets.errors import ConfigurationError

__all__ = ["MOST_CONNECTIONS", "PageServer", "is_loopback"]

logger = logging.getLogger(__name__)

#: Most connections at a time, the streams among them; further ones are closed.
MOST_CONNECTIONS = 64
#: How long a connection may be silent, seconds.
SILENCE_SECONDS = 15.0


class PageServer(ThreadingMixIn, WSGIServer):
    """Serves a WSGI application at *host* and *port*.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0: any that is free.
        application: The application.

    Raises:
        ConfigurationError: Nothing can listen there.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, application: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            super().__init__((host, port), _Handler)
        except OSError as exc:
            raise ConfigurationError(
                f"nothing can listen on {host}:{port} ({exc.strerror or exc}); give another --port"
            ) from exc
        self.set_app(application)

    @property
    def url(self) -> str:
        """Its address for a browser on this host."""
        host, port = self.server_address[:2]
        name = str(host)
        return f"http://{f'[{name}]' if ':' in name else name}:{port}/"

    def server_bind(self) -> None:
        """Bind as http.server does, but ask no name server for the name of the host."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, or close it where there are too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note a connection that broke; who looks at a page may leave at any time."""
        logger.debug("budgets.page_connection_broke", exc_info=True)


class _Handler(WSGIRequestHandler):
    """Reads one request of a connection that does not stay silent."""

    timeout = SILENCE_SECONDS

    def handle(self) -> None:
        """Serve one request.

        Mirrors wsgiref.simple_server.WSGIRequestHandler.handle, which says of every server that it
        has one thread.
        """
        self.raw_requestline = self.rfile.readline(65537)
        if len(self.raw_requestline) > 65536:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
            return
        if not self.parse_request():
            return
        reads, writes = cast(Any, self.rfile), cast(Any, self.wfile)
        handler = ServerHandler(
            reads, writes, self.get_stderr(), self.get_environ(), multithread=True
        )
        handler.request_handler = self  # type: ignore[attr-defined]
        handler.run(self.server.get_app())  # type: ignore[attr-defined]

    def address_string(self) -> str:
        """Return the address of the other side, without asking a name server."""
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 http.server's name
        """Log a request for those who debug; addresses may carry the token, and are not shown."""
        logger.debug("budgets.page_request from=%s", self.client_address[0])


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine reach *host*."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
