"""The tools of the demo, called directly: what they forecast, read, write and show."""

from __future__ import annotations

import hashlib
import json
import os
from io import StringIO
from pathlib import Path

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from rich.console import Console

from celery_budgets.model.lanes import Lane
from celery_budgets.telemetry import attributes as names
from celery_budgets.telemetry.statistics import Statistics
from examples.tools import files, forecast, misbehave, report, traces
from examples.tools.interrupts import plain_interrupts


def test_forecast_beats_repeating_the_year_before() -> None:
    """Twelve months of 1960, less than half the error of the seasonal naive forecast."""
    result = forecast.forecast()
    assert len(result["forecast"]) == len(result["actual"]) == 12
    assert result["months"][0] == "1960-01"
    assert result["months"][-1] == "1960-12"
    assert result["baseline_mape"] == pytest.approx(0.0999, abs=0.0001)
    assert 0 < result["mape"] < result["baseline_mape"] / 2
    json.dumps(result)


def test_the_series_is_the_classic_one() -> None:
    """144 months, 104 to 622 thousand passengers, 40,363 in all."""
    values = [
        int(line.split(",")[1]) for line in forecast.AIRLINE_PASSENGERS.read_text().split()[1:]
    ]
    assert (len(values), min(values), max(values), sum(values)) == (144, 104, 622, 40363)


def test_forecast_continues_an_exact_pattern(tmp_path: Path) -> None:
    """A line plus a fixed season is forecast to the last digit."""
    season = [0, 5, -5, 20, 10, -20, 0, 5, -5, 20, 10, -20]
    path = tmp_path / "series.csv"
    rows = [f"m{i},{200 + 2 * i + season[i % 12]}" for i in range(60)]
    path.write_text("\n".join(["month,value", *rows]))
    result = forecast.forecast(path)
    assert result["seasonality"] == "additive"
    assert result["forecast"] == pytest.approx(result["actual"], abs=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [([5] * 35, "35 months; 36 are needed"), ([5] * 40 + [0], "all must be above 0")],
)
def test_forecast_refuses_a_series_it_cannot_learn(
    tmp_path: Path, values: list[int], message: str
) -> None:
    path = tmp_path / "series.csv"
    path.write_text("month,value\n" + "".join(f"m,{value}\n" for value in values))
    with pytest.raises(ValueError, match=message):
        forecast.forecast(path)


@pytest.mark.parametrize(
    ("data", "lines"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\nb", 2), (b"\n\n", 2)]
)
def test_read_counts_lines_and_hashes(tmp_path: Path, data: bytes, lines: int) -> None:
    """A last line without an end is a line."""
    path = tmp_path / "a"
    path.write_bytes(data)
    assert files.read(str(path)) == {
        "path": str(path),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "lines": lines,
    }


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    """Missing directories are made, an old file is replaced, and nothing else is left."""
    path = tmp_path / "below" / "report.md"
    assert files.write_atomically(path, "old") == 3
    assert files.write_atomically(path, "néw") == 4
    assert path.read_text(encoding="utf-8") == "néw"
    assert os.listdir(path.parent) == ["report.md"]


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(1), OSError("disk full"), MemoryError()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str
) -> None:
    """Whatever ends the write, the old file stands and no partial one is left."""
    path = tmp_path / "report.md"
    path.write_text("old")

    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr(files.os, step, interrupted)
    with pytest.raises(type(error)):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.md"]


def test_count_words_tells_the_most_frequent(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"The lane and the gate; the lane. \xff 12 x\n")
    counted = files.count_words(str(path), most_common=2)
    assert counted == {"path": str(path), "words": 7, "most_common": [("the", 3), ("lane", 2)]}


def test_python_files_come_nearest_first_without_foreign_ones(tmp_path: Path) -> None:
    """Environments, hidden directories, installed packages and dangling links are left out."""
    wanted = ["b.py", "z.py", "a/a.py", "a/b/c.py"]
    foreign = [".git/a.py", "a/__pycache__/a.py", "lib/site-packages/a.py", "env/lib/a.py"]
    for name in [*wanted, *foreign, "a/text.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    (tmp_path / "dangling.py").symlink_to("nowhere")
    found = [path.relative_to(tmp_path).as_posix() for path in files.python_files(tmp_path)]
    assert found == wanted


def test_misbehaving_tools_misbehave(monkeypatch: pytest.MonkeyPatch) -> None:
    """One dies of the soft limit, one swallows it, one runs out of memory."""
    interruptions = iter([SoftTimeLimitExceeded(1)])

    def sleep(_: float) -> None:
        for error in interruptions:
            raise error

    monkeypatch.setattr(misbehave.time, "sleep", sleep)
    with pytest.raises(SoftTimeLimitExceeded):
        misbehave.wait_too_long(0.05)
    interruptions = iter([SoftTimeLimitExceeded(1)])
    assert misbehave.ignore_soft_limit(0.05) == "worked on for 0.05 s"
    with pytest.raises(MemoryError):
        misbehave.allocate_everything()


def span_line(span_id: str, parent_id: str | None, name: str, second: float, **more: str) -> str:
    return json.dumps(
        {
            "name": name,
            "context": {"span_id": span_id},
            "parent_id": parent_id,
            "start_time": f"2026-01-01T00:00:{second:09.6f}Z",
            "end_time": f"2026-01-01T00:00:{second + 1:09.6f}Z",
            "attributes": more,
        }
    )


def test_traces_are_joined_over_files_and_broken_lines(tmp_path: Path) -> None:
    """Spans of several processes make one tree; half a line of a killed process is left out."""
    call = {names.LANE: "critic", names.OUTCOME: "succeeded"}
    (tmp_path / "a.jsonl").write_text(
        span_line("1", None, "review", 0) + "\n" + span_line("2", "1", "apply_async/x", 0)[:40]
    )
    (tmp_path / "b.jsonl").write_text(
        span_line("3", "1", "worker_call:critic", 2, **call) + "\n" + "[]\n"
    )
    [root] = traces.read_traces(tmp_path)
    assert [(span.name, depth) for span, depth in root.walk()] == [
        ("review", 0),
        ("worker_call:critic", 1),
    ]
    console = Console(width=100, record=True, file=StringIO())
    console.print(report.trace_tree(root))
    heading, first, second = console.export_text().splitlines()
    assert heading.startswith("One file's trace")
    assert first.startswith("review ")
    assert second.startswith("└── worker_call:critic")
    assert second.rstrip().endswith("1.00 s succeeded")


def test_lane_table_has_every_lane_and_outcome() -> None:
    """A lane without calls has its row; each outcome has its count."""
    statistics = Statistics()
    calls = statistics.of("critic", "critics_run")
    for _ in range(100):
        calls.duration.add(0.25)
    calls.outcomes.update(succeeded=98, hard_time_limit=2)
    calls.rss_peak.add(100 * 1024 * 1024)
    console = Console(width=100, record=True, file=StringIO())
    lanes = {"critic": Lane("critic", concurrency=3), "idle": Lane("idle", concurrency=1)}
    console.print(report.lane_table(statistics, lanes))
    text = console.export_text()
    row, below, idle = text.splitlines()[-4:-1]
    assert " ".join(row.split()) == "critic 3 100 98 succeeded 250 ms 250 ms 250 ms 100 MiB"
    assert below.split() == ["2", "hard_time_limit"]
    assert idle.split() == ["idle", "1", "0", "-", "none", "-", "-", "-", "-"]


class Interrupts:
    """An attribute whose class is interrupted when it is made."""

    def __set_name__(self, owner, name):
        raise KeyboardInterrupt


def test_ctrl_c_while_a_class_is_made_is_ctrl_c():
    """Celery imports modules with cached properties at its first message: the demo failed so."""
    with pytest.raises(KeyboardInterrupt), plain_interrupts():
        type("Made", (), {"attribute": Interrupts()})


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="broken"), plain_interrupts():
        raise RuntimeError("broken")
