"""Programs on a leash: they end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from celery_budgets.child_process import BoundProcess
from tests.support.waiting import wait_until

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
)
STARTER = """
import sys, time
from celery_budgets.child_process import BoundProcess
print(BoundProcess([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def leashed():
    """Start a program; it is gone after the test."""
    started = []

    def start(*command: str, **options) -> BoundProcess:
        started.append(BoundProcess(command, **options))
        return started[-1]

    yield start
    for program in started:
        program.end_group()
        if program.stdout:
            program.stdout.close()


def group_of(pid: int) -> list[int]:
    """The living processes of the group *pid*."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == pid:
                found.append(process.pid)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def test_it_is_the_program_itself_that_has_the_pid(leashed):
    """No shell stands between: signals and exit codes are the program's."""
    program = leashed("/bin/sh", "-c", "exit 7")
    assert program.wait(5) == 7


def test_it_has_a_session_of_its_own(leashed):
    """The terminal's Ctrl-C goes to our session, so not to it."""
    program = leashed("sleep", "60")
    assert os.getsid(program.pid) == program.pid != os.getsid(0)


def test_arguments_arrive_as_they_are(leashed):
    """The shell does not read them."""
    program = leashed("printf", "%s|", "a b", "$HOME", "'\"", "", output=subprocess.PIPE)
    assert program.stdout.read() == b"a b|$HOME|'\"||"


def test_the_guard_is_no_child_of_the_program(leashed):
    """A worker that counts its children counts only its pool."""
    program = leashed("sleep", "60")
    wait_until(lambda: psutil.Process(program.pid).name() == "sleep", "the shell became sleep")
    assert psutil.Process(program.pid).children() == []


def test_end_lets_it_end_by_itself(leashed):
    """Nothing is left of its group, the guard included."""
    program = leashed("sleep", "60")
    assert program.end(grace=5)
    assert program.returncode == -signal.SIGTERM
    wait_until(lambda: group_of(program.pid) == [], "the group is gone")


def test_end_kills_what_does_not_end(leashed):
    """The answer says that it was not by itself."""
    program = leashed(
        sys.executable, "-c", f"{STUBBORN}; time.sleep(60)", output=subprocess.PIPE
    )  # fmt: skip
    assert program.stdout.readline() == b"1\n"
    assert not program.end(grace=0.2)
    assert program.returncode == -signal.SIGKILL


def test_ending_twice_is_harmless(leashed):
    """The second end must not hit another group that got the number meanwhile."""
    program = leashed("sleep", "60")
    program.end_group()
    program.end_group()
    assert program.end(grace=1)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_with_its_starter(how):
    """Whichever way the starter ends, also the one that it cannot see coming."""
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE) as starter:
        pid = int(starter.stdout.readline())
        assert pid in group_of(pid)
        starter.send_signal(how)
        starter.wait(5)
    wait_until(lambda: group_of(pid) == [], "program and guard are gone", timeout=15)


def test_the_parting_signal_can_be_chosen(leashed):
    """Closing the pipe by hand stands for the starter's end."""
    script = "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: exit(5))"
    program = leashed(
        *(sys.executable, "-c", f"{script}; print(1, flush=True); time.sleep(60)"),
        parting=signal.SIGUSR1,
        output=subprocess.PIPE,
    )
    assert program.stdout.readline() == b"1\n"
    program.stdin.close()
    assert program.wait(5) == 5
