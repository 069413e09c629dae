"""The app: each tool is a task, and its name decides its lane.

The broker and the result backend come from ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND``,
which Celery reads by itself. Run one worker per lane with
``celery -A examples.tools.app lanes up``.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_budgets import BudgetedTask, Budgets
from examples.tools import critic, files, forecast, misbehave, traces

# First the tracer provider, then the app: Budgets instruments where it finds one.
traces.export_where_asked()

app = Celery("examples.tools", task_cls=BudgetedTask)
app.conf.update(result_expires=3600, broker_connection_retry_on_startup=True)
budgets = Budgets(app)


@app.task(name="fs_read")
def fs_read(path: str) -> dict[str, Any]:
    """Return size, SHA-256 and number of lines of a file."""
    return files.read(path)


@app.task(name="critics_run")
def critics_run(file: dict[str, Any]) -> dict[str, Any]:
    """Review the Python file that ``fs_read`` described; add the findings."""
    return {**file, "findings": critic.review(file["path"])}


@app.task(name="fs_write")
def fs_write(reviewed: dict[str, Any], report: str) -> dict[str, Any]:
    """Write the report on a reviewed file, atomically."""
    return {"report": report, "bytes": files.write_atomically(report, critic.as_markdown(reviewed))}


@app.task(name="forecast_model")
def forecast_model() -> dict[str, Any]:
    """Forecast the last year of the airline passengers from the years before it."""
    return forecast.forecast()


@app.task(name="word_count")
def word_count(path: str) -> dict[str, Any]:
    """Count the words of a file; no lane names this tool, so it is an ordinary tool_call."""
    return files.count_words(path)


#: Seconds; the hard limit is 1.5 times that.
SHORT = 1.0

wait_too_long = app.task(name="wait_too_long", timeout=SHORT)(misbehave.wait_too_long)
ignore_soft_limit = app.task(name="ignore_soft_limit", timeout=SHORT)(misbehave.ignore_soft_limit)
allocate_everything = app.task(name="allocate_everything")(misbehave.allocate_everything)
