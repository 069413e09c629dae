"""The histogram: quantiles, merging, and the form in which it travels."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_budgets.telemetry.histogram import Histogram

#: From a microsecond to a few hundred TiB: seconds as well as bytes.
VALUES = st.lists(st.floats(1e-6, 1e15), min_size=1, max_size=200)


def histogram_of(values):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def exact_quantile(values, share):
    """The value that *share* of all do not exceed: the nearest rank, as the histogram's."""
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_within_one_percent(values, share):
    """Of the exact quantile, for any values and any share."""
    exact = exact_quantile(values, share)
    assert histogram_of(values).quantile(share) == pytest.approx(exact, rel=0.0101)


@given(VALUES, VALUES, st.floats(0, 1))
def test_merging_is_counting_in_one_place(here, there, share):
    """Two merged histograms answer as the one that saw everything."""
    merged = histogram_of(here)
    merged.merge(histogram_of(there))
    one = histogram_of(here + there)
    assert merged.buckets == one.buckets
    assert (merged.count, merged.minimum, merged.maximum) == (one.count, one.minimum, one.maximum)
    assert merged.total == pytest.approx(one.total)
    assert merged.quantile(share) == one.quantile(share)


@given(st.lists(st.floats(0, 1e15), max_size=50))
def test_it_comes_back_from_json(values):
    """The text form has everything, also of an empty histogram."""
    histogram = histogram_of(values)
    back = Histogram.from_json(json.loads(json.dumps(histogram.to_json(), allow_nan=False)))
    for attribute in Histogram.__slots__:
        assert getattr(back, attribute) == getattr(histogram, attribute)
    back.merge(histogram)
    assert back.count == 2 * len(values)


def test_of_nothing_there_is_no_quantile():
    """No values: no quantile and no mean, rather than zeros."""
    assert Histogram().quantile(0.5) is None
    assert Histogram().mean is None
    assert Histogram().to_json() == {}


def test_the_ends_are_exact():
    """No quantile lies outside what was counted."""
    histogram = histogram_of([0.125, 3.0, 7.7])
    assert histogram.quantile(0) == pytest.approx(0.125, rel=0.01)
    assert histogram.quantile(0) >= 0.125
    assert histogram.quantile(1) == pytest.approx(7.7, rel=0.01)
    assert histogram.quantile(1) <= 7.7
    assert histogram.mean == pytest.approx(10.825 / 3)  # 0.125 + 3 + 7.7


def test_zeros_are_counted():
    """A duration may be too short for the clock."""
    histogram = histogram_of([0.0, 0.0, 0.0, 5.0])
    assert histogram.count == 4
    assert histogram.quantile(0.5) == pytest.approx(0, abs=2e-6)
    assert histogram.quantile(1) == pytest.approx(5, rel=0.01)


def test_it_stays_small():
    """A microsecond to a day in 100,000 values needs no more than 1,300 buckets."""
    histogram = Histogram()
    for step in range(100_000):
        histogram.add(1e-6 * 86.4e9 ** (step / 100_000))
    assert histogram.count == 100_000
    assert len(histogram.buckets) <= 1300


@given(VALUES, st.lists(st.floats(1e-6, 1e15), min_size=1, max_size=10))
def test_cumulative_counts_are_right_but_for_one_percent(values, bounds):
    """How many do not exceed each bound: only values within 1 % of it may be on either side."""
    bounds.sort()
    counts = histogram_of(values).cumulative(bounds)
    assert counts == sorted(counts)
    for bound, count in zip(bounds, counts, strict=True):
        assert sum(value * 1.0101 <= bound for value in values) <= count
        assert count <= sum(value <= bound * 1.0101 for value in values)
