"""The README's first screen on a real worker: its output, and what a program asks the worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.support.pages import PAGES
from tests.support.places import ROOT
from tests.support.readme import blocks
from tests.support.waiting import wait_until


def test_the_worker_prints_what_the_readme_shows(worker, servers, tmp_path):
    """Each line in order; `...` stands for what was left out, and numbers may differ."""
    (tmp_path / "tools.py").write_text(blocks("python")[0].text)
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    shown = next(block for block in blocks("console") if "budgets.worker_started" in block.text)
    command, *lines = shown.text.splitlines()
    assert command == "$ celery -A tools worker -Q file_read -l INFO"
    running = worker("tools", "-Q", "file_read", env=path)
    (asking,) = (
        block for block in PAGES["guides/watch.md"].of("python")
        if "budgets.statistics()" in block.text
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "import tools\n"
         "print(tools.fs_read.delay(tools.__file__).get(timeout=30))\n" + asking.text],
        cwd=tmp_path, env=os.environ | servers.environment | path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + running.tail()
    size, calls, slots, queue, memory, silent = done.stdout.splitlines()
    assert int(size) == (tmp_path / "tools.py").stat().st_size
    assert calls.startswith("file_read {'succeeded': 1} ")
    assert slots == "file_read 0 of 16 and waiting 0"
    # Nothing waits at the broker, which the worker may not have asked yet.
    assert re.fullmatch(r"file_read (None None|0 0\.0) .+", queue)
    # The whole worker is measured once a second, by its gate: perhaps not yet.
    assert re.fullmatch(rf"{running.name}@\S+ \d+ (None None|\d+ \d+) open", memory)
    assert silent == "no answer from ()"
    pattern = re.compile(".*".join(filter(None, map(_pattern, lines))), re.DOTALL)
    wait_until(lambda: pattern.search(running.log), "the lines", detail=running.tail)


def _pattern(line):
    """Return the regular expression of one shown line; empty for `...` alone."""
    parts = [re.sub(r"\d+", r"\\d+", re.escape(part.strip())) for part in line.split("...")]
    return "[^\n]*".join(parts).removeprefix("[^\n]*").removesuffix("[^\n]*")
