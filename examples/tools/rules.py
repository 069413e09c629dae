"""The critic's rules: each takes a place in a syntax tree and yields what is wrong with it.

A rule reports what is certain from the syntax alone; where it cannot know, it is silent.
See also: :mod:`examples.tools.imports`, the one rule that needs the whole file.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

__all__ = ["RULES", "Finding", "Place"]

LONGEST_FUNCTION = 80
DEEPEST_BLOCK = 4

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Finding(NamedTuple):
    """One remark on one line."""

    line: int
    rule: str
    message: str


class Place(NamedTuple):
    """A node, the scope that it stands in, and the number of blocks around it there."""

    node: ast.AST
    scope: ast.AST
    depth: int


Rule = Callable[[Place], Iterator[Finding]]

# The site module adds names that exist only for people at a prompt.
_BUILTINS = frozenset(name for name in vars(builtins) if not name.startswith("_")) - {
    "copyright", "credits", "exit", "help", "license", "quit",
}  # fmt: skip


def bare_except(place: Place) -> Iterator[Finding]:
    """``except:`` also catches Ctrl-C."""
    node = place.node
    assert isinstance(node, ast.ExceptHandler)
    reraises = bool(node.body) and isinstance(node.body[-1], ast.Raise)
    if node.type is None and not reraises:
        yield Finding(
            node.lineno, "bare-except", "'except:' also catches SystemExit and Ctrl-C; name a type"
        )


def mutable_default(place: Place) -> Iterator[Finding]:
    """A default that all calls share."""
    node = place.node
    assert isinstance(node, Function | ast.Lambda)
    for default in (*node.args.defaults, *node.args.kw_defaults):
        if default is not None and _is_mutable(default):
            yield Finding(
                default.lineno, "mutable-default", "all calls share this mutable default; use None"
            )


def _is_mutable(default: ast.expr) -> bool:
    if isinstance(default, ast.Call) and isinstance(default.func, ast.Name):
        return default.func.id in {"list", "dict", "set", "bytearray"}
    return isinstance(default, ast.List | ast.Dict | ast.Set)


def long_function(place: Place) -> Iterator[Finding]:
    """More lines than a reader keeps in mind."""
    node = place.node
    assert isinstance(node, Function)
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    if length > LONGEST_FUNCTION:
        yield Finding(
            node.lineno,
            "long-function",
            f"{node.name}() has {length} lines; {LONGEST_FUNCTION} are enough",
        )


def deep_nesting(place: Place) -> Iterator[Finding]:
    """The first block that is nested too deeply; those inside it are the same finding."""
    if place.depth == DEEPEST_BLOCK + 1:
        assert isinstance(place.node, ast.stmt)
        yield Finding(
            place.node.lineno,
            "deep-nesting",
            f"nested {place.depth} blocks deep; {DEEPEST_BLOCK} are enough",
        )


def shadowed_builtin(place: Place) -> Iterator[Finding]:
    """A name that hides a builtin from the rest of its scope."""
    node = place.node
    # In a class, the name is an attribute and hides nothing.
    in_class = isinstance(place.scope, ast.ClassDef)
    if isinstance(node, ast.arg):
        name = "" if isinstance(place.scope, ast.Lambda) else node.arg
    elif isinstance(node, ast.Name):
        name = "" if in_class or not isinstance(node.ctx, ast.Store) else node.id
    else:
        assert isinstance(node, Function | ast.ClassDef)
        name = "" if in_class else node.name
    if name in _BUILTINS:
        yield Finding(node.lineno, "shadowed-builtin", f"{name!r} hides the builtin of that name")


def none_comparison(place: Place) -> Iterator[Finding]:
    """``== None`` asks the other object, which may say anything."""
    node = place.node
    assert isinstance(node, ast.Compare)
    for operator, right in zip(node.ops, node.comparators, strict=True):
        is_none = isinstance(right, ast.Constant) and right.value is None
        if is_none and isinstance(operator, ast.Eq | ast.NotEq):
            word = "is" if isinstance(operator, ast.Eq) else "is not"
            yield Finding(node.lineno, "none-comparison", f"compare with None by '{word}'")


def tuple_assertion(place: Place) -> Iterator[Finding]:
    """``assert (condition, "message")`` can never fail."""
    node = place.node
    assert isinstance(node, ast.Assert)
    if isinstance(node.test, ast.Tuple) and node.test.elts:
        yield Finding(node.lineno, "tuple-assertion", "a non-empty tuple is always true")


def unreachable_code(place: Place) -> Iterator[Finding]:
    """A statement that follows a jump in the same block."""
    for block in ("body", "orelse", "finalbody"):
        statements = getattr(place.node, block, None)
        if not isinstance(statements, list):
            continue
        for before, after in pairwise(statements):
            if isinstance(before, ast.Return | ast.Raise | ast.Break | ast.Continue):
                word = type(before).__name__.lower()
                yield Finding(
                    after.lineno, "unreachable-code", f"never runs: it follows a '{word}'"
                )
                break


def repeated_key(place: Place) -> Iterator[Finding]:
    """A dict display that gives a key two values."""
    node = place.node
    assert isinstance(node, ast.Dict)
    seen: set[tuple[type, object]] = set()
    for key in node.keys:
        if not isinstance(key, ast.Constant):
            continue
        typed = (type(key.value), key.value)
        if typed in seen:
            yield Finding(key.lineno, "repeated-key", f"the key {key.value!r} is given twice")
        seen.add(typed)


RULES: dict[type[ast.AST], tuple[Rule, ...]] = {
    ast.ExceptHandler: (bare_except, unreachable_code),
    ast.FunctionDef: (mutable_default, long_function, shadowed_builtin, unreachable_code),
    ast.AsyncFunctionDef: (mutable_default, long_function, shadowed_builtin, unreachable_code),
    ast.Lambda: (mutable_default,),
    ast.ClassDef: (shadowed_builtin,),
    ast.arg: (shadowed_builtin,),
    ast.Name: (shadowed_builtin,),
    ast.Compare: (none_comparison,),
    ast.Assert: (tuple_assertion,),
    ast.Dict: (repeated_key,),
    **dict.fromkeys(
        (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar),
        (deep_nesting, unreachable_code),
    ),
    ast.Match: (deep_nesting,),
}
