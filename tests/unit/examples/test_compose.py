"""docker-compose.yml and what it mounts and builds.

Files that nobody runs rot, and no Docker engine is at hand: so the file is held against a
schema, against the lanes, against celery's own command line and against the files it names.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from celery.bin.worker import worker as worker_command

from celery_budgets.cli.health import command as health
from celery_budgets.model.lanes import DEFAULT_LANES, Lanes
from celery_budgets.units import parse_duration, parse_size
from tests.support.places import ROOT

LANES = Lanes(DEFAULT_LANES)
SCHEMA = json.loads((Path(__file__).parent / "compose.schema.json").read_text())
OBSERVABILITY = ROOT / "examples" / "observability"
#: ${NAME}, ${NAME:-default} and ${NAME:?message}; $$ is a dollar.
VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<how>[-?])(?P<rest>[^}]*))?\}")


def interpolate(value: Any, variables: dict[str, str]) -> Any:
    """Return *value* with its variables filled in, as compose does it."""
    if isinstance(value, dict):
        return {key: interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match["name"] in variables:
            return variables[match["name"]]
        if match["how"] == "-":
            return match["rest"]
        raise KeyError(f"{match['name']} is required: {match['rest']}")

    return VARIABLE.sub(fill, value)


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    """The file as it stands, anchors merged."""
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def compose(raw) -> dict[str, Any]:
    """The file with the variables of `.env` filled in."""
    variables = {"REDIS_PASSWORD": "red1s", "FLOWER_USER": "ada", "FLOWER_PASSWORD": "fl0wer"}
    return interpolate(raw, variables)


@pytest.fixture(scope="module")
def workers(compose) -> dict[str, dict[str, Any]]:
    """The worker services by lane."""
    return {
        service["environment"]["LANE"]: service
        for service in compose["services"].values()
        if "LANE" in service.get("environment", {})
    }


def test_it_follows_the_schema(compose):
    """Every key, duration, size, port and volume."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(compose, SCHEMA, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("service", "key", "value"),
    [
        ("redis", "restrat", "always"),
        ("redis", "restart", "sometimes"),
        ("redis", "image", "redis:"),
        ("critic", "stop_grace_period", "460"),
        ("critic", "stop_grace_period", 460),
        ("critic", "mem_limit", "2 GiB"),
        ("critic", "depends_on", {"redis": {"condition": "healthy"}}),
        ("critic", "environment", ["LANE critic"]),
        ("flower", "ports", ["127.0.0.1:5555"]),
        ("flower", "ports", [5555]),
        ("flower", "healthcheck", {"test": ["curl", "-f"]}),
        ("flower", "healthcheck", {"test": "true", "intervall": "5s"}),
        ("otel-collector", "volumes", ["relative:path"]),
        ("otel-collector", "command", []),
    ],
)
def test_the_schema_sees_mistakes(compose, service, key, value):
    """A check that lets everything through is none."""
    broken = copy.deepcopy(compose)
    broken["services"][service][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_a_worker_service_for_each_default_lane(workers):
    """From one image, under one Dockerfile."""
    assert list(workers) == list(LANES)
    assert {service["image"] for service in workers.values()} == {"celery-budgets-example"}
    assert len({json.dumps(service["build"]) for service in workers.values()}) == 1


@pytest.mark.parametrize("lane", LANES.values(), ids=lambda lane: lane.name)
def test_the_worker_command_serves_its_lane(workers, lane):
    """Celery's own command line takes it; concurrency and prefetch are left to the lane."""
    words = shlex.split(workers[lane.name]["command"])
    assert words[:4] == ["celery", "-A", "examples.tools.app", "worker"]
    context = worker_command.make_context("worker", words[4:], resilient_parsing=True)
    assert context.args == []
    assert context.params["queues"] == [lane.queue]
    assert context.params["hostname"].startswith(f"{lane.name}@")
    assert context.params["concurrency"] is None
    assert context.params["task_events"], "Flower sees nothing without -E"


@pytest.mark.parametrize("lane", LANES)
def test_the_lane_of_each_worker_passes_the_check(workers, lane):
    """In the environment of the service; the broker's name is known to compose only."""
    service = workers[lane]
    check = ["lanes", "check", "--lane", lane, "--no-broker"]
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "examples.tools.app", *check],
        cwd=ROOT,
        env=os.environ | service["environment"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout


@pytest.mark.parametrize("lane", LANES.values(), ids=lambda lane: lane.name)
def test_each_worker_has_time_and_memory_for_its_lane(workers, lane):
    """A stop outlasts the hard limit; every slot may reach max_rss, beside the worker itself."""
    service = workers[lane.name]
    assert parse_duration(service["stop_grace_period"]) > lane.budget.hard_time_limit
    mem_limit = parse_size(service["mem_limit"].upper().replace("M", "MiB"))
    assert mem_limit == (lane.concurrency + 1) * lane.budget.max_rss


def test_every_service_comes_back_and_tells_its_health(compose):
    """The collector's image has nothing to ask with."""
    for name, service in compose["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert ("healthcheck" in service) == (name != "otel-collector"), name


def test_the_health_of_a_worker_is_asked_by_its_own_name(workers):
    """The shell in the container fills in lane and host name; celery knows the command."""
    for service in workers.values():
        words = shlex.split(service["healthcheck"]["test"])
        assert words[:3] == ["celery", "-A", "examples.tools.app"]
        assert words[3:5] == ["lanes", "health"]
        context = health.make_context("health", words[5:], resilient_parsing=True)
        assert context.params["workers"] == ["$LANE@$HOSTNAME"]
        assert context.params["timeout"] < parse_duration(service["healthcheck"]["timeout"])


def test_images_are_pinned(compose):
    """A version each, and not the latest."""
    for name, service in compose["services"].items():
        tag = service["image"].partition(":")[2]
        assert tag != "latest", name
        assert re.match(r"v?\d+\.\d+", tag) or service["image"] == "celery-budgets-example", name


def test_ports_are_open_on_loopback_only(compose):
    """Redis has none at all."""
    ports = {n: s["ports"] for n, s in compose["services"].items() if "ports" in s}
    assert set(ports) == {"flower", "jaeger", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for listed in ports.values() for port in listed)


@pytest.mark.parametrize("missing", ["REDIS_PASSWORD", "FLOWER_USER", "FLOWER_PASSWORD"])
def test_secrets_must_be_given(raw, missing):
    """There is no default password; .env.example names them all, empty."""
    given = {"REDIS_PASSWORD": "a", "FLOWER_USER": "b", "FLOWER_PASSWORD": "c"}
    del given[missing]
    with pytest.raises(KeyError, match=missing):
        interpolate(raw, given)
    assert f"{missing}=\n" in (ROOT / ".env.example").read_text()


def test_redis_has_a_password_and_keeps_its_data(compose):
    """An append-only file on a volume, and no eviction."""
    redis = compose["services"]["redis"]
    words = redis["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--requirepass"] == redis["environment"]["REDISCLI_AUTH"] == "red1s"
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert redis["volumes"] == ["redis-data:/data"]
    assert "redis-data" in compose["volumes"]


def test_flower_asks_who_is_there(compose):
    """Flower reads its options from FLOWER_*, and fails on one that it does not know."""
    options = pytest.importorskip("flower.options")
    flower = compose["services"]["flower"]
    assert flower["environment"]["FLOWER_BASIC_AUTH"] == "ada:fl0wer"
    for name in flower["environment"]:
        if name.startswith("FLOWER_"):
            assert name.removeprefix("FLOWER_").lower() in options.options


def test_what_is_mounted_built_and_waited_for_exists(compose):
    """Files below the checkout, volumes and services by name."""
    services = compose["services"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            known = (ROOT / source).exists() if "/" in source else source in compose["volumes"]
            assert known, (name, volume)
        assert set(service.get("depends_on", [])) <= set(services), name
        if "build" in service:
            assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_the_collector_hands_on_what_the_workers_send(compose, workers):
    """The addresses meet: workers to collector, collector to Jaeger."""
    config = yaml.safe_load((OBSERVABILITY / "otel-collector.yaml").read_text())
    for pipeline in config["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(config[kind]), kind
    assert config["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(":4318")
    for service in workers.values():
        endpoint = service["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
        assert endpoint == "http://otel-collector:4318"
    assert config["exporters"]["otlphttp/jaeger"]["endpoint"] == "http://jaeger:4318"
    mounted = compose["services"]["otel-collector"]["volumes"][0].split(":")[1]
    assert compose["services"]["otel-collector"]["command"] == f"--config={mounted}"


def test_prometheus_asks_every_worker(compose, workers):
    """At the port that its service sets, on an address that another container reaches."""
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (group,) = job["static_configs"]
    ports = {service["environment"]["CELERY_BUDGETS_METRICS_PORT"] for service in workers.values()}
    hosts = {service["environment"]["CELERY_BUDGETS_METRICS_HOST"] for service in workers.values()}
    assert hosts == {"0.0.0.0"}
    services = [
        name for name, service in compose["services"].items() if service in workers.values()
    ]
    assert group["targets"] == [f"{name}:{port}" for name in services for port in ports]


def test_prometheus_and_grafana_find_what_is_mounted(compose):
    """Rules, data source and dashboard by the paths inside their containers."""
    prometheus, grafana = compose["services"]["prometheus"], compose["services"]["grafana"]
    inside = [volume.split(":")[1] for volume in prometheus["volumes"]]
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    assert prometheus["command"][0] == f"--config.file={inside[0]}"
    assert config["rule_files"] == [inside[1]]
    mounted = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    folder = OBSERVABILITY / "grafana"
    (provider,) = yaml.safe_load((folder / "dashboards.yml").read_text())["providers"]
    (source,) = yaml.safe_load((folder / "datasources.yml").read_text())["datasources"]
    dashboard = mounted["./examples/observability/grafana/celery-lanes.json"]
    assert dashboard.rpartition("/")[0] == provider["options"]["path"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    for kind in ("datasources", "dashboards"):
        path = mounted[f"./examples/observability/grafana/{kind}.yml"]
        assert path.startswith(f"/etc/grafana/provisioning/{kind}/")


def test_the_dockerfile_copies_what_there_is():
    """Its own ignore file lets exactly these through."""
    dockerfile = (OBSERVABILITY / "Dockerfile").read_text()
    assert dockerfile.splitlines()[1] == "FROM python:3.12-slim"
    lines = [line.split() for line in dockerfile.splitlines()]
    copied = [source for line in lines if line[:1] == ["COPY"] for source in line[1:-1]]
    ignore = (OBSERVABILITY / "Dockerfile.dockerignore").read_text().splitlines()
    assert sorted(copied) == sorted(line[1:] for line in ignore if line.startswith("!"))
    assert all((ROOT / source).exists() for source in copied)
    assert "USER worker" in dockerfile
