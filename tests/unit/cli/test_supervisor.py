"""The supervisor of `celery lanes up`, with small programs in place of workers."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import contextmanager

import psutil
import pytest

from celery_budgets.cli.supervised import LONGEST_LINE, Backoff
from celery_budgets.cli.supervisor import Supervisor, stopped_by_signals
from celery_budgets.errors import ConfigurationError
from tests.support.waiting import wait_until

#: Says that it is there, and ends warmly.
POLITE = "import time; print('pid', os.getpid(), flush=True); time.sleep(60)"
#: As above, but SIGTERM does not end it.
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {POLITE}"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os; {code}"]


class Stage:
    """A supervisor in a thread, and everything it said."""

    def __init__(self, **programs: str) -> None:
        self.said: list[tuple[str, str]] = []
        self.code: int | None = None
        self.supervisor = Supervisor(
            {name: python(code) for name, code in programs.items()},
            say=lambda name, line: self.said.append((name, line)),
            backoff=lambda: Backoff(first=0.05, longest=0.2, reset_after=30),
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.code = self.supervisor.run()

    @property
    def text(self) -> str:
        return "\n".join(f"{name}: {line}" for name, line in self.said)

    def pids(self, name: str) -> list[int]:
        """The process ids that worker *name* has told, over all its starts."""
        return [int(line[4:]) for who, line in list(self.said) if (who, line[:4]) == (name, "pid ")]

    def wait_said(self, text: str, *, times: int = 1) -> None:
        wait_until(lambda: self.text.count(text) >= times, repr(text), detail=lambda: self.text)

    def wait_end(self) -> int | None:
        self.thread.join(10)
        assert not self.thread.is_alive(), self.text
        return self.code


@contextmanager
def stage(**programs: str):
    running = Stage(**programs)
    running.thread.start()
    try:
        yield running
    finally:
        running.supervisor.stop()
        running.supervisor.stop()
        running.thread.join(10)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_each_line_comes_with_its_lane():
    """Standard output and standard error, whole lines, also the last one without an end."""
    with stage(a="os.write(2, b'first\\nsec'); os.write(1, b'ond\\r\\nlast')", b=POLITE) as running:
        running.wait_said("a: worker")
        running.wait_said("b: pid")
        lines = [line for name, line in running.said if name == "a"]
        assert lines[:3] == ["first", "second", "last"]


def test_a_line_without_end_is_shown_in_parts():
    """Its bytes are not kept for ever."""
    with stage(a=f"os.write(1, b'x' * {3 * LONGEST_LINE}); {POLITE}") as running:
        wait_until(
            lambda: sum(line.count("x") for _, line in list(running.said)) > LONGEST_LINE,
            "a part of the line",
        )


def test_bytes_that_are_no_text_are_shown_all_the_same():
    """A tool may print anything."""
    with stage(a="os.write(1, b'caf\\xe9\\n')") as running:
        running.wait_said("a: caf\N{REPLACEMENT CHARACTER}")


def test_one_stop_lets_all_end_by_themselves():
    """Code 0, and no process left."""
    with stage(a=POLITE, b=POLITE) as running:
        running.wait_said("pid", times=2)
        running.supervisor.stop()
        assert running.wait_end() == 0
        assert all(gone(pid) for name in "ab" for pid in running.pids(name))
    assert "a: worker was killed by SIGTERM" in running.text
    assert running.said[-1] == ("", "all workers stopped")


def test_a_second_stop_kills():
    """Code 1: the stubborn one had to be killed; the polite one had ended."""
    with stage(a=STUBBORN, b=POLITE) as running:
        running.wait_said("pid", times=2)
        running.supervisor.stop()
        running.wait_said("b: worker was killed by SIGTERM")
        assert running.thread.is_alive()
        running.supervisor.stop()
        assert running.wait_end() == 1
        assert gone(running.pids("a")[0])
    assert running.said[-1] == ("", "all workers stopped, not all by themselves")


def test_two_stops_at_once_still_ask_first():
    """Ctrl-C pressed twice before the loop looks: asked, then killed."""
    with stage(a=STUBBORN) as running:
        running.wait_said("pid")
        running.supervisor.stop()
        running.supervisor.stop()
        assert running.wait_end() == 1
    assert running.text.index("stopping") < running.text.index("killing")


def test_a_worker_that_dies_is_started_again():
    """The other one is left alone."""
    with stage(a=POLITE, b=POLITE) as running:
        running.wait_said("pid", times=2)
        os.kill(running.pids("a")[0], signal.SIGKILL)
        wait_until(
            lambda: len(running.pids("a")) == 2, "a second start", detail=lambda: running.text
        )
        assert len(running.pids("b")) == 1
        running.supervisor.stop()
        assert running.wait_end() == 0
    assert "a: worker was killed by SIGKILL after" in running.text
    assert "starts again in 50 ms (attempt 2)" in running.text


def test_a_killed_worker_takes_its_children_along_before_the_next_start():
    """Else the old calls would run beside the new ones, above the lane's concurrency."""
    child = (
        "import subprocess; c = subprocess.Popen(['sleep', '60']); print('pid', c.pid, flush=True)"
    )
    with stage(a=f"{child}; {POLITE}") as running:
        wait_until(lambda: len(running.pids("a")) == 2, "worker and child")
        child_pid, worker_pid = running.pids("a")
        os.kill(worker_pid, signal.SIGKILL)
        wait_until(lambda: len(running.pids("a")) == 4, "both again", detail=lambda: running.text)
        assert gone(child_pid)


def test_a_worker_that_refuses_says_why_and_is_not_given_up():
    """The reason stands beside the pause, each time; the pauses grow to the longest."""
    refusal = "os.write(2, b'Error: lane is upside down\\n'); raise SystemExit(1)"
    with stage(a=refusal) as running:
        running.wait_said("refused to start (Error: lane is upside down)", times=5)
    for pause in ("50 ms (attempt 2)", "100 ms (attempt 3)", "200 ms (attempt 4)"):
        assert f"starts again in {pause}" in running.text
    assert "200 ms (attempt 5)" in running.text


def test_a_worker_waiting_for_its_next_start_does_not_hold_up_the_end():
    """Nothing runs, so one stop is enough."""
    with stage(a="raise SystemExit(3)") as running:
        running.wait_said("ended with exit code 3")
        running.supervisor.stop()
        assert running.wait_end() == 0


def test_an_output_that_is_closed_early_does_not_keep_the_loop_busy():
    """The worker lives on without saying more."""
    with stage(
        a=f"{POLITE.replace('time.sleep', 'os.close(1); os.close(2); time.sleep')}"
    ) as running:
        running.wait_said("pid")
        before = psutil.Process().cpu_times().user
        wait_until(lambda: not running.supervisor._selector.get_map(), "the output is let go")
        running.supervisor.stop()
        assert running.wait_end() == 0
        assert psutil.Process().cpu_times().user - before < 1


def test_backoff_doubles_and_starts_anew_after_a_long_life():
    """1, 2, 4, 8, 16, 30, 30 s; a worker that lived 60 s begins again with 1 s."""
    backoff = Backoff()
    assert [backoff.pause(0.5) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff.pause(59.9) == 30
    assert backoff.pause(60) == 1
    backoff.failures = 10_000
    assert backoff.pause(0) == 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_ask_for_a_stop(number):
    """The handlers of before are put back."""
    before = signal.getsignal(number)
    supervisor = Supervisor({}, say=lambda *_: None)
    with stopped_by_signals(supervisor):
        os.kill(os.getpid(), number)
        assert supervisor.run() == 0
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals(Supervisor({}, say=lambda *_: None)):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


#: Says so to its supervisor when it is ready, at once.
READY = f"open(os.environ['_CELERY_BUDGETS_READY'], 'w').close(); {POLITE}"


def reloads_to(running, **programs):
    """Have the supervisor of *running* run these at its next reload."""
    running.supervisor._reload = lambda _: ({n: python(c) for n, c in programs.items()}, {})


def test_a_reload_replaces_one_after_the_other():
    """Each predecessor runs until its successor is ready; what is not wanted any more ends."""
    with stage(a=READY, b=READY, c=READY) as running:
        running.wait_said("3 of 3 workers ready")
        reloads_to(running, a=READY, b=READY, d=READY)
        running.supervisor.reload()
        running.wait_said("lanes: reloaded".replace("lanes", ""))
        running.wait_said("replaced worker", times=3)
        running.wait_said("3 of 3 workers ready", times=1)
        assert all(gone(running.pids(name)[0]) for name in "abc")
        alive = {"a": running.pids("a")[1], "b": running.pids("b")[1], "d": running.pids("d")[0]}
        assert not any(gone(pid) for pid in alive.values())
        running.supervisor.stop()
        assert running.wait_end() == 0


def test_a_predecessor_stays_if_its_successor_does_not_become_ready():
    with stage(a=READY, b=READY) as running:
        running.wait_said("2 of 2 workers ready")
        reloads_to(running, a="raise SystemExit(1)", b=READY)
        running.supervisor.reload()
        running.wait_said("a: did not become ready")
        assert not any(gone(running.pids(name)[0]) for name in "ab")
        assert running.text.count("replaced worker") == 0


def test_a_slow_successor_leaves_no_gap():
    """Its predecessor is there for as long as it takes."""
    slow = f"import time; time.sleep(1); {READY}"
    with stage(a=READY) as running:
        running.wait_said("1 of 1 workers ready")
        reloads_to(running, a=slow)
        running.supervisor.reload()
        running.wait_said("reloading")
        (first,) = running.pids("a")
        wait_until(lambda: len(running.pids("a")) == 2 or gone(first), "the second runs")
        assert len(running.pids("a")) == 2
        running.wait_said("replaced worker")
        assert gone(first)


def test_what_cannot_be_planned_changes_nothing():
    def wrong(_):
        raise ConfigurationError("lanes.toml: no")

    with stage(a=READY) as running:
        running.wait_said("1 of 1 workers ready")
        running.supervisor._reload = wrong
        running.supervisor.reload()
        running.wait_said("not reloaded, everything stays as it is: lanes.toml: no")
        assert not gone(running.pids("a")[0])


def test_restarts_are_in_the_status_and_systemd_is_told(monkeypatch, tmp_path):
    """READY=1 when all are, once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with stage(a=READY, b=READY) as running:
            told = ""
            while "READY=1" not in told:
                told = systemd.recv(1000).decode()
            assert told == "READY=1\nSTATUS=2 of 2 workers ready"
            running.wait_said("a: pid")
            os.kill(running.pids("a")[0], signal.SIGKILL)
            running.wait_said("2 of 2 workers ready; restarts: a 1")
            running.supervisor.stop()
            assert running.wait_end() == 0
        while told != "STOPPING=1":
            told = systemd.recv(1000).decode()
