"""``celery``, without Flower's command: each ``celery`` imports it, for a third of a second.

Run as a program by its path, so that nothing is imported before it.
"""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Any

_entry_points = metadata.entry_points


def _without_flower(**wanted: Any) -> Any:
    found = _entry_points(**wanted)
    if wanted.get("group") != "celery.commands":
        return found
    return tuple(point for point in found if point.name != "flower")


def hide_flower() -> None:
    """Have ``celery`` not find Flower's command, from now on in this process."""
    metadata.entry_points = _without_flower


if __name__ == "__main__":
    # The folder of this file: its modules are those of ``tests.support``.
    del sys.path[0]
    hide_flower()
    from celery.__main__ import main

    main()
