"""``Mounted``: the page in a server of the program's own, which ``Budgets`` inherits.

Runs in the process that serves the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from celery_budgets.errors import ConfigurationError

if TYPE_CHECKING:
    from celery_budgets.web.application import Application

__all__ = ["Mounted"]


class Mounted:
    """Makes the page of an app's lanes."""

    #: The Celery app.
    app: Any

    def wsgi(
        self,
        *,
        read_only: bool = True,
        authorize: Callable[[Mapping[str, Any]], Any] | None = None,
        interval: float = 2.0,
    ) -> Application:
        """Return the page of the lanes as a WSGI application, to mount in a server of yours.

        It works below any path, and asks the workers only while somebody looks on.

        Args:
            read_only: Whether it changes nothing.
            authorize: Returns whether the request in a WSGI environ is allowed; by default each is.
            interval: Seconds between two questions to the workers, however many look on.

        Raises:
            ConfigurationError: It may change something, and *authorize* is missing.

        Example:
            >>> site = DispatcherMiddleware(site, {"/lanes": budgets.wsgi(authorize=is_staff)})
        """
        from celery_budgets.web.access import AskProgram
        from celery_budgets.web.application import application_of

        if not read_only and authorize is None:
            raise ConfigurationError(
                "wsgi: read_only=False lets whoever opens the page pause lanes; give authorize= too"
            )
        return application_of(
            self.app, read_only=read_only, access=AskProgram(authorize), interval=interval
        )
