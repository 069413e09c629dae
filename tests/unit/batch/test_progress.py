"""The progress bar, drawn where the test can read it."""

from __future__ import annotations

import io

from rich.console import Console

from celery_budgets.batch.progress import Progress, ProgressBar


def drawn(*progresses):
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with ProgressBar("reading", console) as bar:
        for progress in progresses:
            bar(progress)
    return console.file.getvalue()


def test_it_shows_what_a_batch_tells():
    text = drawn(Progress(1, 0, 8, 40), Progress(40, 2, 0, 40))
    assert "reading" in text
    assert "40/40" in text
    assert "2 failed, 0 in flight" in text


def test_it_needs_no_total():
    assert "12/?" in drawn(Progress(12, 0, 8, None))
