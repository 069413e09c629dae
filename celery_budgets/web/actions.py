"""What an operator may do on the page: to a lane, a scope, or who holds places of a limit.

Each leaves a record, ``budgets.operator``, in the log of the process that serves the page; the
workers log what they change.

Runs in the process that serves the page.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery_budgets.errors import BudgetsError
from celery_budgets.sending.lane_changes import change_lane
from celery_budgets.sending.limits.changes import places_of, release_holder
from celery_budgets.web.exchange import Answer, Request, as_json, refusal

__all__ = ["Action", "action_of"]

logger = logging.getLogger(__name__)

LONGEST_NAME = 1000
#: The remote control command by the last part of the path.
_OF_LANE = {"pause": "pause_lane", "resume": "resume_lane", "set": "lane_limit"}


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do: a verb, and the name of the lane, scope or limit that it is done to."""

    kind: str
    name: str
    verb: str

    def do(self, app: Any, request: Request) -> Answer:
        """Do it, leave a record, and return what the workers have said.

        Args:
            app: The Celery app.
            request: Its body is JSON with the arguments: ``concurrency`` of a lane's limit,
                ``running`` of a cancelled scope, ``holder`` whose places are taken away,
                ``workers`` to address only these.
        """
        try:
            arguments = _arguments(request.body)
            if self.kind == "scopes":
                answer = self._cancel(app, arguments)
            elif self.kind == "limits":
                answer = self._release(app, arguments)
            else:
                answer = self._change(app, arguments)
        except (ValueError, BudgetsError) as exc:
            answer = refusal(400, str(exc))
        except Exception as exc:
            # Each transport has errors of its own.
            answer = refusal(503, f"that could not be done: {' '.join(str(exc).split())}")
        logger.warning(
            "budgets.operator action=%s name=%r by=%r arguments=%r answer=%s",
            self.verb, self.name, request.sender, request.body[:200], answer.status,
        )  # fmt: skip
        return answer

    def _change(self, app: Any, arguments: Mapping[str, Any]) -> Answer:
        """Change a lane on its workers."""
        more: dict[str, Any] = {}
        if self.verb == "set":
            concurrency = arguments.get("concurrency")
            if isinstance(concurrency, bool) or not isinstance(concurrency, int):
                raise ValueError("concurrency: give a whole number")
            more = {"concurrency": concurrency}
        workers = arguments.get("workers", [])
        if not isinstance(workers, list) or not all(isinstance(name, str) for name in workers):
            raise ValueError("workers: give a list of names")
        changed = change_lane(app, _OF_LANE[self.verb], self.name, workers, **more)
        told = {
            "done": [{"worker": name, "text": text} for name, text in changed.done],
            "failed": [
                {"worker": name, "text": text}
                for name, text in (*changed.refused, *changed.missing, *changed.silent)
            ],
        }
        if not changed.sent and not told["failed"]:
            told["failed"] = [{"worker": "", "text": f"no worker that serves {self.name} answered"}]
        return as_json(told, 200 if changed.ok else 409)

    def _cancel(self, app: Any, arguments: Mapping[str, Any]) -> Answer:
        """Have the workers cancel a scope; those that start later hear of it, too."""
        running = arguments.get("running", False)
        if not isinstance(running, bool):
            raise ValueError("running: give true or false")
        with app.connection_for_write() as connection:
            replies = app.control.broadcast(
                "cancel_scope", arguments={"scope": self.name, "running": running}, reply=True,
                timeout=1.0, connection=connection,
            )  # fmt: skip
        told = [(name, answer) for reply in replies or () for name, answer in reply.items()]
        done = [{"worker": n, "text": str(a["ok"])} for n, a in told if "ok" in a]
        failed = [{"worker": n, "text": str(a.get("error", a))} for n, a in told if "ok" not in a]
        if not told:
            failed = [{"worker": "", "text": "no worker answered"}]
        return as_json({"done": done, "failed": failed}, 409 if failed else 200)

    def _release(self, app: Any, arguments: Mapping[str, Any]) -> Answer:
        """Take all places away from one who holds a place of this limit."""
        holder = arguments.get("holder")
        if not isinstance(holder, str):
            raise ValueError("holder: give the name of who holds a place")
        if self.name not in {view.name for view in places_of(app, holder)}:
            text = f"{holder} holds no place of {self.name}"
            return as_json({"done": [], "failed": [{"worker": "", "text": text}]}, 409)
        names = ", ".join(view.title for view in release_holder(app, holder))
        text = f"{holder}: released: {names}"
        return as_json({"done": [{"worker": "", "text": text}], "failed": []})


def action_of(path: str) -> Action | None:
    """Return the action at *path*, such as ``/lanes/critic/pause``; ``None`` if there is none."""
    _, kind, rest = (*path.split("/", 2), "", "")[:3]
    name, _, verb = rest.rpartition("/")
    verbs = {"lanes": _OF_LANE, "scopes": ("cancel",), "limits": ("release",)}.get(kind, ())
    if not 0 < len(name) <= LONGEST_NAME or verb not in verbs:
        return None
    return Action(kind, name, verb)


def _arguments(body: bytes) -> Mapping[str, Any]:
    """Return the arguments in a body.

    Raises:
        ValueError: It is no object in JSON.
    """
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise ValueError("the body is no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("the body is no JSON object")
    return found
