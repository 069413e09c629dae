"""The README in parts: its code blocks, its tables, the commands that it names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


class Block(NamedTuple):
    """One fenced block: its language, the number of its first line, its text."""

    language: str
    line: int
    text: str


def _blocks() -> Iterator[Block]:
    language, first, lines = None, 0, []
    for number, line in enumerate(README.splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, first, lines = line[3:], number + 1, []
        else:
            yield Block(language, first, "\n".join(lines) + "\n")
            language = None
    assert language is None, "a block is not closed"


BLOCKS = tuple(_blocks())
#: README without its blocks: prose, headings and tables.
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[Block]:
    """Return the blocks in *language*."""
    return [block for block in BLOCKS if block.language == language]


def table(*heading: str) -> list[list[str]]:
    """Return the rows of the table with the columns *heading*, without the heading itself."""
    lines = iter(README.splitlines())
    for line in lines:
        if _cells(line) == list(heading):
            next(lines)
            rows = []
            for row in lines:
                if not row.startswith("|"):
                    break
                rows.append(_cells(row))
            return rows
    raise AssertionError(f"the README has no table with the columns {heading}")


def _cells(line: str) -> list[str]:
    # A | inside a cell is written \|.
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def typed_commands() -> list[str]:
    """Return what the README has its reader type after a prompt, and what its unit starts."""
    typed = [line[2:] for block in blocks("console") for line in block.text.splitlines()
             if line.startswith("$ ")]  # fmt: skip
    for block in blocks("ini"):
        typed += re.findall(r"^ExecStart=(.*)$", block.text, flags=re.MULTILINE)
    return typed


def celery_commands() -> list[list[str]]:
    """Return the arguments of every `celery` command, also of those in prose and tables."""
    texts = [*typed_commands(), *re.findall(r"`(celery -A [^`]+)`", PROSE)]
    words = [shlex.split(text) for text in texts]
    return [line[1:] for line in words if line[0].rpartition("/")[2] == "celery"]
