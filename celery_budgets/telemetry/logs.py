"""Log records of calls: one at each end, with its facts as fields.

A record's message starts with the name of its event; its facts are in ``extra`` under the one
key ``budgets``, and on the line of a JSON log beside the message. :data:`SCHEMA` is the table.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from celery_budgets.errors import ConfigurationError
from celery_budgets.units import format_size

__all__ = ["SCHEMA", "call_ended", "print_json_lines"]

logger = logging.getLogger(__name__)

_HANDLER = "celery_budgets.json"

#: Fields of a ``budgets.call_ended`` record, with type and unit; ``None`` where unknown.
SCHEMA: dict[str, str] = {
    "event": "text, `budgets.call_ended`",
    "outcome": "text, one of the outcomes",
    "lane": "text",
    "task": "text, the task's name",
    "task_id": "text",
    "worker": "text",
    "trace_id": "text, 32 hexadecimal digits",
    "seconds": "number, s",
    "wait_seconds": "number, s",
    "soft_limit_exceeded": "true or false",
    "rss_before_bytes": "number, By",
    "rss_peak_bytes": "number, By",
    "scope": "text, the path of its request scope",
    "twin": "true or false, whether a call with the same idempotency key ran in its place",
}


def call_ended(facts: Mapping[str, Any]) -> None:
    """Log the end of one call; WARNING where it did not go as its budget wants."""
    good = facts["outcome"] in ("succeeded", "retried") and not facts["soft_limit_exceeded"]
    level = logging.INFO if good else logging.WARNING
    if not logger.isEnabledFor(level):
        return
    peak = facts["rss_peak_bytes"]
    logger.log(
        level,
        "budgets.call_ended outcome=%s lane=%s task=%s task_id=%s seconds=%.3f rss_peak=%s"
        " soft_limit_exceeded=%s",
        facts["outcome"], facts["lane"], facts["task"], facts["task_id"],
        facts["seconds"] or 0.0, format_size(peak) if peak is not None else "unknown",
        str(facts["soft_limit_exceeded"]).lower(),
        extra={"budgets": {"event": "budgets.call_ended", **facts}},
    )  # fmt: skip


def print_json_lines() -> None:
    """Print the records of this package as JSON lines on standard error, and only so.

    Raises:
        ConfigurationError: The formatter is not installed.
    """
    try:
        from pythonjsonlogger.json import JsonFormatter
    except ImportError:
        raise ConfigurationError(
            "budgets_json_logs needs python-json-logger; pip install 'celery-budgets[json]'"
        ) from None

    class Formatter(JsonFormatter):  # type: ignore[misc, unused-ignore]
        """Puts the facts of a record beside its message."""

        def add_fields(
            self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
        ) -> None:
            super().add_fields(log_data, record, message_dict)
            log_data.update(log_data.pop("budgets", None) or {})
            log_data.setdefault("event", record.getMessage().partition(" ")[0].rstrip(":"))

    package = logging.getLogger("celery_budgets")
    if any(handler.name == _HANDLER for handler in package.handlers):
        return
    # Not sys.stderr: Celery turns what is printed there into log records of its own.
    handler = logging.StreamHandler(sys.__stderr__)
    handler.name = _HANDLER
    handler.setFormatter(
        Formatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
    )
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False
