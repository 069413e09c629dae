"""A critic of Python files: reads, parses, and reports what a reviewer would.

One pass over the syntax tree; each rule sees the nodes that it asks for
(:mod:`examples.tools.rules`). A line with a ``noqa`` comment is left alone, and a file that
does not parse is a finding, not an error.
"""

from __future__ import annotations

import ast
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

from examples.tools.imports import unused_imports
from examples.tools.rules import RULES, Finding, Place

__all__ = ["as_markdown", "review"]

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar,
           ast.Match)  # fmt: skip


def review(path: str) -> list[Finding]:
    """Return the findings about a Python file, by line.

    Raises:
        OSError: The file cannot be read.
    """
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        try:
            # Honours a coding comment and a byte order mark.
            with tokenize.open(path) as file:
                source = file.read()
            tree = ast.parse(source, path)
        except SyntaxError as exc:
            return [Finding(exc.lineno or 1, "syntax-error", exc.msg)]
        except (UnicodeDecodeError, ValueError) as exc:
            return [Finding(1, "undecodable", str(exc))]
        except (RecursionError, MemoryError):
            # The parser's way to say that its own stack is full.
            return [Finding(1, "too-complex", "nested too deeply for Python's parser")]
    lines = source.splitlines()
    findings = [Finding(w.lineno, "syntax-warning", str(w.message)) for w in raised]
    findings += _findings(tree, path)
    return sorted(f for f in set(findings) if not _excused(f, lines))


def _findings(tree: ast.Module, path: str) -> Iterator[Finding]:
    places = list(_places(tree))
    for place in places:
        for rule in RULES.get(type(place.node), ()):
            yield from rule(place)
    # A package's __init__ imports for others.
    if not path.endswith("__init__.py"):
        yield from unused_imports([place.node for place in places])


def _places(tree: ast.Module) -> Iterator[Place]:
    """Yield each node with its scope and the number of blocks around it in that scope."""
    stack = [Place(tree, tree, 0)]
    while stack:
        place = stack.pop()
        yield place
        node, scope, depth = place
        if isinstance(node, _SCOPES):
            scope, depth = node, 0
        for child in ast.iter_child_nodes(node):
            # An elif is an if in its parent's else, and no deeper for a reader.
            is_elif = isinstance(node, ast.If) and node.orelse == [child]
            deeper = isinstance(child, _BLOCKS) and not (is_elif and isinstance(child, ast.If))
            stack.append(Place(child, scope, depth + deeper))


def _excused(finding: Finding, lines: list[str]) -> bool:
    return 0 < finding.line <= len(lines) and "# noqa" in lines[finding.line - 1]


def as_markdown(reviewed: dict[str, Any]) -> str:
    """Return the report on one file.

    Args:
        reviewed: What ``fs_read`` says of the file, and its ``findings``.
    """
    findings = [Finding(*finding) for finding in reviewed["findings"]]
    counts = Counter(finding.rule for finding in findings)
    summary = ", ".join(f"{count} {rule}" for rule, count in counts.most_common())
    report = [
        f"# {reviewed['path']}",
        "",
        f"{_count(reviewed['lines'], 'line')}, {_count(reviewed['bytes'], 'byte')}, "
        f"SHA-256 `{reviewed['sha256']}`.",
        "",
        f"{_count(len(findings), 'finding')}: {summary}." if findings else "Nothing to report.",
        "",
        *(f"- line {finding.line}: {finding.message} ({finding.rule})" for finding in findings),
    ]
    return "\n".join(report).rstrip() + "\n"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
