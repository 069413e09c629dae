"""The Prometheus rules and the Grafana dashboard of examples/observability, as they stand.

See also: ``tests/worker/test_prometheus.py``, which runs them on real workers.
"""

from __future__ import annotations

import json
import re
import subprocess
from itertools import product

import yaml

from celery_budgets.telemetry.metrics import METRICS
from tests.support.places import ROOT
from tests.support.programs import program

FOLDER = ROOT / "examples" / "observability"
RULES = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "grafana" / "celery-lanes.json").read_text())


def test_the_rules_are_sound_and_their_tests_pass():
    """As promtool has it."""
    for arguments in (["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(
            [program("promtool"), *arguments],
            cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test():
    """One in which it does not fire, and one in which it does."""
    cases = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    fired: dict[str, set[bool]] = {}
    for case in cases:
        for check in case.get("alert_rule_test", []):
            fired.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    assert fired == {rule["alert"]: {True, False} for rule in RULES if "alert" in rule}


def test_the_dashboard_is_put_together_well():
    """Ids once, panels beside and below one another, a unit on each, one data source variable."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == [
        "Lanes", "Queues", "Objectives", "Calls", "Durations", "Wait", "Memory",
        "Gate and rejections", "Limits and kills", "Limits over the fleet",
    ]  # fmt: skip
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        columns, lines = (range(at[key], at[key] + at[size]) for key, size in ("xw", "yh"))
        mine = set(product(columns, lines))
        assert not mine & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= mine
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["description"]


def test_every_name_in_the_example_exists():
    """Metrics in rules and dashboard are those of the table; recorded ones those of the rules."""
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    known = set(recorded)
    for name, metric in METRICS.items():
        endings = ["_bucket", "_sum", "_count"] if metric.kind == "histogram" else [""]
        endings = ["_total"] if metric.kind == "counter" else endings
        known |= {f"celery_budgets_{name}{ending}" for ending in endings}
    text = (FOLDER / "rules.yml").read_text() + json.dumps(DASHBOARD)
    used = set(re.findall(r"celery_budgets[:_][a-z0-9_]+", text))
    assert used <= known
    # What is exported is shown, too, except what the queries need not.
    names = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in used}
    unused = {f"celery_budgets_{name}" for name in METRICS} - names
    assert unused == {"celery_budgets_global_active", "celery_budgets_global_limit"}
