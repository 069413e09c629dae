"""``python -m examples.tools`` end to end: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.apps import Servers
from tests.support.places import ROOT
from tests.support.programs import fetch, processes_with
from tests.support.waiting import wait_until

#: Five lanes of up to 16 processes on a machine that others use too.
PATIENCE = 120.0
STOP_SECONDS = 30.0
#: Python ends itself by the signal where Ctrl-C came inside an exec(), as imports have some.
INTERRUPTED = {130, -signal.SIGINT}


class Demo:
    """One run of the demo in a session of its own, its output in a file."""

    def __init__(self, output: Path, *arguments: str, **environment: str) -> None:
        self.mark = f"demo-of-test-{uuid.uuid4().hex}"
        self.output = output
        self.log_path = output.with_suffix(".log")
        surroundings = {
            name: value
            for name, value in os.environ.items()
            if name not in {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"}
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "examples.tools", "--output", str(output), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=surroundings | {"DEMO_TEST": self.mark, "COLUMNS": "100"} | environment,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout: float = PATIENCE) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout:g} s\n{self.text}") from None

    def wait_for(self, sign: str) -> None:
        """Wait until it has said *sign*; fail at once where it ends before."""

        def said() -> bool:
            ended = self.process.poll() is not None
            assert sign in self.text or not ended, f"ended before {sign!r}\n{self.text}"
            return sign in self.text

        wait_until(said, repr(sign), timeout=PATIENCE, detail=lambda: self.text)

    def left_over(self) -> list[list[str]]:
        """The command lines of the living processes that this run has started."""
        return [process.cmdline() for process in processes_with(self.mark)]

    def close(self) -> None:
        for process in processes_with(self.mark):
            process.kill()
        self.process.wait()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """``demo(*arguments)`` starts the demo; what is left of it is killed after the test."""
    runs: list[Demo] = []

    def start(*arguments: str, **environment: str) -> Demo:
        runs.append(Demo(tmp_path / f"run-{len(runs)}", *arguments, **environment))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six Python files: with findings, without, one broken, one whose name is no text."""
    directory = tmp_path_factory.mktemp("sources")
    (directory / "package").mkdir()
    (directory / "a.py").write_text("import os\n\ndef f(x=[]):\n    return x\n")
    (directory / "b.py").write_text("def broken(:\n")
    (directory / "c.py").write_bytes(b"# coding: latin-1\ns = '\xe9'\n")
    (directory / "package" / "d.py").write_text("")
    (directory / "package" / "not-among-the-first-five.py").write_text("")
    Path(os.fsdecode(os.fsencode(directory) + b"/caf\xe9.py")).write_text("x = 1\n")
    return directory


@pytest.fixture(scope="module")
def finished(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A run over five of the files that has ended by itself."""
    run = Demo(tmp_path_factory.mktemp("demo") / "run", str(sources), "--limit", "5")
    try:
        assert run.wait() == 0, run.text
        assert not run.left_over()
        yield run
    finally:
        run.close()


def test_every_call_has_an_outcome(finished: Demo) -> None:
    """Five files through three tools, their words, the forecast, three that misbehave."""
    text = finished.text
    assert "24 of 24 calls have an outcome" in text
    for lane, slots, calls, outcomes in (
        ("tool_call", 8, 8, "5 succeeded"),
        ("file_read", 16, 5, "5 succeeded"),
        ("file_write", 4, 5, "5 succeeded"),
        ("critic", 3, 5, "5 succeeded"),
        ("forecast_model", 1, 1, "1 succeeded"),
    ):
        assert re.search(rf"^ {lane} +{slots} +{calls} +{outcomes} .* MiB", text, re.M), text


def test_the_broken_budgets_are_shown(finished: Demo) -> None:
    """Each in its own row: how it ended, and what its caller got."""
    for tool, outcome, error in (
        ("wait_too_long", "soft_time_limit", "SoftTimeLimitExceeded"),
        ("ignore_soft_limit", "hard_time_limit", "TimeLimitExceeded"),
        ("allocate_everything", "memory_limit", "MemoryLimitExceeded"),
    ):
        assert re.search(rf"^ {tool} .* {outcome} .* {error}\b", finished.text, re.M), finished.text


def test_without_a_terminal_it_prints_plain_text(finished: Demo) -> None:
    """No control codes, no line that a terminal of 100 columns would cut, paths excepted."""
    assert "\x1b" not in finished.text
    lines = [line for line in finished.text.splitlines() if "/" not in line or "└" in line]
    assert max(map(len, lines)) <= 100
    assert finished.text.count("\n  forecast  ") == 1


def test_the_trace_of_one_file_is_one_tree(finished: Demo) -> None:
    """Each call stands below the one that sent it, over three workers."""
    branches = re.findall(r"^(?: {4})*└── (\S+) ", finished.text, re.M)
    assert branches == [
        "apply_async/fs_read",
        "worker_call:file_read",
        "apply_async/critics_run",
        "worker_call:critic",
        "apply_async/fs_write",
        "worker_call:file_write",
    ]


def test_each_file_has_its_report(finished: Demo) -> None:
    """In the tree of the sources, also where a name or a source is no text."""
    reports = finished.output / "reports"
    names = sorted(os.fsencode(path.relative_to(reports)) for path in reports.rglob("*.md"))
    assert names == [b"a.py.md", b"b.py.md", b"c.py.md", b"caf\xe9.py.md", b"package/d.py.md"]
    assert "2 findings: " in (reports / "a.py.md").read_text()
    assert "1 finding: 1 syntax-error." in (reports / "b.py.md").read_text()
    assert "Nothing to report." in (reports / "c.py.md").read_text()


@pytest.mark.slow
def test_a_given_broker_is_used(demo: Callable[..., Demo], sources: Path, servers: Servers) -> None:
    """CELERY_BROKER_URL alone is enough where the broker keeps results too."""
    run = demo(str(sources), "--limit", "1", CELERY_BROKER_URL=servers.broker)
    assert run.wait() == 0, run.text
    assert "broker of CELERY_BROKER_URL" in run.text
    assert servers.broker not in run.text, "the address has a password"


@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "process"])
@pytest.mark.parametrize(
    "sign",
    ["a server of its own", pytest.param("workers ready", marks=pytest.mark.slow)],
    ids=["workers-start", "calls-run"],
)
def test_ctrl_c_leaves_nothing_and_says_what_was_done(
    demo: Callable[..., Demo], sign: str, whole_group: bool
) -> None:
    """Ctrl-C of a terminal reaches the group, ``kill -INT`` only the process: both end all."""
    run = demo()
    run.wait_for(sign)
    if whole_group:
        os.killpg(run.process.pid, signal.SIGINT)
    else:
        run.process.send_signal(signal.SIGINT)
    assert run.wait(STOP_SECONDS) in INTERRUPTED, run.text
    assert run.left_over() == []
    assert "Traceback" not in run.text
    assert "interrupted after" in run.text
    assert re.search(r"no call was sent|\d+ of \d+ calls have ended", run.text)


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(demo: Callable[..., Demo]) -> None:
    """It kills the workers, and the run ends only after they have."""
    run = demo()
    run.wait_for("workers ready")
    run.process.send_signal(signal.SIGINT)
    run.wait_for("stopping the workers")
    run.process.send_signal(signal.SIGINT)
    assert run.wait(STOP_SECONDS) in INTERRUPTED, run.text
    assert run.left_over() == []
    assert "Traceback" not in run.text


@pytest.mark.slow
def test_a_worker_that_refuses_ends_the_run_with_its_log(
    demo: Callable[..., Demo], sources: Path
) -> None:
    """The end of the worker's log is shown, and the exit code is 1."""
    limits = {"CELERY_BUDGETS_MAX_RSS": "20MiB", "CELERY_BUDGETS_RSS_WARNING": "10MiB"}
    run = demo(str(sources), **limits)
    assert run.wait() == 1, run.text
    assert re.search(r"failed after .*: the worker of lane '\w+' ended after", run.text)
    assert "max_rss 20 MiB is below what the worker takes" in run.text
    assert "Traceback" not in run.text
    assert run.left_over() == []


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["nowhere"], {}, "nowhere is not a directory"),
        (["empty"], {}, "there is no Python file below "),
        (["--limit", "0"], {}, "--limit 0: give 1 or more"),
        (["examples"], {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}, "does not answer"),
        (["examples"], {"CELERY_BUDGETS_TIMEOUT": "soon"}, "'soon' is not a duration"),
    ],
)
def test_what_cannot_work_is_one_clear_message(
    demo: Callable[..., Demo],
    tmp_path: Path,
    arguments: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    """No process is started, and there is no traceback."""
    if arguments == ["empty"]:
        (tmp_path / "empty").mkdir()
        arguments = [str(tmp_path / "empty")]
    run = demo(*arguments, **environment)
    assert run.wait() in {1, 2}
    assert message in run.text
    assert "Traceback" not in run.text


@pytest.mark.slow
def test_with_web_the_page_stays_until_ctrl_c(demo: Callable[..., Demo], sources: Path) -> None:
    """With its address from the start; then the results, and nothing is left."""
    run = demo(str(sources), "--limit", "2", "--web")
    run.wait_for("The lanes are at http://127.0.0.1:")
    run.wait_for("the page stays open")
    address, token = re.search(r"(http://\S+/)\?(token=\S+)", run.text).groups()
    assert '"file_read"' in fetch(f"{address}lanes.json?{token}")
    run.process.send_signal(signal.SIGINT)
    assert run.wait(STOP_SECONDS) == 0, run.text
    assert "calls have an outcome" in run.text
    assert not run.left_over()
