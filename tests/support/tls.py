"""A server behind TLS, with a certificate that only its own file vouches for."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


def certificate(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1; return its file and its key's."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    made, key = directory / "made.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-out", str(made), "-keyout", str(key)],
        check=True, capture_output=True,
    )  # fmt: skip
    return made, key


@contextlib.contextmanager
def behind_tls(port: int, made: Path, key: Path) -> Iterator[int]:
    """Pass on what comes by TLS to *port*, in the clear; yield the port to connect to."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made, key)
    opened: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(
            target=_accept, args=(listening, context, port, opened), daemon=True
        ).start()
        yield listening.getsockname()[1]
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
    for each in opened:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


def _accept(
    listening: socket.socket, context: ssl.SSLContext, port: int, opened: list[socket.socket]
) -> None:
    while True:
        try:
            plain, _ = listening.accept()
        except OSError:
            return
        try:
            there = context.wrap_socket(plain, server_side=True)
        except OSError:  # it does not trust us
            plain.close()
            continue
        here = socket.create_connection(("127.0.0.1", port))
        opened += [there, here]
        for source, target in ((there, here), (here, there)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
