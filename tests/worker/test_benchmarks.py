"""Every benchmark works: a quick run gives numbers. What they are is not looked at here."""

from __future__ import annotations

import json
import math

import pytest

from tests.benchmarks import results
from tests.benchmarks.__main__ import NAMES, main
from tests.benchmarks.measure import Figure, Target, in_turn
from tests.benchmarks.svg import bars

#: Packages that the extra "bench" brings, by benchmark.
NEEDS = {
    "overhead": ("prometheus_client",),
    "peers": ("dramatiq", "rq"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_gives_numbers(name, tmp_path, capsys):
    """One benchmark with few calls, its table, its samples in a file, its pictures."""
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    report, pictures = tmp_path / "report.json", tmp_path / "pictures"
    main([name, "--quick", "--json", str(report), "--plot", str(pictures)])
    figures = json.loads(report.read_text())["benchmarks"][name]
    assert figures
    for figure in figures:
        numbers = [number for samples in figure["samples"].values() for number in samples]
        assert numbers, figure["name"]
        assert all(map(math.isfinite, numbers)), figure["name"]
    assert figures[0]["name"].split()[0] in capsys.readouterr().out
    assert len(list(pictures.glob("*.svg"))) == sum(figure["plotted"] for figure in figures)


def test_ways_are_measured_in_turn():
    """A B A B, so that what else the machine does touches both."""
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) for name in "AB"}
    assert in_turn(ways, 2) == {"A": [None] * 2, "B": [None] * 2}
    assert order == list("ABAB")


@pytest.fixture
def figure():
    return Figure(
        "wait <of> calls", "ms", {"plain": [10, 20, 40], "lanes": [11, 18, 44]},
        {"lanes": "plain"}, {"lanes": Target(1.1, to="plain"), "plain": Target(30, at_least=True)},
    )  # fmt: skip


def test_a_target_is_held_against_the_median_of_ratios_of_pairs(figure):
    """1.1, 0.9 and 1.1, although the ratio of the medians is 0.9."""
    assert figure.ratios("lanes") == [1.1, 0.9, 1.1]
    assert figure.judge("lanes") is True
    assert figure.judge("plain") is False


def test_a_picture_is_svg_that_escapes_what_it_says(figure):
    assert "<title" not in bars(figure)
    assert "wait &lt;of&gt; calls" in bars(figure)


def test_a_section_of_the_results_replaces_the_one_before(figure, tmp_path, monkeypatch):
    """The other sections stay as they are."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    for name, about in (("one", "First."), ("two", "Second."), ("one", "Third.")):
        results.write(name, about, [figure])
    text = results.RESULTS.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## one", "## two"]
    assert "First." not in text
    assert "Third." in text
    assert "| wait <of> calls, ms | plain | 20 |" in text
