"""A real Prometheus on the endpoints of real workers; rules and dashboard of the example on it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from celery_budgets.child_process import BoundProcess
from celery_budgets.telemetry.metrics import METRICS
from tests.support.places import ROOT
from tests.support.programs import fetch, fetch_json, free_port, program
from tests.support.waiting import wait_until
from tests.support.workers import RunningWorker
from tests.worker.metrics_app import CLOSED

APP = "tests.worker.metrics_app"
FOLDER = ROOT / "examples" / "observability"
RULES = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "grafana" / "celery-lanes.json").read_text())
#: The suffix that Prometheus' client gives a counter, and the one series of a histogram.
SUFFIXES = {"counter": "_total", "gauge": "", "histogram": "_bucket"}
#: What Grafana fills in.
GRAFANA = {
    "$__rate_interval": "30s", "$__range": "1m", "$job": "celery", "$lane": ".*", "$instance": ".*",
}  # fmt: skip
WORKER_ENVIRONMENT = {"CELERY_BUDGETS_METRICS_PORT": "0"}
#: The environment of each lane's worker.
WORKERS = {
    "quick": WORKER_ENVIRONMENT,
    "slow": WORKER_ENVIRONMENT,
    "closed": WORKER_ENVIRONMENT | CLOSED,
}


def metrics_address(worker: RunningWorker) -> str:
    line = worker.wait_for_log("budgets.metrics_served")
    return re.search(r"http://([\d.]+:\d+)/metrics", line)[1]


class Prometheus:
    """A running server that asks *targets* twice a second, with the example's rules."""

    def __init__(self, directory: Any, targets: list[str]) -> None:
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(FOLDER / "rules.yml")]
        config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log_path = directory / "log"
        command = [
            program("prometheus"),
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        with self.log_path.open("wb") as output:
            self.process = BoundProcess(command, parting=signal.SIGTERM, output=output)
        wait_until(self._is_ready, "Prometheus is ready", timeout=30, detail=self.log)

    def _is_ready(self) -> bool:
        try:
            return "Ready" in fetch(f"{self.url}/-/ready")
        except OSError:
            return False

    def log(self) -> str:
        return self.log_path.read_text()[-3000:]

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = fetch_json(f"{self.url}/api/v1/query", query=expression)
        assert answer["status"] == "success", (expression, answer)
        return answer["data"]["result"]

    def value(self, expression: str) -> float | None:
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None


@pytest.fixture(scope="module")
def scene(module_worker, load_module_app, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """Workers, calls of several ends, and a Prometheus that has seen them come."""
    program("prometheus")
    module = load_module_app(APP)
    workers = [module_worker(APP, "-Q", lane, env=env) for lane, env in WORKERS.items()]
    workers[-1].wait_for_log("budgets.gate_closed")
    server = Prometheus(
        tmp_path_factory.mktemp("prometheus"), [metrics_address(worker) for worker in workers]
    )
    try:
        call(module)
        wait_for_calls(server, 9)
        # Once more, so that every counter has risen before Prometheus' eyes.
        call(module)
        wait_for_calls(server, 18)
        yield SimpleNamespace(server=server, workers=workers, module=module)
    finally:
        server.process.end(grace=10)


def call(module: Any) -> None:
    results = [module.succeed.delay(), module.succeed.delay(), module.fail.delay()]
    results += [module.heed_soft_limit.delay(), module.ignore_soft_limit.delay()]
    results += [module.turned_away.delay(), module.throttled.delay()]
    rejected = module.reject.delay()  # has no result for anybody
    for result in results:
        result.get(timeout=20, propagate=False)
    rejected.forget()


def wait_for_calls(server: Prometheus, count: int) -> None:
    wait_until(
        lambda: server.value("sum(celery_budgets_calls_total)") == count,
        f"{count} calls in Prometheus",
        timeout=20,
        detail=lambda: str(server.query("celery_budgets_calls_total")),
    )


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_scraped(scene, name):
    """With the kind, the help and exactly the labels of the table."""
    metric = METRICS[name]
    full = f"celery_budgets_{name}"
    series = wait_until(
        lambda: scene.server.query(full + SUFFIXES[metric.kind]), f"{full} in Prometheus"
    )
    own = {"__name__", "job", "instance", *(["le"] if metric.kind == "histogram" else [])}
    for each in series:
        assert set(each["metric"]) - own == set(metric.labels)
    answer = fetch_json(f"{scene.server.url}/api/v1/metadata")["data"]
    # Prometheus 2 keeps a counter's metadata under its full name.
    (about,) = answer.get(full) or answer[f"{full}_total"]
    assert (about["type"], about["help"]) == (metric.kind, metric.help)


def test_the_numbers_are_those_of_the_calls(scene):
    """Each call once, by lane, task and outcome."""
    found = {
        (each["metric"]["task"].rpartition(".")[2], each["metric"]["outcome"]): each["value"][1]
        for each in scene.server.query("celery_budgets_calls_total")
    }
    assert found == {
        ("succeed", "succeeded"): "4",
        ("fail", "failed"): "2",
        ("reject", "rejected"): "2",
        ("throttled", "retried"): "2",
        ("throttled", "succeeded"): "2",
        ("heed_soft_limit", "soft_time_limit"): "2",
        ("ignore_soft_limit", "hard_time_limit"): "2",
        ("turned_away", "rejected"): "2",
    }
    value = scene.server.value
    assert value('sum(celery_budgets_time_limits_total{kind="soft"})') == 4
    assert value('celery_budgets_kills_total{lane="slow", reason="hard_time_limit"}') == 2
    assert value('celery_budgets_lane_limit{lane="quick"}') == 2
    # What never ran took no time.
    assert value("sum(celery_budgets_call_duration_seconds_count)") == 16
    of_api = '{limit="api", instance=~".+"}'
    assert value(f"sum(celery_budgets_limit_throttled_total{of_api})") == 2
    assert value(f"sum(celery_budgets_limit_wait_seconds_count{of_api})") == 8
    assert value(f"max(celery_budgets_limit_limit{of_api})") == 2
    assert value(f"sum(celery_budgets_limit_in_use{of_api})") == 0
    assert value('sum(celery_budgets_gate_state{state="open"})') == 2
    assert value('sum(celery_budgets_gate_state{state="paused"})') == 1
    assert value('celery_budgets_rejections_total{lane="closed", reason="max_worker_rss"}') == 2


def test_no_task_id_is_a_label(scene):
    """The number of series does not grow with the calls."""
    ours = '{__name__=~"celery_budgets_.+"}'
    answer = fetch_json(f"{scene.server.url}/api/v1/labels", **{"match[]": ours})
    known = {label for metric in METRICS.values() for label in metric.labels}
    assert set(answer["data"]) <= known | {"__name__", "instance", "job", "le"}


def test_the_endpoint_listens_on_loopback_unless_it_is_told_otherwise(scene, worker):
    """`budgets_metrics_host` is for containers, where the port is seen by others on purpose."""
    assert listening(scene.workers[0]) == {"127.0.0.1"}
    environment = WORKER_ENVIRONMENT | {"CELERY_BUDGETS_METRICS_HOST": "127.0.0.2"}
    elsewhere = worker(APP, "-Q", "quick", env=environment)
    address = metrics_address(elsewhere)
    assert listening(elsewhere) == {"127.0.0.2"}
    assert "celery_budgets_build_info" in fetch(f"http://{address}/metrics")


def listening(worker: RunningWorker) -> set[str]:
    connections = psutil.Process(worker.pid).net_connections("tcp")
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}


def test_a_port_that_is_taken_fails_no_worker(scene, worker):
    """It says so once, with the remedy, and takes calls as before."""
    taken = metrics_address(scene.workers[0]).rpartition(":")[2]
    second = worker(APP, "-Q", "quick", env={"CELERY_BUDGETS_METRICS_PORT": taken})
    line = second.wait_for_log("budgets.metrics_not_served", taken)
    assert "CELERY_BUDGETS_METRICS_PORT" in line


def test_the_rules_run_on_what_the_workers_say(scene):
    """No rule has an error; a real kill and a real rejection raise their alerts, and only those."""
    url = f"{scene.server.url}/api/v1/rules"

    def rules() -> list[dict[str, Any]]:
        return fetch_json(url)["data"]["groups"][0]["rules"]

    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()), "all rules have run")
    assert [rule["name"] for rule in rules()] == [
        rule.get("alert") or rule["record"] for rule in RULES
    ]
    states = {rule["name"]: rule["state"] for rule in rules() if rule["type"] == "alerting"}
    paused = states.pop("CeleryGatePaused")
    assert paused in ("pending", "firing")  # it fires after a minute
    assert {name for name, state in states.items() if state == "firing"} == {
        "CeleryHardTimeLimit",
        "CeleryRejections",
        "CeleryThrottled",
    }


def queries_of_dashboard() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def test_every_query_of_the_dashboard_has_an_answer(scene):
    """None has an error, and each finds data of the calls that were made."""
    for title, expression in queries_of_dashboard():
        for variable, value in GRAFANA.items():
            expression = expression.replace(variable, value)
        assert "$" not in expression, title
        wait_until(lambda asked=expression: scene.server.query(asked), f"data for {title!r}")


def test_the_dashboards_variables_have_values(scene):
    """Each is a label of a metric that there is, narrowed by the variables before it."""
    chosen = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "datasource":
            continue
        series, label = re.fullmatch(
            r"label_values\((.+), (\w+)\)", variable["definition"]
        ).groups()
        asked = series.replace("$job", "celery")
        answer = fetch_json(f"{scene.server.url}/api/v1/label/{label}/values", **{"match[]": asked})
        chosen[variable["name"]] = answer["data"]
    assert chosen["job"] == ["celery"]
    assert chosen["lane"] == ["closed", "quick", "slow"]
    assert sorted(chosen["instance"]) == sorted(map(metrics_address, scene.workers))
