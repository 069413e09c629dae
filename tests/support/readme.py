"""The README in parts, as :mod:`tests.support.pages` takes pages apart."""

from __future__ import annotations

from tests.support.pages import Block, Page
from tests.support.places import ROOT

PAGE = Page(ROOT / "README.md")
README = PAGE.text
#: README without its blocks: prose, headings and tables.
PROSE = PAGE.prose


def blocks(language: str) -> list[Block]:
    """Return the blocks in *language*."""
    return PAGE.of(language)


def typed_commands() -> list[str]:
    """Return what the README has its reader type after a prompt."""
    return PAGE.typed
