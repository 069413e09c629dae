"""The examples that scale the workers of a lane: their schemas, and what they ask for."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from celery_budgets.telemetry.metrics import METRICS
from tests.support.places import ROOT

FOLDER = ROOT / "examples" / "kubernetes"
SCHEMA = json.loads((Path(__file__).parent / "kubernetes.schema.json").read_text())


def read(name):
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["keda.yml", "hpa.yml"])
def test_an_example_keeps_to_its_schema(name):
    """As the API servers would have it."""
    jsonschema.Draft202012Validator(SCHEMA).validate(read(name))


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("keda.yml", ("spec", "minReplicas"), 1),
        ("keda.yml", ("spec", "triggers", 0, "metadata", "threshold"), 1),
        ("hpa.yml", ("apiVersion",), "autoscaling/v1"),
        ("hpa.yml", ("spec", "metrics", 0, "external", "target", "type"), "Utilization"),
    ],
)
def test_the_schema_sees_what_is_wrong(name, path, value):
    """A word of the other kind, a number where text is wanted."""
    broken = copy.deepcopy(read(name))
    at = broken
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(broken)


def test_they_ask_for_metrics_that_there_are():
    """And for a gauge: its value is the load itself."""
    for path in sorted(FOLDER.glob("*.yml")):
        names = set(re.findall(r"celery_budgets_(\w+)", path.read_text(encoding="utf-8")))
        assert names == {"lane_load"}, path.name
    assert (METRICS["lane_load"].kind, METRICS["lane_load"].labels) == ("gauge", ("lane",))


def test_both_scale_the_same_deployment_in_the_same_bounds():
    """That of the guide, never to nothing: a lane without a worker has no load."""
    keda, hpa = read("keda.yml")["spec"], read("hpa.yml")["spec"]
    deploy = (ROOT / "docs" / "guides" / "deploy.md").read_text(encoding="utf-8")
    assert f"name: {keda['scaleTargetRef']['name']}\n" in deploy
    assert keda["scaleTargetRef"]["name"] == hpa["scaleTargetRef"]["name"]
    assert keda["minReplicaCount"] == hpa["minReplicas"] == 1
    assert keda["maxReplicaCount"] == hpa["maxReplicas"]
