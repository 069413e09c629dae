"""Parses and formats sizes and durations.

Sizes are whole bytes, durations are seconds as float. ``KB`` is 1,000 bytes and ``KiB``
1,024, as in IEC 80000-13. See also: :mod:`celery_budgets.model.budget`, which checks ranges.
"""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ["format_duration", "format_size", "parse_duration", "parse_size", "scaled"]

KIB = 1024
MIB = 1024**2
GIB = 1024**3
TIB = 1024**4

_SIZE_UNITS = {
    "": 1, "b": 1,
    "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
}  # fmt: skip
_DURATION_UNITS = {
    "": 1.0,
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(value: Any) -> int:
    """Return *value* in bytes.

    Args:
        value: Whole bytes, or text such as ``"512MiB"``, ``"1.5GB"``, ``"400000"``.

    Raises:
        ValueError: The text is no size; the message shows valid forms.
        TypeError: *value* is neither a whole number nor text (a bool is neither).
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is not a size: give bytes, or text such as '512MiB'")
    if isinstance(value, str):
        return round(_quantity(value, _SIZE_UNITS, "a size", "'512MiB', '512MB' or '1.5GiB'"))
    if not _is_finite(value) or value != int(value):
        raise ValueError(f"{value!r} is not a size: give whole bytes, or text such as '512MiB'")
    return int(value)


def parse_duration(value: Any) -> float:
    """Return *value* in seconds.

    Args:
        value: Seconds, or text such as ``"300"``, ``"1.5s"``, ``"5m"``, ``"2h"``, ``"250ms"``.

    Raises:
        ValueError: The text is no duration, or the number is not finite.
        TypeError: *value* is neither a number nor text (a bool is neither).
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is not a duration: give seconds, or text such as '5m'")
    if isinstance(value, str):
        return _quantity(value, _DURATION_UNITS, "a duration", "'90s', '5m', '1.5h' or '250ms'")
    if not _is_finite(value):
        raise ValueError(f"{value!r} is not a duration: give finite seconds")
    return float(value)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond the range of a float
        return False


def _quantity(text: str, units: dict[str, Any], what: str, forms: str) -> float:
    match = _QUANTITY.fullmatch(text)
    unit = match and units.get(match[2].lower())
    number = float(match[1]) * float(unit) if match is not None and unit is not None else math.inf
    if not _is_finite(number):
        raise ValueError(f"{text!r} is not {what}: write it as {forms}")
    return number


def scaled(seconds: float, factor: float) -> float:
    """Return *seconds* x *factor* without float noise: 0.15, not 0.15000000000000002.

    Rounded to microseconds, unless that would put the product on the other side of *seconds*.
    """
    product = seconds * factor
    rounded = round(product, 6)
    return rounded if (rounded - seconds) * (product - seconds) > 0 else product


def format_size(size: float) -> str:
    """Return *size* bytes as text in binary units: ``512 MiB``, ``1.5 GiB``."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size) >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size:.0f} B"


def format_duration(seconds: float) -> str:
    """Return *seconds* as text: ``250 ms``, ``4.5 s``, ``300 s``, ``2 h``."""
    if seconds and abs(seconds) < 1:
        return f"{seconds * 1000:.4g} ms"
    if abs(seconds) >= 7200 and seconds % 3600 == 0:
        return f"{seconds / 3600:g} h"
    return f"{seconds:.0f} s" if abs(seconds) >= 1e5 else f"{seconds:.6g} s"
