"""The house: which room may import which, and how large a room may be."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "celery_budgets"

#: From the top down, by the process in which the code runs. A room imports only from itself and
#: from the rooms above it. `budgets` stands below `worker`, although a caller runs it: it is
#: what joins a worker to an app, and imports the worker's part only inside a worker.
ROOMS = (
    (
        "units",
        "errors",
        "per_process",
        "budget",
        "deadline",
        "priority",
        "lane",
        "lanes",
        "outcomes",
    ),
    ("fields", "settings"),
    ("telemetry",),
    ("process",),
    ("leases", "keeper", "lease_server", "idempotency", "scope"),
    ("queues", "amqp", "routing", "sending", "waiting"),
    ("running",),
    ("strategies", "calling", "mixins", "task", "mapped"),
    ("block",),
    ("worker",),
    ("arrivals", "progress", "batch_item", "batch_signature", "batch"),
    ("asking", "budgets"),
    ("embedded", "leash"),
    ("cli",),
    ("testing",),
)
FLOOR_OF = {name: floor for floor, names in enumerate(ROOMS) for name in names}
#: The door: it hands out names of all rooms.
DOOR = "celery_budgets"
MOST_LINES = 300
MOST_FUNCTION_LINES = 50


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports_that_run(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import statement, in functions too, except those for the type checker only."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test).endswith("TYPE_CHECKING"):
        for node in tree.orelse:
            yield from imports_that_run(node)
        return
    if isinstance(tree, ast.Import | ast.ImportFrom):
        yield tree
    for node in ast.iter_child_nodes(tree):
        yield from imports_that_run(node)


def imported(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The modules of this package that *statement* imports, each by its full name."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    else:
        assert statement.level == 0, "relative imports hide the room"
        names = [f"{statement.module}.{alias.name}" for alias in statement.names]
    for name in names:
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name:
            yield name


def imports_of(module: str) -> set[str]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return {name for node in imports_that_run(tree) for name in imported(node)} - {module}


@pytest.mark.parametrize("module", [module for module in MODULES if module != DOOR])
def test_a_room_imports_only_from_itself_and_above(module):
    """The order of design.md; `budget` and `fields` stand with what they were split from.

    Counted are imports that run, in functions too; names for the type checker are not, because
    a span may be typed by a call without either knowing the other at run time.
    """
    floor = FLOOR_OF[room_of(module)]
    for other in imports_of(module):
        assert other != DOOR, f"{module} goes through the door instead of the room itself"
        assert FLOOR_OF[room_of(other)] <= floor, f"{module} imports {other} from below"


def test_every_room_is_on_the_plan():
    """A new module is placed before it is used."""
    rooms = {room_of(module) for module in MODULES if module != DOOR}
    assert rooms <= set(FLOOR_OF)


def test_no_module_imports_itself_by_a_detour():
    """The modules can be put in an order in which each imports only earlier ones."""
    graph = {module: imports_of(module) - {DOOR} for module in MODULES if module != DOOR}
    for module, others in graph.items():
        graph[module] = {name for name in others if not module.startswith(f"{name}.")}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES) - 1


def test_the_checks_see_an_import_from_below():
    """In a function as well as on top, but not behind TYPE_CHECKING."""
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from celery_budgets.budgets import Budgets\n"
        "else:\n    import celery_budgets.cli\n"
        "def late():\n    from celery_budgets.worker import roster\n"
    )
    seen = {name for node in imports_that_run(ast.parse(source)) for name in imported(node)}
    assert seen == {"celery_budgets.cli", "celery_budgets.worker.roster"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_one_idea(module):
    """None over 300 lines, no function over 50, and none named after what it is not."""
    text = MODULES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_FUNCTION_LINES, f"{node.name} in line {node.lineno}"
    assert not {"utils", "util", "helpers", "helper", "common", "misc"} & set(module.split("."))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is_and_what_it_offers(module):
    """A docstring on top, and no name in `__all__` that is not there."""
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    offered = getattr(loaded, "__all__", [])
    assert len(offered) == len(set(offered))
    assert [name for name in offered if not hasattr(loaded, name)] == []


@pytest.mark.parametrize("module", MODULES)
def test_opentelemetry_is_imported_only_where_it_is_used(module):
    """Inside functions: a worker without traces does not pay for it."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    on_top = ast.Module([node for node in tree.body if not isinstance(node, _SCOPES)], [])
    for statement in imports_that_run(on_top):
        assert "opentelemetry" not in ast.unparse(statement)


@pytest.mark.parametrize("module", MODULES)
def test_settings_are_read_in_one_module(module):
    """Nobody else looks at `app.conf.budgets_...` or `CELERY_BUDGETS_...`."""
    if module == "celery_budgets.settings":
        return
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            assert not node.attr.startswith("budgets_"), ast.unparse(node)
        if isinstance(node, ast.Subscript):
            assert not ast.unparse(node.slice).startswith(("'budgets_", "'CELERY_BUDGETS_"))


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def test_what_is_secret_is_not_committed():
    """A developer's .env may hold passwords; docker compose reads it from here."""
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
