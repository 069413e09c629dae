"""The documentation's tables of metrics and alerts, against the code and the rules."""

from __future__ import annotations

import re

import pytest
import yaml

from celery_budgets.telemetry.metrics import METRICS
from tests.support.pages import PAGES
from tests.support.places import ROOT

METRICS_PAGE = PAGES["reference/metrics.md"]

RULES = yaml.safe_load((ROOT / "examples" / "observability" / "rules.yml").read_text())
#: What the system that this one stands in for tells its operators to monitor.
ORIGINAL = (
    "worker.calls.total", "worker.calls.success", "worker.calls.failure",
    "worker.duration.avg_ms", "worker.duration.p95_ms", "worker.duration.p99_ms",
    "memory.rss_mb", "memory.heap_used_mb",
    "concurrency.global.active", "concurrency.lane.*.active",
    "worker.timeout.count", "worker.resource_limit.rejections",
)  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_in_the_table(name):
    """With its kind, its labels and its help."""
    metric = METRICS[name]
    ending = "_total" if metric.kind == "counter" else ""
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    row = [f"`celery_budgets_{name}{ending}`", metric.kind, labels, metric.help]
    assert row in METRICS_PAGE.table("metric", "kind", "labels", "meaning")


@pytest.mark.parametrize("name", ORIGINAL)
def test_every_metric_of_the_original_has_its_name_here(name):
    """One row each, naming at least one metric that there is."""
    (row,) = [row for row in METRICS_PAGE.table("there", "here") if row[0] == f"`{name}`"]
    assert re.search(r"celery_budgets_[a-z_]+", row[1])


def test_every_alert_is_in_the_table():
    """With its level, in the order of the rules."""
    alerts = PAGES["guides/watch.md"].table("level", "when", "rule")
    told = [(row[-1].strip("`"), row[0]) for row in alerts]
    rules = [rule for rule in RULES["groups"][0]["rules"] if "alert" in rule]
    assert told == [(rule["alert"], rule["labels"]["severity"]) for rule in rules]
