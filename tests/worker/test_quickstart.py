"""``python -m examples.quickstart`` end to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import psutil

from tests.support.places import ROOT
from tests.support.programs import processes_with
from tests.support.waiting import wait_until

TASKS = ROOT / "examples" / "quickstart" / "tasks.py"
PATIENCE = 60.0


def start(log_path: Path, mark: str) -> subprocess.Popen[bytes]:
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "examples.quickstart"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"QUICKSTART_TEST": mark},
            cwd=ROOT,
            start_new_session=True,
        )


def test_it_prints_what_the_tools_return(tmp_path: Path) -> None:
    """Worker command, two results, the worker's own count; then no process is left."""
    mark = f"quickstart-of-test-{uuid.uuid4().hex}"
    log_path = tmp_path / "log"
    code = start(log_path, mark).wait(PATIENCE)
    text = log_path.read_text()
    assert code == 0, text
    size, lines = TASKS.stat().st_size, TASKS.read_text().count("\n")
    first, *rest = text.splitlines()
    assert first == "$ celery -A examples.quickstart.tasks worker -Q file_read"
    assert rest[1] == repr({"bytes": size, "lines": lines})
    assert rest[3] == repr(max(map(str.strip, TASKS.read_text().split("\n")), key=len))
    assert rest[4].startswith("lane file_read: 2 succeeded, the longest call took 0.")
    assert processes_with(mark) == []


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    """Interrupted while its worker starts, it ends worker and server."""
    mark = f"quickstart-of-test-{uuid.uuid4().hex}"
    log_path = tmp_path / "log"
    process = start(log_path, mark)
    wait_until(
        lambda: any("worker" in other.cmdline() for other in processes_with(mark)),
        "the worker has been started",
        timeout=PATIENCE,
        detail=log_path.read_text,
    )
    # One connection to publish, one for results: Celery has imported all that a call needs. While
    # a module makes code as it loads, as one with dataclasses, Ctrl-C ends Python by the signal
    # itself (Py_RunMain, exit_sigint), which is 130 to a shell only.
    wait_until(
        lambda: len(psutil.Process(process.pid).net_connections()) >= 2,
        "it waits for its first call",
        timeout=PATIENCE,
        detail=log_path.read_text,
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130, log_path.read_text()
    assert "interrupted; worker and server have ended" in log_path.read_text()
    assert processes_with(mark) == []


def test_the_program_is_short() -> None:
    """What a new user reads first fits on a small screen."""
    assert len(TASKS.read_text().splitlines()) <= 25
