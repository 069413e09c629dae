"""Where RabbitMQ is, and what administers it."""

from __future__ import annotations

import os
import subprocess

#: .ci/newest has one of its own.
_ADDRESS = os.environ.get("BUDGETS_TEST_RABBITMQ", "127.0.0.1:5672")
RABBITMQ = (_ADDRESS.rpartition(":")[0], int(_ADDRESS.rpartition(":")[2]))
_RABBITMQCTL = os.environ.get("BUDGETS_TEST_RABBITMQCTL", "rabbitmqctl").split()


def rabbitmqctl(*arguments: str) -> bool:
    """Administer RabbitMQ; return whether that succeeded."""
    done = _run(*arguments)
    return done is not None and done.returncode == 0


def unacknowledged(host: str, queue: str) -> int | None:
    """Return how many messages of *queue* workers have in hand, None where nobody can say."""
    done = _run("list_queues", "-q", "-p", host, "name", "messages_unacknowledged")
    if done is None or done.returncode:
        return None
    by_name = dict(line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    return int(by_name[queue]) if by_name.get(queue, "").isdigit() else None


def _run(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            [*_RABBITMQCTL, *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
