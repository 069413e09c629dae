"""Records as lines of JSON."""

from __future__ import annotations

import json
import logging

from celery_budgets.telemetry.logs import JsonLines


def line_of(**changes):
    record = logging.LogRecord("celery_budgets.x", logging.INFO, "x.py", 1, "budgets.y a=%s", (1,),
                               None)  # fmt: skip
    record.created = 1_000_000.25
    vars(record).update(changes)
    return json.loads(JsonLines().format(record))


def test_a_line_has_the_time_the_event_and_the_message():
    assert line_of() == {
        "time": "1970-01-12T13:46:40.250+00:00", "level": "INFO", "logger": "celery_budgets.x",
        "message": "budgets.y a=1", "event": "budgets.y",
    }  # fmt: skip


def test_what_a_program_adds_to_records_is_kept():
    """By a filter or a record factory, as OpenTelemetry's does; also what JSON does not know."""
    line = line_of(otelTraceID="abc", tenant={"x"}, budgets={"seconds": 1.5})
    assert (line["otelTraceID"], line["tenant"], line["seconds"]) == ("abc", "{'x'}", 1.5)


def test_an_exception_is_on_the_line():
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError as exc:
        line = line_of(exc_info=(type(exc), exc, exc.__traceback__))
    assert "ZeroDivisionError" in line["exc_info"]
