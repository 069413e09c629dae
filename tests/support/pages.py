"""The pages of the documentation in parts: code blocks, tables, commands, prose.

Tables that a page takes from the code (``{facts}``) are put where they stand, as Sphinx does.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import click
from celery.bin.celery import celery

from celery_budgets.cli import lanes
from tests.support.places import ROOT

DOCS = ROOT / "docs"


def script(path: str) -> ModuleType:
    """Return a module of ``docs``, which is no package."""
    file = DOCS / path
    sys.path.insert(0, str(file.parent))
    try:
        spec = importlib.util.spec_from_file_location(f"docs_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


FACTS = script("_ext/facts.py")


class Block(NamedTuple):
    """One fenced block: its language, the number of its first line, its text."""

    language: str
    line: int
    text: str
    #: The file that the line before it names, as in "`tools.py`:".
    file: str | None = None


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """Its path below the root of the repository."""
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        """All of it, with its tables of facts."""
        return re.sub(
            r"^:::\{facts\} (\w+)\n:::$",
            lambda found: FACTS.TABLES[found[1]](),
            self.path.read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Its fenced blocks."""
        found, first, language, lines, before, file = [], 0, None, [], "", None
        for number, line in enumerate(self.path.read_text("utf-8").splitlines(), start=1):
            if not line.startswith("```"):
                lines.append(line)
                before = line.strip() or before
            elif language is None:
                language, first, lines = line[3:], number + 1, []
                named = re.search(r"`([\w/-]+\.\w+)`[^`]*:$", before)
                file = named[1] if named else None
            else:
                found.append(Block(language, first, "\n".join(lines) + "\n", file))
                language = None
        assert language is None, f"{self.name}: a block is not closed"
        return tuple(found)

    @cached_property
    def prose(self) -> str:
        """All but its blocks."""
        return re.sub(r"^```.*?^```", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @property
    def anchors(self) -> set[str]:
        """What a link may lead to: headings by the rule of the usual renderers, and labels."""
        headings = re.findall(r"^#+ (.+)$", self.prose, flags=re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings}
        return slugs | set(re.findall(r"^\(([\w-]+)\)=$", self.prose, flags=re.MULTILINE))

    def of(self, language: str) -> list[Block]:
        """Return its blocks in *language*."""
        return [block for block in self.blocks if block.language == language]

    def table(self, *heading: str) -> list[list[str]]:
        """Return the rows of its table with the columns *heading*, without the heading."""
        lines = iter(self.text.splitlines())
        for line in lines:
            if _cells(line) == list(heading):
                next(lines)
                rows = []
                for row in lines:
                    if not row.startswith("|"):
                        break
                    rows.append(_cells(row))
                return rows
        raise AssertionError(f"{self.name} has no table with the columns {heading}")

    @property
    def typed(self) -> list[str]:
        """What it has its reader type after a prompt, and what its unit starts."""
        typed = [line[2:] for block in self.of("console") for line in block.text.splitlines()
                 if line.startswith("$ ")]  # fmt: skip
        for block in self.of("ini"):
            typed += re.findall(r"^ExecStart=(.*)$", block.text, flags=re.MULTILINE)
        return typed

    @property
    def celery_commands(self) -> list[list[str]]:
        """The arguments of every `celery` command, also of those in prose and tables."""
        texts = [*self.typed, *re.findall(r"`(celery -A [^`]+)`", self.prose)]
        words = [shlex.split(" ".join(text.split())) for text in texts]
        return [line[1:] for line in words if line and line[0].rpartition("/")[2] == "celery"]


def _cells(line: str) -> list[str]:
    # A | inside a cell is written \|.
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


#: Every page by its path below ``docs``.
PAGES = {str(path.relative_to(DOCS)): Page(path) for path in sorted(DOCS.rglob("*.md"))}
#: All pages in one text, and their prose alone.
ALL = "\n\n".join(page.text for page in PAGES.values())
PROSE = "\n\n".join(page.prose for page in PAGES.values())


def table(*heading: str) -> list[list[str]]:
    """Return the rows of the tables with the columns *heading*, of all pages."""
    rows = []
    for page in PAGES.values():
        text = page.text
        while True:
            head = "| " + " | ".join(heading) + " |\n"
            _, found, text = text.partition(head)
            if not found:
                break
            _, _, body = text.partition("\n")
            for line in body.splitlines():
                if not line.startswith("|"):
                    break
                rows.append(_cells(line))
    assert rows, f"no page has a table with the columns {heading}"
    return rows


def check_command(arguments: list[str]) -> None:
    """Raise where click does not know a `celery` command, or an option or argument of it."""
    words = list(arguments)
    assert words[0] == "-A", words
    command: click.Command = celery
    context = click.Context(celery)
    words = words[2:]
    while isinstance(command, click.Group) and words:
        name = words.pop(0)
        if name == "flower" and name not in command.commands:
            return  # an extra
        found = lanes if name == "lanes" else command.get_command(context, name)
        assert found is not None, f"celery has no command {name}"
        command = found
    command.make_context("celery", words, resilient_parsing=True)
