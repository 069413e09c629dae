"""``BySettings``: what is made for an app from its settings, and anew once these are read anew.

Used in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from celery_budgets.config.settings import Settings, settings_of

__all__ = ["BySettings"]

T = TypeVar("T")


class BySettings(Generic[T]):
    """One object for each app.

    Args:
        make: Returns the object for an app and its settings; must not refer to the app, which
            would then live for ever.
    """

    def __init__(self, make: Callable[[Any, Settings], T]) -> None:
        self._make = make
        self._made: WeakKeyDictionary[Any, tuple[Settings, T]] = WeakKeyDictionary()

    def of(self, app: Any) -> T:
        """Return the object of *app*."""
        settings, kept = settings_of(app), self._made.get(app)
        if kept is None or kept[0] is not settings:
            kept = self._made[app] = settings, self._make(app, settings)
        return kept[1]
