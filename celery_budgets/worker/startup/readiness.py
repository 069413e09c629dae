"""Tells whoever has started a worker that it is ready, and that it stops.

To systemd, where its unit has ``Type=notify``; to ``celery lanes up``, by a file. Not by a line of
the log, which a log level may leave out.

Runs in the worker main process, and in that of ``celery lanes up``.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from celery import signals

__all__ = ["READY_FILE", "SYSTEMD", "notify", "tell_when_ready"]

logger = logging.getLogger(__name__)

#: Environment variable with the file that a worker makes when it is ready; no setting.
READY_FILE = "_CELERY_BUDGETS_READY"
#: That with the socket of systemd (sd_notify(3)).
SYSTEMD = "NOTIFY_SOCKET"


def notify(text: str) -> None:
    """Send *text* to systemd, such as ``READY=1``; do nothing where it has not asked for it."""
    address = os.environ.get(SYSTEMD)
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket of Linux
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.connect(address)
            told.sendall(text.encode())
    except OSError as exc:
        logger.warning("budgets.systemd_not_told %s: %s", text, exc)


def tell_when_ready(worker: Any) -> None:
    """Tell when *worker*, which is starting, takes calls, and when it stops."""
    if SYSTEMD in os.environ or READY_FILE in os.environ:
        # Not weak: nothing else refers to these functions of this module's own.
        signals.worker_ready.connect(_ready, weak=False)
        signals.worker_shutting_down.connect(_stops, weak=False, sender=worker.hostname)


def _ready(**_: Any) -> None:
    notify("READY=1")
    file = os.environ.get(READY_FILE)
    if file:
        try:
            Path(file).touch()
        except OSError as exc:
            logger.warning("budgets.supervisor_not_told file=%s: %s", file, exc)


def _stops(**_: Any) -> None:
    notify("STOPPING=1")
