"""The house: which room may import which, and how large a room may be."""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "celery_budgets"

#: From the ground up. A room imports from the rooms of the floors below its own, and from itself.
FLOORS = (
    ("units",),
    ("errors",),
    ("model", "child_process"),
    ("config", "execution"),
    ("telemetry", "shared_state"),
    ("idempotency",),
    ("sending",),
    ("tasks", "blocks", "web"),
    ("worker", "batch"),
    ("progress", "budgets", "embedded", "flower"),
    ("cli",),
    ("testing",),
)
#: The same for the rooms within `worker`, and its own modules.
WORKER_FLOORS = (
    ("transport", "delivery"),
    ("stacks",),
    ("calls",),
    ("pool", "saved_states", "limits"),
    ("lanes", "backlog"),
    ("memory",),
    ("runtime",),
    ("assignment",),
    ("request_hooks",),
    ("request",),
    ("request_classes", "mapped_strategy"),
    ("startup",),
    ("remote",),
    ("bootsteps",),
)
#: As many commands as there are.
EXEMPT_FROM_SIZE = {"celery_budgets.cli"}
MOST_FILES = 15
#: The door: it hands out names of all rooms.
DOOR = "celery_budgets"
MOST_LINES = 300
MOST_FUNCTION_LINES = 50


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(floors: tuple[tuple[str, ...], ...], room: str) -> int:
    return next(number for number, rooms in enumerate(floors) if room in rooms)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
INSIDE = [module for module in MODULES if module != DOOR]


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports_in(tree: ast.AST, *, typing: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import statement, in functions too; those for the type checker where *typing*."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test).endswith("TYPE_CHECKING"):
        for node in [*(tree.body if typing else ()), *tree.orelse]:
            yield from imports_in(node, typing=typing)
        return
    if isinstance(tree, ast.Import | ast.ImportFrom):
        yield tree
    for node in ast.iter_child_nodes(tree):
        yield from imports_in(node, typing=typing)


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


@cache
def imports_of(module: str, *, typing: bool = True) -> set[str]:
    statements = imports_in(tree_of(module), typing=typing)
    return {name for node in statements for name in imported(node)} - {module}


def arrows(module: str, *, typing: bool) -> Iterator[tuple[str, int, str, int]]:
    """Each import of another room: the two modules, and the floors that they stand on."""
    own = module.split(".")
    for other in imports_of(module, typing=typing):
        assert other != DOOR, f"{module} goes through the door instead of the room itself"
        theirs, floors, depth = other.split("."), FLOORS, 1
        if own[1] == theirs[1] == "worker" and len(own) > 2 and len(theirs) > 2:
            floors, depth = WORKER_FLOORS, 2
        if own[depth] != theirs[depth]:
            yield module, floor_of(floors, own[depth]), other, floor_of(floors, theirs[depth])


@pytest.mark.parametrize("module", INSIDE)
@pytest.mark.parametrize("typing", [False, True], ids=["running", "typing"])
def test_a_room_imports_only_from_below(module, typing):
    """Imports in functions count, and in the second round those for the type checker."""
    for importer, floor, other, below in arrows(module, typing=typing):
        assert below < floor, f"{importer} imports {other} from above"


def test_every_room_is_on_the_plan_and_exists():
    """A new room is placed before it is used, and one that has gone is struck off."""
    planned = {room for rooms in FLOORS for room in rooms}
    assert {module.split(".")[1] for module in INSIDE} == planned - {"testing"}
    of_worker = {
        module.split(".")[2]
        for module in INSIDE
        if module.count(".") > 1 and module.startswith("celery_budgets.worker.")
    }
    assert of_worker == {room for rooms in WORKER_FLOORS for room in rooms}


@pytest.mark.parametrize("typing", [False, True], ids=["running", "typing"])
def test_no_module_imports_itself_by_a_detour(typing):
    """The modules can be put in an order in which each imports only earlier ones."""
    graph = {module: imports_of(module, typing=typing) - {DOOR} for module in INSIDE}
    for module, others in graph.items():
        graph[module] = {name for name in others if not module.startswith(f"{name}.")}
    assert len(list(TopologicalSorter(graph).static_order())) == len(INSIDE)


def test_a_folder_can_be_taken_in_at_a_glance():
    """At most 15 modules in one; the commands of the CLI are as many as there are."""
    sizes = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    for folder, files in sizes.items():
        if module_name(folder / "__init__.py") not in EXEMPT_FROM_SIZE:
            assert files <= MOST_FILES, f"{folder}: {files} modules"


@pytest.mark.parametrize("typing", [False, True], ids=["running", "typing"])
def test_the_checks_see_an_import_from_above(typing):
    """In a function as well as on top; behind TYPE_CHECKING in the second round."""
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from celery_budgets.budgets import Budgets\n"
        "else:\n    import celery_budgets.cli\n"
        "def late():\n    from celery_budgets.worker.calls import roster\n"
    )
    statements = imports_in(ast.parse(source), typing=typing)
    seen = {name for node in statements for name in imported(node)}
    expected = {"celery_budgets.cli", "celery_budgets.worker.calls.roster"}
    assert seen == expected | ({"celery_budgets.budgets"} if typing else set())


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_one_idea(module):
    """None over 300 lines, no function over 50, and none named after what it is not."""
    text = MODULES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(tree_of(module)):
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
    tree = tree_of(module)
    on_top = ast.Module([node for node in tree.body if not isinstance(node, _SCOPES)], [])
    for statement in imports_in(on_top, typing=False):
        assert "opentelemetry" not in ast.unparse(statement)


@pytest.mark.parametrize("module", MODULES)
def test_settings_are_read_in_one_module(module):
    """Nobody else looks at `app.conf.budgets_...` or `CELERY_BUDGETS_...`."""
    if module == "celery_budgets.config.settings":
        return
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            assert not node.attr.startswith("budgets_"), ast.unparse(node)
        if isinstance(node, ast.Subscript):
            assert not ast.unparse(node.slice).startswith(("'budgets_", "'CELERY_BUDGETS_"))


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


#: Objects whose attributes others write, by the name that they go by, with the reason.
WRITTEN_BY_OTHERS = {
    "a call is the record that what watches, interrupts and ends it fills in": ("call", "replaced"),
    "a delivery is settled by the rooms that it passes": ("request", "first", "end"),
    "records of the module that writes them": (
        "held", "lease", "scope", "sent", "slot", "slots", "calls", "twin", "histogram", "left",
        "leftovers", "_leftovers", "waits", "summary", "result", "lanes[lane]", "wish",
    ),
    "what the pool is known by once it has started": ("runtime", "ledger_of(worker.app)"),
    "lists and settings that an owner is told once": ("roster", "_slots", "_renewals", "gate"),
    "the event loop, there only between start and stop": ("tally",),
    "hook points of Celery, kombu, billiard and logging": (
        "app", "conf", "amqp", "c", "consumer", "_consumer", "message", "worker", "state",
        "process", "pool", "_pool", "_task_pool", "_result_handler", "handler", "executor",
        "billiard_pool", "task", "task_class", "type(task)", "both", "connection", "transport",
        "channel", "cycle", "qos", "exc", "record", "package", "program",
        "spans[task_id, False][0]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("module", INSIDE)
def test_an_object_writes_its_own_attributes(module):
    """Through ``self``; whoever else writes one has a reason that stands above."""
    known = {name for names in WRITTEN_BY_OTHERS.values() for name in names}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            base = ast.unparse(node.value)
            last = base if base.endswith((")", "[0]")) else base.rpartition(".")[2]
            assert base in ("self", "cls") or last in known, f"line {node.lineno}: {base}"


def test_what_is_secret_is_not_committed():
    """A developer's .env may hold passwords; docker compose reads it from here."""
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


#: A module that a text mentions: `celery_budgets.room.module`, or `room.module` in brackets.
_MENTIONED = re.compile(r"\bcelery_budgets(?:\.\w+)+|(?<![\w./`])(?:[a-z_]+\.){1,3}\w+(?![\w(/])")
#: What is written like a module and is none: files, hosts, and attributes of objects.
_ENDINGS = {"py", "md", "yml", "json", "toml", "svg", "log", "sock", "low", "undecodable"}


def texts_of(path: Path) -> Iterator[str]:
    """Every comment and docstring of a file."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def mentions(text: str) -> Iterator[str]:
    """The modules of this package that *text* mentions, each by its full name and what is in it."""
    rooms = {module.split(".")[1] for module in INSIDE}
    for match in _MENTIONED.finditer(text):
        name = match.group()
        first, *more = name.split(".")
        if more[-1] in _ENDINGS:
            continue
        if first == DOOR and more[0] in rooms:
            yield name
        elif first in rooms and not text[: match.start()].endswith("celery."):
            yield f"{DOOR}.{name}"


def exists(name: str) -> bool:
    """Return whether *name* is a module, or what a module has."""
    module = name
    while module not in MODULES:
        module = module.rpartition(".")[0]
    found = importlib.import_module(module)
    for part in name[len(module) + 1 :].split(".") if module != name else ():
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_a_text_mentions_exists(module):
    """With what is said to be in it: a text goes along when a module moves."""
    named = {name for text in texts_of(MODULES[module]) for name in mentions(text)}
    assert [name for name in sorted(named) if not exists(name)] == []


@pytest.mark.parametrize("text", ["worker.settling.contain", "see celery_budgets.worker.consuming"])
def test_the_check_of_texts_sees_a_module_that_has_gone(text):
    """By its full name, and below the package."""
    (name,) = mentions(text)
    assert not exists(name)
