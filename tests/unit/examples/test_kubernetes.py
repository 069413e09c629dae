"""The examples for Kubernetes: the schemas of its API, and what the lanes need.

No cluster is at hand: so the files are held against the schemas, against the lanes and against the
commands that they name.
"""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from celery.bin.celery import celery as celery_command

from celery_budgets.cli import lanes as lanes_command
from celery_budgets.cli.drain import SPARE_SECONDS
from celery_budgets.config.settings import Settings
from celery_budgets.model.lanes import DEFAULT_LANES, Lanes
from celery_budgets.telemetry.metrics import METRICS
from celery_budgets.units import parse_duration, parse_size
from celery_budgets.worker.pool.drain import LAST
from tests.support.places import ROOT

FOLDER = ROOT / "examples" / "kubernetes"
RULES = ROOT / "examples" / "observability" / "rules.yml"
LANES = Lanes(DEFAULT_LANES)
GUIDE = (ROOT / "docs" / "guides" / "kubernetes.md").read_text(encoding="utf-8")


def validator(name):
    schema = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


API = validator("kubernetes_api.schema.json")
OTHERS = validator("kubernetes.schema.json")


def read(name):
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def prometheus_rule():
    """As the line in the head of the file makes it, with ``cat`` for ``kubectl``."""
    text = (FOLDER / "prometheus-rule.head.yml").read_text(encoding="utf-8")
    (line,) = re.findall(r"^#   (\{ cat .*\} \|) kubectl apply -f -$", text, re.MULTILINE)
    done = subprocess.run(["sh", "-c", f"{line} cat"], cwd=FOLDER, capture_output=True, check=True)
    return yaml.safe_load(done.stdout)


DEPLOYMENTS = {
    each["metadata"]["labels"]["lane"]: each
    for each in yaml.safe_load_all((FOLDER / "lanes.yml").read_text(encoding="utf-8"))
}
POLICY, MONITOR = read("network-policy.yml"), read("pod-monitor.yml")
ENVIRONMENT = read("environment.yml")
OBJECTS = {
    **{f"lanes.yml {lane}": (each, API) for lane, each in DEPLOYMENTS.items()},
    "environment.yml": (ENVIRONMENT, API),
    "network-policy.yml": (POLICY, API),
    "hpa.yml": (read("hpa.yml"), API),
    "hpa.yml, values": (read("hpa.yml"), OTHERS),
    "keda.yml": (read("keda.yml"), OTHERS),
    "pod-monitor.yml": (MONITOR, OTHERS),
    "prometheus-rule.head.yml": (prometheus_rule(), OTHERS),
}
CONTAINER = ("spec", "template", "spec", "containers", 0)


@pytest.mark.parametrize("name", OBJECTS)
def test_an_example_keeps_to_its_schema(name):
    """As the API servers would have it."""
    found, schema = OBJECTS[name]
    schema.validate(found)


def test_every_file_is_looked_at():
    """That of the adapter is no object of Kubernetes, but values of its chart."""
    files = {name.partition(",")[0].split()[0] for name in OBJECTS}
    assert {path.name for path in FOLDER.iterdir()} == files | {"prometheus-adapter.yml"}


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("lanes.yml critic", ("apiVersion",), "extensions/v1beta1"),
        ("lanes.yml critic", ("spec", "selector"), "critic"),
        ("lanes.yml critic", (*CONTAINER[:3], "terminationGracePeriodSeconds"), "460s"),
        ("lanes.yml critic", (*CONTAINER, "liveness"), {}),
        ("lanes.yml critic", (*CONTAINER, "livenessProbe", "periodSeconds"), "60"),
        ("lanes.yml critic", (*CONTAINER, "lifecycle", "preStop", "command"), ["true"]),
        ("lanes.yml critic", (*CONTAINER, "ports", 0, "containerPort"), "metrics"),
        ("environment.yml", ("data", "CELERY_BUDGETS_METRICS_PORT"), 9808),
        ("network-policy.yml", ("spec", "egress", 0, "ports", 0, "portt"), 6379),
        ("network-policy.yml", ("spec", "podSelector"), "lanes"),
        ("keda.yml", ("spec", "minReplicas"), 1),
        ("keda.yml", ("spec", "triggers", 0, "metadata", "threshold"), 1),
        ("hpa.yml", ("apiVersion",), "autoscaling/v1"),
        ("hpa.yml, values", ("spec", "metrics", 0, "external", "target", "type"), "Utilization"),
        ("pod-monitor.yml", ("spec", "podMetricsEndpoints", 0, "interval"), "15"),
        ("pod-monitor.yml", ("spec", "podMetricsEndpoints", 0, "port"), 9808),
        ("prometheus-rule.head.yml", ("spec", "groups", 0, "rules", 0, "exp"), "up"),
    ],
)
def test_the_schema_sees_what_is_wrong(name, path, value):
    """A word of the other kind, a number where text is wanted."""
    found, schema = OBJECTS[name]
    broken = copy.deepcopy(found)
    at = broken
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(broken)


def container(lane):
    return DEPLOYMENTS[lane]["spec"]["template"]["spec"]["containers"][0]


def test_a_deployment_for_each_default_lane():
    """With the name of the lane, as far as Kubernetes allows it; and they differ in that alone."""
    assert list(DEPLOYMENTS) == list(LANES)
    texts = set()
    for lane, each in DEPLOYMENTS.items():
        assert each["metadata"]["name"] == f"lane-{lane.replace('_', '-')}"
        plain = copy.deepcopy(each)
        del plain["spec"]["strategy"]
        del plain["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        texts.add(json.dumps(plain).replace(lane, "x").replace(lane.replace("_", "-"), "x"))
    assert len(texts) == 1


@pytest.mark.parametrize("lane", LANES.values(), ids=lambda lane: lane.name)
def test_the_grace_and_the_memory_are_those_of_the_lane(lane):
    """The grace is what `lanes drain --forecast` says, the memory what docker-compose.yml gives."""
    spec = DEPLOYMENTS[lane.name]["spec"]["template"]["spec"]
    grace = math.ceil(lane.budget.hard_time_limit + SPARE_SECONDS)
    assert spec["terminationGracePeriodSeconds"] == grace
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    theirs = compose["services"][lane.name.replace("_", "-")]["mem_limit"]
    limit = container(lane.name)["resources"]["limits"]["memory"]
    assert parse_size(f"{limit}B") == parse_size(theirs.replace("m", "MiB"))


def test_one_call_at_a_time_stays_one_at_a_time_while_workers_are_replaced():
    """Two workers of a lane run twice its concurrency: that of one slot has no second worker."""
    for name, lane in LANES.items():
        rolling = DEPLOYMENTS[name]["spec"]["strategy"]["rollingUpdate"]
        assert rolling["maxSurge"] == (0 if lane.concurrency == 1 else 1)
        assert rolling["maxSurge"] + rolling["maxUnavailable"] == 1


def commands(lane):
    """What is run in the container of a lane, by what for."""
    found = container(lane)
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    hook = found["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[:2] == ["sh", "-c"]
    return {
        "worker": found["command"],
        **{probe: found[probe]["exec"]["command"] for probe in probes},
        "preStop": [word.strip('"') for word in hook[2].removeprefix("exec ").split()],
    }


@pytest.mark.parametrize("lane", LANES)
def test_the_commands_are_those_of_celery_lanes(lane):
    """With options that there are; and the worker has the name that preStop drains."""
    for what, words in commands(lane).items():
        assert words[:4] == ["celery", "-A", "examples.tools.app", "lanes"], what
        with celery_command.make_context("celery", words[1:4], resilient_parsing=True) as context:
            name, *arguments = words[4:]
            command = lanes_command.get_command(context, name)
            made = command.make_context(
                name, list(arguments), parent=context, resilient_parsing=True
            )
        if what == "preStop":
            assert made.params["workers"] == [f"{lane}@$HOSTNAME"]
        elif what == "worker":
            assert arguments[0] == lane
        else:
            probe = container(lane)[what]
            assert probe["timeoutSeconds"] > 2 * made.params["timeout"]


def test_the_environment_has_settings_of_this_package():
    """And a last grace in which something can be handed back, within what Kubernetes adds."""
    fields = {f"CELERY_BUDGETS_{name.upper()}" for name in Settings.__dataclass_fields__}
    names = [name for name in ENVIRONMENT["data"] if name.startswith("CELERY_")]
    assert set(names) <= fields
    assert LAST < parse_duration(ENVIRONMENT["data"]["CELERY_BUDGETS_STOP_GRACE"]) <= 2
    for found in map(container, LANES):
        (config, secret) = found["envFrom"]
        assert config["configMapRef"]["name"] == ENVIRONMENT["metadata"]["name"]
        assert secret["secretRef"]["name"] in GUIDE


def test_the_workers_are_found_by_their_labels():
    """By Prometheus and by the network policy, at the port that they have."""
    port = container("critic")["ports"][0]
    assert str(port["containerPort"]) == ENVIRONMENT["data"]["CELERY_BUDGETS_METRICS_PORT"]
    assert MONITOR["spec"]["podMetricsEndpoints"][0]["port"] == port["name"]
    assert POLICY["spec"]["ingress"][0]["ports"] == [{"port": port["name"]}]
    for selector in (MONITOR["spec"]["selector"], POLICY["spec"]["podSelector"]):
        for each in DEPLOYMENTS.values():
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert selector["matchLabels"].items() <= labels.items()
            assert labels[MONITOR["spec"]["jobLabel"]] == "celery"  # as CeleryWorkerSilent has it


def test_the_rules_are_those_of_the_example():
    assert prometheus_rule()["spec"] == yaml.safe_load(RULES.read_text(encoding="utf-8"))


def test_they_ask_for_metrics_that_there_are():
    """And for a gauge: its value is the load itself."""
    for name in ("keda.yml", "hpa.yml", "prometheus-adapter.yml"):
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert set(re.findall(r"celery_budgets_(\w+)", text)) == {"lane_load"}, name
    assert (METRICS["lane_load"].kind, METRICS["lane_load"].labels) == ("gauge", ("lane",))


def test_both_scale_the_same_deployment_in_the_same_bounds():
    """Never to nothing: a lane without a worker has no load."""
    keda, hpa = read("keda.yml")["spec"], read("hpa.yml")["spec"]
    names = {each["metadata"]["name"] for each in DEPLOYMENTS.values()}
    assert keda["scaleTargetRef"]["name"] == hpa["scaleTargetRef"]["name"] in names
    assert keda["minReplicaCount"] == hpa["minReplicas"] == 1
    assert keda["maxReplicaCount"] == hpa["maxReplicas"]
    assert all("replicas" not in each["spec"] for each in DEPLOYMENTS.values())


def test_the_guide_explains_each_key():
    """Of the objects that are this package's business, each word that somebody has to decide on."""
    keys = set()

    def collect(value):
        if isinstance(value, dict):
            keys.update(value)
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    spec = DEPLOYMENTS["critic"]["spec"]
    collect({"strategy": spec["strategy"], "template": spec["template"]["spec"]})
    #: Said by the one around them, or by every manual of Kubernetes.
    plain = {"name", "exec", "type", "rollingUpdate", "template", "mountPath", "configMapRef",
             "secretRef", "containers", "image", "capabilities", "drop", "cpu", "memory",
             "containerPort", "securityContext", "seccompProfile", "runAsUser", "volumes",
             "lifecycle", "requests"}  # fmt: skip
    assert {key for key in keys - plain if f"`{key}" not in GUIDE} == set()
