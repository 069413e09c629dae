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
    try:
        done = subprocess.run(
            [*_RABBITMQCTL, *arguments], capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
