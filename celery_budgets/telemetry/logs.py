"""Log records of calls: one at the end of each call, with structured fields.

The message starts with the name of the event. The fields are in ``extra`` under the key
``budgets``, and at the top level of a line in a JSON log. :data:`SCHEMA` lists them.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from celery_budgets.units import format_size

__all__ = ["SCHEMA", "JsonLines", "call_ended", "print_json_lines"]

logger = logging.getLogger(__name__)

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
    "stack": "list of frames (`file`, `line`, `function`), innermost last: where a killed or"
    " interrupted body was",
    "soft_stack": "the same, where it was told of its soft limit, if it went on after that",
}


#: Standard attributes of a record, and those that are on the line in another form.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {
    "message", "asctime", "taskName", "budgets",
}  # fmt: skip
#: Shared by all records: json.dumps with options creates an encoder at each call.
_encode = json.JSONEncoder(default=str).encode


def call_ended(facts: Mapping[str, Any], ended_at: float) -> None:
    """Log the end of one call; WARNING if it was killed, rejected or over a limit.

    Args:
        facts: The fields of :data:`SCHEMA`, without the event.
        ended_at: Seconds since the epoch; the time of the record, which may be created later.
    """
    outcome = facts["outcome"]
    good = outcome == "retried" or (outcome == "succeeded" and not facts["soft_limit_exceeded"])
    level = logging.INFO if good else logging.WARNING
    if not logger.isEnabledFor(level):
        return
    peak = facts["rss_peak_bytes"]
    record = logger.makeRecord(
        logger.name, level, __file__, 0,
        "budgets.call_ended outcome=%s lane=%s task=%s task_id=%s seconds=%.3f rss_peak=%s"
        " soft_limit_exceeded=%s",
        (
            facts["outcome"], facts["lane"], facts["task"], facts["task_id"],
            facts["seconds"] or 0.0, format_size(peak) if peak is not None else "unknown",
            str(facts["soft_limit_exceeded"]).lower(),
        ),
        None, call_ended.__name__,
        extra={"budgets": {"event": "budgets.call_ended", **facts}},
    )  # fmt: skip
    record.created, record.msecs = ended_at, int(ended_at % 1 * 1000) + 0.0
    logger.handle(record)


class JsonLines(logging.Formatter):
    """Formats each record as a line of JSON, with the fields of a call."""

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as one line; its time is in UTC, in ISO 8601 format."""
        message = record.getMessage()
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            "event": message.partition(" ")[0].rstrip(":"),
            # Added by the program's own filters and record factories, such as OpenTelemetry's ids.
            **{key: value for key, value in vars(record).items() if key not in _USUAL},
            **getattr(record, "budgets", {}),
        }
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack_info"] = self.formatStack(record.stack_info)
        return _encode(line)


def print_json_lines() -> None:
    """Print the records of this package as JSON lines on standard error, and nowhere else."""
    package = logging.getLogger("celery_budgets")
    if any(isinstance(handler.formatter, JsonLines) for handler in package.handlers):
        return
    # Not sys.stderr: Celery redirects that to log records of its own.
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(JsonLines())
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False
