"""Sizes and durations: what is read, what is refused, and how they are printed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_budgets.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("given_value", "size"),
    [
        (0, 0),
        (400_000, 400_000),
        (4096.0, 4096),  # a whole number as float, as JSON and YAML give it
        ("400000", 400_000),
        ("512MiB", 536_870_912),  # 512 x 1024 x 1024
        ("512MB", 512_000_000),  # 512 x 1000 x 1000
        ("512 mib", 536_870_912),
        ("1.5GiB", 1_610_612_736),  # 1.5 x 1024 x 1024 x 1024
        (".5kB", 500),
        (" 1 TB ", 1_000_000_000_000),
        ("1TiB", 1_099_511_627_776),
        ("7b", 7),
    ],
)
def test_sizes(given_value, size):
    """A size is whole bytes; KB counts thousands and KiB counts 1,024s."""
    parsed = parse_size(given_value)
    assert parsed == size
    assert type(parsed) is int


@pytest.mark.parametrize(
    ("given_value", "seconds"),
    [
        (300, 300.0),
        (1.5, 1.5),
        ("300", 300.0),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("5m", 300.0),  # 5 x 60
        ("5 MIN", 300.0),
        ("1.5h", 5400.0),  # 1.5 x 3600
        ("2d", 172_800.0),  # 2 x 86400
    ],
)
def test_durations(given_value, seconds):
    """A duration is seconds as float."""
    parsed = parse_duration(given_value)
    assert parsed == seconds
    assert type(parsed) is float


@pytest.mark.parametrize("parse", [parse_size, parse_duration])
@pytest.mark.parametrize(
    "text", ["", " ", "MiB", "-1", "+5", "1e3", "1,5", "5 x", "5mm", "0x10", "9" * 400, "1.2.3"]
)
def test_text_that_is_no_quantity(parse, text):
    """The message repeats the text and shows the forms that are understood."""
    with pytest.raises(ValueError, match=r"is not a (size|duration): write it as '") as caught:
        parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("parse", [parse_size, parse_duration])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**400])
def test_numbers_that_are_no_quantity(parse, number):
    """NaN, infinity and what no float holds are refused, not passed on."""
    with pytest.raises(ValueError, match=r"is not a (size|duration): give (whole|finite) "):
        parse(number)


@pytest.mark.parametrize("parse", [parse_size, parse_duration])
@pytest.mark.parametrize("value", [True, False, None, [5], b"5", 5j])
def test_values_of_another_type(parse, value):
    """A bool is no number here: True would be one second."""
    with pytest.raises(TypeError, match="text such as"):
        parse(value)


def test_half_a_byte_is_no_size():
    """A float with a fraction is a mistake of units, not something to round."""
    with pytest.raises(ValueError, match=r"1\.5 is not a size: give whole bytes"):
        parse_size(1.5)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (536_870_912, "512 MiB"),
        (1_610_612_736, "1.5 GiB"),
        (-419_430_400, "-400 MiB"),  # a delta
    ],
)
def test_printed_sizes(size, text):
    """Sizes are printed in binary units."""
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.25, "250 ms"),
        (0.9996, "999.6 ms"),  # was "1e+03 ms"
        (4.5, "4.5 s"),
        (300, "300 s"),
        (3600, "3600 s"),  # the same number as in the settings
        (7200, "2 h"),
        (7201, "7201 s"),
        (-0.5, "-500 ms"),
        (math.inf, "inf s"),
    ],
)
def test_printed_durations(seconds, text):
    """Durations are printed in seconds, short ones in milliseconds, long round ones in hours."""
    assert format_duration(seconds) == text


@given(st.integers(0, 2**50))
def test_a_printed_size_is_read_again(size):
    """What a message prints can be pasted into a setting, within its four digits."""
    assert abs(parse_size(format_size(size)) - size) <= size * 0.0005 + 1


@given(st.floats(1e-3, 1e6))
def test_a_printed_duration_is_read_again(seconds):
    """What a message prints can be pasted into a setting, within its digits."""
    text = format_duration(seconds)
    assert "e" not in text
    assert parse_duration(text) == pytest.approx(seconds, rel=0.0005)
