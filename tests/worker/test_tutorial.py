"""The tutorial, followed: its program, its commands and its sessions, with what each prints."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.pages import PAGES
from tests.support.places import ROOT
from tests.support.waiting import wait_until

PAGE = PAGES["tutorial.md"]
EXPORT = re.compile(r"export (CELERY_\w+)=(\S+)")


def pattern(line):
    """Return what *line* of the page stands for: `...` anything, spaces any, numbers their kind."""
    parts = [re.sub(r"(?:\\?\s)+", r"\\s+", re.escape(part.strip())) for part in line.split("...")]
    return r".*".join(parts).strip()


def shown_after(command):
    """Return the lines that the page shows after *command*."""
    for block in PAGE.of("console"):
        before, found, after = block.text.partition(f"$ {command}\n")
        if found and (not before or before.endswith("\n")):
            return after.partition("\n$ ")[0].splitlines()
    raise AssertionError(command)


def assert_printed(lines, printed):
    """Each line of the page in order; frames of tables and what is `...` may stand between."""
    plain = re.sub(r"[┃│━─┏┓┗┛┡┩└┘┌┐├┤┳┻╇┴╪]", " ", printed)
    at = 0
    for line in lines:
        if line.strip("."):
            found = re.compile(pattern(line)).search(plain, at)
            assert found, f"{line!r} is not in what follows of\n{printed}"
            at = found.end()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with the tutorial's program."""
    path = tmp_path_factory.mktemp("tutorial")
    (path / "tools.py").write_text(PAGE.of("python")[0].text)
    return path


@pytest.fixture(scope="module")
def up(directory):
    """The log file of `lanes up`, which runs, and the environment of a second terminal."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("CELERY_")
    } | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    log = directory / "up.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tools", "lanes", "up", "--embedded-broker"],
            cwd=directory, env=environment, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_until(
            lambda: log.read_text().count(" ready.") == 2, "both lanes are served",
            timeout=60, detail=log.read_text,
        )  # fmt: skip
        yield log, environment | dict(EXPORT.findall(log.read_text()))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def run(directory, environment, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["lanes", "lanes check --no-broker"])
def test_what_is_there_before_a_worker_starts(directory, command):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = run(directory, environment, "-m", "celery", "-A", "tools", *command.split())
    assert done.returncode == 0, done.stderr
    assert_printed(shown_after(f"celery -A tools {command}"), done.stdout)


@pytest.mark.slow
def test_calls_are_killed_and_can_be_looked_at(directory, up):
    """Sessions in Python in their order, by doctest; then the log, and the status."""
    log, environment = up
    assert_printed(shown_after("celery -A tools lanes up --embedded-broker")[:3], log.read_text())
    calls, *later = [block.text for block in PAGE.of("pycon")]
    sessions = {"calls": "".join([calls, *later[:-1]]), "statistics": later[-1]}
    for name, text in sessions.items():
        (directory / f"{name}.txt").write_text(text)
        flags = ["-o", "ELLIPSIS", "-o", "NORMALIZE_WHITESPACE"]
        done = run(directory, environment, "-m", "doctest", *flags, f"{name}.txt")
        assert done.returncode == 0, done.stdout + done.stderr + log.read_text()
    (shown,) = PAGE.of("text")
    for lane in ("quick", "reports"):
        lines = [line for line in shown.text.splitlines() if line.startswith(lane)]
        assert_printed(lines, log.read_text())
    done = run(directory, environment, "-m", "celery", "-A", "tools", "lanes", "status")
    assert done.returncode == 0, done.stderr
    assert_printed(shown_after("celery -A tools lanes status"), done.stdout)


def test_it_is_the_program_and_the_output_of_one_install():
    """The extra that it has its reader install exists, and each command stands in one block."""
    assert PAGE.typed[0] == "pip install 'celery-budgets[embedded]'"
