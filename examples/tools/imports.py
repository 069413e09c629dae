"""The rule for unused imports: a name is used anywhere in the file, or nowhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from examples.tools.rules import Finding

__all__ = ["unused_imports"]

_NAMES = re.compile(r"[^\W\d]\w*")


def unused_imports(nodes: Iterable[ast.AST]) -> Iterator[Finding]:
    """Yield a finding for each import whose name is used nowhere in the file."""
    bound: list[tuple[int, str]] = []
    used: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound.extend(_bindings(node))
        elif isinstance(node, ast.Name):
            used.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used.update(_quoted_names(node.value))
    for line, name in bound:
        if name not in used and not name.startswith("__"):
            yield Finding(line, "unused-import", f"{name!r} is imported but not used")


def _bindings(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
        return
    for alias in node.names:
        # "import x as x" says on purpose that x is for others.
        if alias.name != "*" and alias.asname != alias.name:
            yield alias.lineno, alias.asname or alias.name.split(".")[0]


def _quoted_names(text: str) -> list[str]:
    """Return the names in a string that may be an entry of ``__all__`` or an annotation."""
    return _NAMES.findall(text) if len(text) < 100 and "\n" not in text else []
