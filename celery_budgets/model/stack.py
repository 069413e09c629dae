"""The stack of a call: where its body was at one moment.

Frames name files, lines and functions; there are no arguments and no values of variables.
"""

from __future__ import annotations

import linecache
import os
import site
import sysconfig
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple, Self

__all__ = ["MOST_BYTES", "MOST_FRAMES", "Frame", "Stack", "capped"]

#: Most frames of a stack, and bytes of their names: the outermost few and the innermost are kept.
MOST_FRAMES = 30
MOST_BYTES = 4096
_OUTERMOST = 5


class Frame(NamedTuple):
    """One function that was running: where it was."""

    file: str
    line: int
    function: str

    @property
    def place(self) -> str:
        """The name of its file, and the line."""
        return f"{os.path.basename(self.file)}:{self.line}"

    @property
    def is_of_user(self) -> bool:
        """Whether it is neither in the standard library nor in an installed package."""
        return not self.file.startswith(("<", *_installed()))

    def __str__(self) -> str:
        return f"{self.place} {self.function}"


class Stack(NamedTuple):
    """The frames of a body, innermost last."""

    frames: tuple[Frame, ...]
    #: When it was taken: an outcome of which it is the cause, or ``asked``.
    moment: str
    #: Seconds since the epoch; 0.0: not known.
    taken_at: float = 0.0
    #: The frames of the other threads of its process, where the setting asks for them.
    others: tuple[tuple[Frame, ...], ...] = ()
    #: Its label, where it was made on another machine: there other folders are installed ones.
    told: str | None = None

    @property
    def innermost(self) -> Frame | None:
        """The innermost frame of the user's own code; if there is none, of any."""
        own = (frame for frame in reversed(self.frames) if frame.is_of_user)
        return next(own, self.frames[-1] if self.frames else None)

    @property
    def label(self) -> str:
        """Where it was in one phrase: ``client.py:88 requests.get``."""
        if self.told is not None:
            return self.told
        frame = self.innermost
        if frame is None:
            return "unknown"
        number = len(self.frames) - 1 - self.frames[::-1].index(frame)
        called = self.frames[number + 1 : number + 2]
        return f"{frame.place} {_name_of(called[0]) if called else frame.function}"

    def lines(self) -> list[str]:
        """Return it as in a traceback, with the lines of source that can be read here."""
        told: list[str] = []
        for frame in self.frames:
            told.append(f'  File "{frame.file}", line {frame.line}, in {frame.function}')
            source = linecache.getline(frame.file, frame.line).strip()
            told += [f"    {source}"] if source else []
        return told

    def to_json(self) -> list[dict[str, Any]]:
        """Return its frames as JSON values, innermost last."""
        return [frame._asdict() for frame in self.frames]

    @classmethod
    def from_json(
        cls, frames: Iterable[Any], moment: str, taken_at: float = 0.0, told: str | None = None
    ) -> Self:
        """Return the stack in the output of :meth:`to_json`."""
        return cls(
            tuple(Frame(one["file"], one["line"], one["function"]) for one in frames),
            moment, taken_at, told=told,
        )  # fmt: skip


def capped(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """Return at most :data:`MOST_FRAMES` of *frames*, which are dropped from the middle."""
    kept = list(frames)
    while len(kept) > MOST_FRAMES or sum(len(f.file) + len(f.function) for f in kept) > MOST_BYTES:
        if len(kept) == 1:
            break
        kept.pop(min(_OUTERMOST, len(kept) - 2))
    return tuple(kept)


def _name_of(frame: Frame) -> str:
    """Return the name of an installed function, with that of its package: ``requests.get``."""
    for root in sorted(_installed(), key=len, reverse=True):
        if frame.file.startswith(root):
            package = frame.file[len(root) :].partition(os.sep)[0].removesuffix(".py")
            return f"{package}.{frame.function}"
    return frame.function


@cache
def _installed() -> tuple[str, ...]:
    """Return the folders of the standard library and of installed packages."""
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = {folder for folder in (*named, *_site_packages()) if folder}
    folders |= {os.path.realpath(folder) for folder in folders}
    return tuple(os.path.join(folder, "") for folder in folders)


def _site_packages() -> list[str]:
    return [*site.getsitepackages(), site.getusersitepackages()]
