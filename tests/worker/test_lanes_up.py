"""`celery lanes up` with real workers on a broker of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from celery_budgets.embedded import EmbeddedBroker
from tests.support.apps import Servers, fresh_app
from tests.support.places import ROOT
from tests.support.programs import processes_with
from tests.support.waiting import wait_until

APP = "tests.worker.lanes_app"
START_SECONDS = 40.0


class Up:
    """A running `celery lanes up`, as a terminal would see it."""

    def __init__(self, log: Path, *arguments: str, **environment: str) -> None:
        self.log_path = log
        # Every process below inherits it, so that none of them can hide.
        self.mark = f"lanes-up-{os.getpid()}-{time.monotonic_ns()}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CELERY_")}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", APP, "lanes", "up", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                # A killed broker leaves its directory behind: in the test's own one.
                env=clean
                | {"BUDGETS_TEST_MARK": self.mark, "TMPDIR": str(log.parent)}
                | environment,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def lines(self, *texts: str) -> list[str]:
        return [line for line in self.log.splitlines() if all(text in line for text in texts)]

    def wait_lines(self, *texts: str, times: int = 1, timeout: float = START_SECONDS) -> None:
        def enough() -> bool:
            alive = self.process.poll() is None
            return len(self.lines(*texts)) >= times or (not alive and self._fail(texts))

        wait_until(enough, f"{times} x {texts}", timeout=timeout, detail=lambda: self.log[-6000:])

    def _fail(self, texts: tuple[str, ...]) -> bool:
        raise AssertionError(f"ended with {self.process.returncode} before {texts}\n{self.log}")

    def wait_ready(self) -> None:
        for lane in ("quick", "slow"):
            self.wait_lines(f"{lane}@", "ready.")

    def servers(self) -> Servers:
        """The addresses that it tells for a second terminal."""
        told = dict(re.findall(r"export (CELERY_\w+)=(\S+)", self.log))
        return Servers(broker=told["CELERY_BROKER_URL"], backend=told["CELERY_RESULT_BACKEND"])

    def worker_pid(self, lane: str) -> int:
        """Process id of the lane's worker main process."""
        for child in psutil.Process(self.process.pid).children():
            if f"{lane}@%h" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                return child.pid
        raise AssertionError(f"no worker of {lane}\n{self.log}")

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal sends it to every process of the foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_exit(self, timeout: float = 30.0) -> int:
        wait_until(
            lambda: self.process.poll() is not None,
            "lanes up ends",
            timeout=timeout,
            detail=lambda: self.log[-6000:],
        )
        return self.process.returncode

    def wait_nothing_left(self, timeout: float = 15.0) -> None:
        wait_until(
            lambda: not processes_with(self.mark),
            "no process is left",
            timeout=timeout,
            detail=lambda: "\n".join(map(str, processes_with(self.mark))),
        )


@pytest.fixture
def up(tmp_path) -> Iterator[Up]:
    running: list[Up] = []

    def start(*arguments: str, **environment: str) -> Up:
        running.append(Up(tmp_path / f"up-{len(running)}.log", *arguments, **environment))
        return running[-1]

    yield start
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        for process in processes_with(each.mark):
            process.kill()


@contextmanager
def calls_to(servers: Servers):
    """The app of the workers, for a second terminal."""
    with fresh_app(APP, servers, {}) as module:
        yield module


def test_up_serves_every_lane_and_ctrl_c_stops_all(up):
    """Calls of both lanes come back; Ctrl-C reaches only the supervisor, which asks the rest."""
    running = up("--embedded-broker")
    running.wait_ready()
    with calls_to(running.servers()) as module:
        pids = {module.pid.delay().get(timeout=10) for _ in range(4)}
        assert module.nap.delay(0).get(timeout=10) == 0
    quick = psutil.Process(running.worker_pid("quick"))
    assert pids <= {child.pid for child in quick.children()}
    assert running.lines("quick |", "concurrency: 2"), running.log
    assert running.lines("slow  |", "concurrency: 1"), running.log
    assert "\x1b[" not in running.log
    running.interrupt()
    assert running.wait_exit() == 0, running.log
    for lane in ("quick", "slow "):
        assert running.lines(lane, "Warm shutdown")
        assert running.lines(lane, "worker ended with exit code 0")
    running.wait_nothing_left()


@pytest.mark.slow
def test_options_after_two_dashes_reach_each_worker(up):
    """Here: events on, and a pool of threads, which says its name and has no processes."""
    running = up("--embedded-broker", "--", "-E", "-P", "threads")
    running.wait_ready()
    for lane in ("quick", "slow "):
        assert running.lines(f"{lane} |", "(thread)"), running.log
        assert running.lines(f"{lane} |", "task events: ON"), running.log
    with calls_to(running.servers()) as module:
        assert module.pid.delay().get(timeout=10) == running.worker_pid("quick")
    running.interrupt()
    assert running.wait_exit() == 0, running.log
    running.wait_nothing_left()


@pytest.mark.slow
def test_a_running_call_may_end_and_a_second_ctrl_c_kills_it(up):
    """First warm, then hard: code 1, and no process left, not even the broker."""
    running = up("--embedded-broker", "--lane", "slow")
    running.wait_lines("slow@", "ready.")
    with calls_to(running.servers()) as module:
        first, second = module.nap.delay(0.5), module.nap.delay(55)
        assert first.get(timeout=10) == 0.5
        running.wait_lines("Task nap", second.id, "received")
        # Received is not begun: a warm stop would hand it back and be over.
        wait_until(lambda: _is_busy(module), "the nap began")
    running.interrupt()
    running.wait_lines("slow |", "Warm shutdown")
    assert running.process.poll() is None
    running.interrupt()
    assert running.wait_exit(timeout=10) == 1, running.log
    assert running.lines("lanes |", "all workers stopped, not all by themselves")
    running.wait_nothing_left()


def _is_busy(module) -> bool:
    active = module.app.control.inspect(timeout=0.5).active() or {}
    return any(calls for calls in active.values())


@pytest.mark.slow
def test_sigterm_waits_for_the_running_call(up):
    """What a service manager sends: the call ends, its result is stored, code 0."""
    with EmbeddedBroker() as broker:
        servers = Servers(broker.url(0), broker.url(1))
        running = up("--lane", "slow", **servers.environment)
        running.wait_lines("slow@", "ready.")
        with calls_to(servers) as module:
            call = module.nap.delay(2)
            wait_until(lambda: _is_busy(module), "the nap began")
            running.process.terminate()
            assert running.wait_exit() == 0, running.log
            assert call.get(timeout=1) == 2
    running.wait_nothing_left()


@pytest.mark.slow
def test_a_killed_worker_is_started_again(up):
    """The other lane's worker is left alone, and the lane serves as before."""
    running = up("--embedded-broker")
    running.wait_ready()
    killed, other = running.worker_pid("quick"), running.worker_pid("slow")
    os.kill(killed, signal.SIGKILL)
    running.wait_lines("quick |", "worker was killed by SIGKILL", "starts again in 1 s (attempt 2)")
    running.wait_lines("quick@", "ready.", times=2)
    assert running.worker_pid("quick") != killed
    assert running.worker_pid("slow") == other
    with calls_to(running.servers()) as module:
        assert module.pid.delay().get(timeout=10) != killed
    running.interrupt()
    assert running.wait_exit() == 0
    running.wait_nothing_left()


@pytest.mark.slow
def test_workers_and_broker_do_not_outlive_a_killed_supervisor(up):
    """SIGKILL leaves nobody to stop them: their leashes do."""
    running = up("--embedded-broker")
    running.wait_ready()
    assert len(processes_with(running.mark)) > 4
    running.process.kill()
    running.process.wait()
    running.wait_nothing_left(timeout=20)


@pytest.mark.slow
def test_workers_of_a_killed_supervisor_end_their_calls(up):
    """They leave warmly, though nobody reads their output any more."""
    with EmbeddedBroker() as broker:
        servers = Servers(broker.url(0), broker.url(1))
        running = up(**servers.environment)
        running.wait_ready()
        with calls_to(servers) as module:
            call = module.nap.delay(15)  # longer than a guard waits for other programs
            wait_until(lambda: _is_busy(module), "the nap began")
            running.process.kill()
            running.process.wait()
            assert call.get(timeout=30) == 15
        running.wait_nothing_left()


@pytest.mark.slow
def test_a_reload_loses_no_call_and_reads_the_file_again(up, tmp_path):
    """At SIGHUP, one worker after the other, while calls come."""
    file = tmp_path / "lanes.toml"
    file.write_text('[lanes.slow]\npool = "threads"\n')
    with EmbeddedBroker() as broker:
        servers = Servers(broker.url(0), broker.url(1))
        running = up("--file", str(file), "--loglevel", "WARNING", **servers.environment)
        running.wait_lines("lanes |", "2 of 2 workers ready")
        before = {lane: running.worker_pid(lane) for lane in ("quick", "slow")}
        with calls_to(servers) as module:
            nap = module.nap.delay(3)
            results = [module.pid.delay()]
            file.write_text("[lanes.quick]\nreplicas = 2\nconcurrency = 1\n")
            os.kill(running.process.pid, signal.SIGHUP)
            while not running.lines("lanes |", "reloaded"):
                results.append(module.pid.delay())
                results[-1].get(timeout=10)  # at each instant somebody serves the lane
            assert nap.get(timeout=20) == 3
            assert all(result.get(timeout=10) for result in results)
            running.wait_lines("replaced worker ended with exit code 0", times=2)
            running.wait_lines("lanes |", "3 of 3 workers ready")
            assert not any(psutil.pid_exists(pid) for pid in before.values())
            file.write_text("[lanes.quack]")
            os.kill(running.process.pid, signal.SIGHUP)
            running.wait_lines("lanes |", "not reloaded", "did you mean 'quick'")
            assert module.pid.delay().get(timeout=10)
        running.process.terminate()
        assert running.wait_exit() == 0, running.log
    running.wait_nothing_left()


@pytest.mark.slow
def test_a_worker_that_refuses_to_start_says_why(up, redis_url):
    """Here: a visibility timeout below the hard limit of the lane. It is tried again, visibly."""
    servers = Servers(redis_url, redis_url)
    kombu = {"CELERY_BUDGETS_REDIS_TRANSPORT": "kombu", "LANES_APP_VISIBILITY": "60"}
    running = up("--lane", "slow", **kombu, **servers.environment)
    running.wait_lines("slow |", "refused to start", "visibility timeout", "attempt 2")
    running.wait_lines("slow |", "refused to start", "starts again in 2 s (attempt 3)")
    running.interrupt()
    assert running.wait_exit() == 0
    running.wait_nothing_left()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no broker is configured"),
        (["--embedded-broker", "--lane", "quik"], "did you mean 'quick'?"),
    ],
)
def test_what_cannot_work_ends_at_once(up, arguments, message):
    """Code 1, one message, nothing started."""
    running = up(*arguments)
    assert running.wait_exit() == 1
    assert message in running.log
    assert "Traceback" not in running.log
