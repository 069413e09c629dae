"""Tables that the documentation takes from the code at build time.

A page writes::

    :::{facts} settings
    :::

and gets the table of that name. Each table is a function that returns Markdown, so tests can
read the same text without Sphinx.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from meanings import ATTRIBUTES, LOG_EVENTS, SPAN_EVENTS

import celery_budgets
from celery_budgets.config.setting_fields import FIELDS
from celery_budgets.execution.limits import greenlet_interrupt, solo_interrupt
from celery_budgets.execution.limits import interrupts as interrupt
from celery_budgets.model.lanes import DEFAULT_LANES
from celery_budgets.model.why import Cause, Why
from celery_budgets.telemetry import attributes as names
from celery_budgets.telemetry import logs
from celery_budgets.telemetry.metrics import METRICS

ROOT = Path(__file__).parents[2]
PACKAGE = Path(celery_budgets.__file__).parent
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; a | inside a cell is escaped."""
    lines = [list(heading)]
    lines.append(["---"] * len(lines[0]))
    lines += [list(row) for row in rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def settings() -> str:
    """Every setting with its default, its environment variable and its meaning."""
    return table(
        ("setting", "default", "environment", "meaning"),
        (
            (
                f"`budgets_{name}`",
                f"`{field.default!r}`",
                f"`CELERY_BUDGETS_{name.upper()}`",
                field.help,
            )
            for name, field in FIELDS.items()
        ),
    )


def lanes() -> str:
    """The lanes of an app that names none."""
    return table(
        ("lane", "concurrency", "tasks"),
        (
            (
                f"`{lane.name}`",
                str(lane.concurrency),
                ", ".join(f"`{tool}`" for tool in lane.tools) or "all other tasks",
            )
            for lane in DEFAULT_LANES
        ),
    )


def pools() -> str:
    """What each pool of Celery can enforce, in the words that a worker logs at its start."""
    kinds = {
        "prefork": interrupt.ProcessInterrupt,
        "threads": interrupt.ThreadInterrupt,
        "gevent": greenlet_interrupt.GreenletInterrupt,
        "solo": solo_interrupt.MainThreadInterrupt,
    }
    return table(
        ("pool", "soft limit", "hard limit", "memory"),
        (
            (f"`{pool}`", *(kind.enforces[limit] for limit in ("soft", "hard", "memory")))
            for pool, kind in kinds.items()
        ),
    )


def causes() -> str:
    """Every cause that `celery lanes why` may give, with what it says and what to do."""
    return table(
        ("cause", "the call", "what to do"),
        (
            (f"`{cause}`", str(Why("", cause, lane="LANE", limit="NAME")).strip(), _remedy(cause))
            for cause in Cause
        ),
    )


def _remedy(cause: Cause) -> str:
    return Why("TASK_ID", cause, lane="LANE", limit="NAME").remedy


def metrics() -> str:
    """Every metric under its Prometheus name."""
    return table(
        ("metric", "kind", "labels", "meaning"),
        (
            (
                f"`celery_budgets_{name}{'_total' if metric.kind == 'counter' else ''}`",
                metric.kind,
                ", ".join(f"`{label}`" for label in metric.labels) or "none",
                metric.help,
            )
            for name, metric in METRICS.items()
        ),
    )


def attributes() -> str:
    """Every span attribute of this package with its unit."""
    source = inspect.getsource(names)
    found = re.findall(r'= "(celery_budgets\.[\w.]+)"(?:  # (\w+))?$', source, re.MULTILINE)
    return table(
        ("attribute", "unit", "meaning"),
        (
            (f"`{name}`", f"`{unit}`" if unit else "", ATTRIBUTES.get(name, ""))
            for name, unit in found
        ),
    )


def span_events() -> str:
    """Every event on a call's span."""
    events = [value for name, value in vars(names).items() if name.startswith("EVENT_")]
    return table(
        ("event", "meaning"), ((f"`{name}`", SPAN_EVENTS.get(name, "")) for name in events)
    )


def record() -> str:
    """The fields of the record that is logged when a call ends."""
    return table(
        ("field", "type and unit"), ((f"`{name}`", kind) for name, kind in logs.SCHEMA.items())
    )


@cache
def logged() -> dict[str, set[str]]:
    """Return the levels of every log event that the package writes."""
    found: dict[str, set[str]] = {"budgets.call_ended": {"info", "warning"}}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call | ast.Assign):
                for event, level in _event(node):
                    found.setdefault(event, set()).add(level)
    return dict(sorted(found.items()))


def _event(node: ast.Call | ast.Assign) -> Iterator[tuple[str, str]]:
    """Yield the event that is logged, or made a constant, by *node*, with its level."""
    values = node.args[:2] if isinstance(node, ast.Call) else [node.value]
    method = node.func.attr if _is_method(node) else "warning"
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            event = re.match(r"budgets\.[a-z_]+\b(?!\()", value.value)
            if event is not None:
                level = "error" if method == "exception" else method
                yield event.group(), level if level in LEVELS else "warning"


def _is_method(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)


def log_events() -> str:
    """Every log event with its level and its meaning."""
    return table(
        ("event", "level", "meaning"),
        (
            (f"`{event}`", ", ".join(sorted(levels)), LOG_EVENTS.get(event, ""))
            for event, levels in logged().items()
        ),
    )


def rooms() -> str:
    """Which folder may import which, read from the test that holds it."""
    return _floors("FLOORS", PACKAGE)


def rooms_of_worker() -> str:
    """The same within `worker`."""
    return _floors("WORKER_FLOORS", PACKAGE / "worker")


def _floors(constant: str, folder: Path) -> str:
    tree = ast.parse((ROOT / "tests" / "unit" / "test_house.py").read_text(encoding="utf-8"))
    (floors,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == constant
    )
    rows = []
    for number, floor in enumerate(floors, start=1):
        for name in floor:
            path = folder / f"{name}.py"
            path = path if path.exists() else folder / name / "__init__.py"
            if path.exists():
                rows.append((str(number), f"`{name}`", _first_line(path)))
    return table(("floor", "module or folder", "what it is for"), rows)


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].replace("``", "`")


#: Every table by the name that a page asks for.
TABLES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        settings, lanes, pools, causes, metrics, attributes, span_events, record, log_events, rooms,
        rooms_of_worker,
    )
}  # fmt: skip


def setup(app: Any) -> dict[str, Any]:
    """Register the directive with Sphinx."""
    from sphinx.util.docutils import SphinxDirective

    class Facts(SphinxDirective):
        """Puts the table of a name where it stands."""

        required_arguments = 1

        def run(self) -> list[Any]:
            self.env.note_dependency(inspect.getsourcefile(TABLES[self.arguments[0]]) or "")
            return self.parse_text_to_nodes(TABLES[self.arguments[0]]())

    app.add_directive("facts", Facts)
    return {"parallel_read_safe": True, "version": celery_budgets.__version__}
