"""What is measured of bodies that tell when they began and ended."""

from __future__ import annotations


def most_at_once(spans):
    """Return how many of *spans*, as (began, ended, ...), held at the same moment at most."""
    changes = sorted(
        change for began, ended, *_ in spans for change in ((began, 1), (ended, -1))
    )  # an end before a begin at the same instant
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most
