"""Programs beside workers: Prometheus, a browser, Flower; and which processes live."""

from __future__ import annotations

import json
import os
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import psutil
import pytest

#: Requests go to loopback, whatever proxy the environment names.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def program(name: str) -> str:
    """Return the path of the program *name*; skip where it is missing, fail on CI."""
    path = shutil.which(name)
    if path is None:
        message = f"no {name} on the PATH"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def free_port() -> int:
    """Return a loopback port that nobody listened on a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def fetch(url: str, timeout: float = 10.0, **parameters: str) -> str:
    """Return the body of *url*; an error of the server too, which is in its body."""
    if parameters:
        url = f"{url}?{urllib.parse.urlencode(parameters)}"
    try:
        with _opener.open(url, timeout=timeout) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as exc:
        return exc.read().decode()


def fetch_json(url: str, **parameters: str) -> Any:
    """Return the JSON of *url*."""
    return json.loads(fetch(url, **parameters))


def processes_with(text: str) -> list[Any]:
    """Return the living processes whose environment or command line has *text*."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if alive and any(text in word for word in words):
            found.append(process)
    return found
