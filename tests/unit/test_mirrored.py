"""What Celery's code reads where this package replaces or wraps it: nothing new goes unnoticed.

Each setting, and each attribute of a task, that a mirrored function reads is on the list below,
of Celery 5.5, 5.6 and 5.7 together. A Celery that reads one more fails here by its name: then
look at what ours does about it, and add it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

#: By what is read from, how it is written in Celery.
_TASKS = frozenset({"task", "self.task", "self._task", "req.task"})
_CONFS = frozenset({"conf", "app.conf", "self.app.conf", "self._app.conf", "self._get_app().conf"})
#: By address, `task.x` for attributes of the task and `conf.x` for settings.
KNOWN: dict[str, set[str]] = {
    "celery.worker.request:Request.__init__": {"task.ignore_result"},
    "celery.worker.request:Request.on_accepted": {"task.acks_late"},
    "celery.worker.request:Request.on_timeout": {
        "task.acks_late",
        "task.acks_on_failure_or_timeout",
        "task.acks_on_timeout",
        "task.after_return",
        "task.backend",
        "task.on_failure",
    },
    "celery.worker.request:Request.on_failure": {
        "task.acks_late",
        "task.acks_on_failure",
        "task.acks_on_failure_or_timeout",
        "task.acks_on_timeout",
        "task.backend",
        "task.max_retries",
        "task.reject_on_worker_lost",
        "task.request_stack",
        "task.resultrepr_maxsize",
        "task.retry_on_worker_lost",
    },
    "celery.worker.request:Request.on_retry": {"task.acks_late"},
    "celery.worker.request:Request.on_success": {"task.acks_late"},
    "celery.worker.request:Request.execute_using_pool": {"task.soft_time_limit", "task.time_limit"},
    "celery.worker.request:Request.reject": set(),
    "celery.worker.request:Request.acknowledge": set(),
    "celery.worker.request:Request.maybe_expire": set(),
    "celery.worker.request:Request.revoked": set(),
    "celery.worker.request:Request.terminate": set(),
    "celery.worker.request:Request.cancel": set(),
    "celery.worker.request:Request.store_errors": {
        "task.ignore_result",
        "task.store_errors_even_if_ignored",
    },
    "celery.worker.request:Request.send_event": {"task.send_events"},
    "celery.worker.request:Request._announce_revoked": {"task.backend"},
    "celery.worker.request:Request._announce_cancelled": {"task.backend", "task.on_retry"},
    "celery.worker.request:Request._retry_worker_lost": {
        "task.acks_late",
        "task.backend",
        "task.default_retry_delay",
        "task.on_retry",
        "task.request_stack",
        "task.signature_from_request",
    },
    "celery.worker.request:Request._success_was_stored": {"task.backend"},
    "celery.worker.request:create_request_cls": {
        "task.acks_late",
        "task.soft_time_limit",
        "task.time_limit",
    },
    "celery.worker.strategy:default": {
        "task.Request",
        "task.backend",
        "task.name",
        "task.send_events",
    },
    "celery.app.trace:build_tracer": {
        "conf.task_acks_late",
        "conf.task_inherit_parent_priority",
        "conf.worker_deduplicate_successful_tasks",
        "task.acks_late",
        "task.after_return",
        "task.backend",
        "task.before_start",
        "task.ignore_result",
        "task.on_success",
        "task.request",
        "task.request_stack",
        "task.resultrepr_maxsize",
        "task.run",
        "task.store_eager_result",
        "task.track_started",
    },
    "celery.app.trace:trace_task": {"task.__trace__", "task.name"},
    "celery.app.task:Task.__call__": set(),
    "celery.app.task:Task.apply_async": {"conf.task_always_eager", "conf.task_serializer"},
    "celery.app.task:Task.AsyncResult": set(),
    "celery.app.task:Task.start_strategy": set(),
    "celery.app.task:Task.bind": set(),
    "celery.worker.control:time_limit": {"task.soft_time_limit", "task.time_limit"},
    "celery.worker.consumer.consumer:Consumer.on_close": set(),
    "celery.worker.consumer.consumer:Consumer.update_strategies": {
        "task.__trace__",
        "task.start_strategy",
    },
    "celery.worker.consumer.consumer:Consumer.add_task_queue": set(),
    "celery.worker.consumer.consumer:Consumer.cancel_task_queue": set(),
    "celery.worker.consumer.tasks:Tasks.start": set(),
    "celery.worker.consumer.tasks:Tasks.qos_global": set(),
    "celery.concurrency.asynpool:AsynPool._create_timelimit_handlers": set(),
    "celery.concurrency.asynpool:AsynPool._event_process_exit": set(),
    "celery.concurrency.asynpool:AsynPool.flush": set(),
    "celery.worker.loops:synloop": set(),
    "celery.worker.loops:asynloop": set(),
    "celery.app.builtins:add_map_task": set(),
    "celery.app.builtins:add_starmap_task": set(),
    "celery.app.builtins:add_chunk_task": set(),
    "celery.canvas:_basemap.apply_async": set(),
    "celery.canvas:chunks.apply_async": set(),
    "celery.app.base:Celery.send_task": {
        "conf.task_always_eager",
        "conf.task_inherit_parent_priority",
    },
}


def names_read(function: Any) -> set[str]:
    """Return the settings (`conf.x`) and the attributes of tasks (`task.x`) that it reads."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {name for node in ast.walk(tree) for name in _names(node)}


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        source, name = ast.unparse(node.value), node.attr
    elif isinstance(node, ast.Call):
        arguments = list(node.args)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            arguments.insert(0, node.func.value)  # conf.get("x")
        elif ast.unparse(node.func) != "getattr":
            return
        if len(arguments) < 2 or not isinstance(arguments[1], ast.Constant):
            return
        source, name = ast.unparse(arguments[0]), arguments[1].value
    else:
        return
    if source in _TASKS:
        yield f"task.{name}"
    elif source in _CONFS:
        yield f"conf.{name}"


def function_at(address: str) -> Any:
    """Return the function at `module:Class.name`; ``None`` where this Celery has none."""
    module, _, path = address.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        if part not in vars(found):
            return None
        found = vars(found)[part]
    return found.fget if isinstance(found, property) else found


@pytest.mark.parametrize("address", KNOWN)
def test_a_mirrored_function_reads_nothing_new(address):
    function = function_at(address)
    if function is None:
        pytest.skip("not in this Celery")
    new = names_read(function) - KNOWN[address]
    assert not new, f"{address} reads {sorted(new)}: look at what replaces or wraps it"


def test_the_scan_sees_each_way_of_reading():
    def mirrored(self, task, app, conf):
        return (
            self.task.one,
            task.two,
            app.conf.three,
            getattr(task, "four", None),
            conf.get("five"),
        )

    read = {"task.one", "task.two", "conf.three", "task.four", "conf.five"}
    assert names_read(mirrored) - {"conf.get"} == read


def test_the_list_has_what_decides_on_acknowledgement():
    read = KNOWN["celery.worker.request:Request.on_failure"]
    assert {"task.acks_late", "task.reject_on_worker_lost"} <= read
