"""The README's tables of metrics and alerts, against the table of the code and the rules."""

from __future__ import annotations

import re

import pytest
import yaml

from celery_budgets.telemetry.metrics import METRICS
from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RULES = yaml.safe_load((ROOT / "examples" / "observability" / "rules.yml").read_text())
#: What the system that this one stands in for tells its operators to monitor.
ORIGINAL = (
    "worker.calls.total", "worker.calls.success", "worker.calls.failure",
    "worker.duration.avg_ms", "worker.duration.p95_ms", "worker.duration.p99_ms",
    "memory.rss_mb", "memory.heap_used_mb",
    "concurrency.global.active", "concurrency.lane.*.active",
    "worker.timeout.count", "worker.resource_limit.rejections",
)  # fmt: skip


def rows(heading: str) -> list[list[str]]:
    """The cells of all tables below `## heading`, without their markup."""
    _, found, rest = README.partition(f"\n## {heading}\n")
    assert found, f"the README has no section {heading!r}"
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    # A | inside a cell is written \|.
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def exported(name: str) -> set[str]:
    """The names of the series of a metric."""
    endings = {
        "counter": ["_total"],
        "gauge": [""],
        "histogram": ["", "_bucket", "_sum", "_count"],
    }
    return {f"celery_budgets_{name}{ending}" for ending in endings[METRICS[name].kind]}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_in_the_table(name):
    """With its kind, its labels and its help."""
    metric = METRICS[name]
    ending = "_total" if metric.kind == "counter" else ""
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    row = [f"`celery_budgets_{name}{ending}`", metric.kind, labels, metric.help]
    assert row in rows("Metrics")


def test_every_name_in_the_readme_exists():
    """In prose and queries, too."""
    known = {series for name in METRICS for series in exported(name)}
    assert set(re.findall(r"\bcelery_budgets_[a-z_]+", README)) <= known


@pytest.mark.parametrize("name", ORIGINAL)
def test_every_metric_of_the_original_has_its_name_here(name):
    """One row each, naming at least one metric that there is."""
    (row,) = [row for row in rows("Metrics") if row[0] == f"`{name}`"]
    assert re.search(r"celery_budgets_[a-z_]+", row[1])


def test_every_alert_is_in_the_table():
    """With its level, in the order of the rules."""
    told = [(row[-1].strip("`"), row[0]) for row in rows("Alerts")[2:]]
    rules = [rule for rule in RULES["groups"][0]["rules"] if "alert" in rule]
    assert told == [(rule["alert"], rule["labels"]["severity"]) for rule in rules]
