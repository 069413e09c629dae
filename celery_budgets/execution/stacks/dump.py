"""Reads the stacks that faulthandler, or the watchdog in its form, has written to a file.

Each is preceded by a line of ours: its moment, and the start of the call that was running.

Used in the pool process that writes notes, and in the worker main process.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from celery_budgets.execution.stacks.frames import MARKER, below_body, is_own
from celery_budgets.model.stack import Frame, Stack, capped

__all__ = ["heading", "is_complete", "stacks_in", "text_of"]

_HEADING = re.compile(r"# (\w+) (\S+) (\S+)")
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
#: faulthandler writes this in place of the outermost frames of a deep stack.
_CUT_OFF = "  ..."


def heading(moment: str, started_at: float, now: float) -> str:
    """Return the line that precedes a stack of the call that started at *started_at* (epoch)."""
    return f"# {moment} {started_at!r} {now!r}\n"


def text_of(body: Sequence[Frame], others: Sequence[Sequence[Frame]] = ()) -> str:
    """Return the frames of a *body* and of other threads as faulthandler does, innermost first."""
    threads = [(Frame(MARKER[0], 0, MARKER[1]), *body), *others]
    return "Thread\n".join(
        "".join(f'  File "{f.file}", line {f.line} in {f.function}\n' for f in reversed(frames))
        for frames in threads
    )


def is_complete(text: str, outermost: Collection[tuple[str, str]]) -> bool:
    """Return whether the stack of a thread is written to its end.

    Args:
        text: What faulthandler has written, innermost first.
        outermost: The file and the function of what may be the outermost frame.
    """
    last = text.splitlines()[-1] if text.endswith("\n") else ""
    found = _FRAME.fullmatch(last)
    return last == _CUT_OFF or bool(found and (_plain(found[1]), _plain(found[3])) in outermost)


def stacks_in(text: str, started_at: float) -> Iterator[Stack]:
    """Yield the stacks of one call in *text*, of a body each, in the order of their taking."""
    section: list[str] = []
    about: tuple[str, str, str] | None = None
    for line in [*text.splitlines(), "# end 0 0"]:
        found = _HEADING.fullmatch(line)
        if found is None:
            section.append(line)
            continue
        if about is not None and about[1] == repr(started_at):
            frames, others = _threads_in(section)
            if frames:
                yield Stack(frames, about[0], float(about[2]), others)
        section, about = [], (found[1], found[2], found[3])


def _threads_in(
    lines: Sequence[str],
) -> tuple[tuple[Frame, ...], tuple[tuple[Frame, ...], ...]]:
    """Return the frames of the body, and those of the other threads."""
    threads: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("  "):
            threads[-1].append(line)
        elif threads[-1]:
            threads.append([])
    body: tuple[Frame, ...] = ()
    others = []
    for thread in threads:
        frames = [
            Frame(_plain(found[1]), int(found[2]) if found[2].isdigit() else 0, _plain(found[3]))
            for line in reversed(thread) if (found := _FRAME.fullmatch(line))
        ]  # fmt: skip
        own = below_body(frames, cut_off=len(threads) == 1 and _CUT_OFF in thread)
        if own and not body:
            body = own
        elif frames and not any(is_own(frame) for frame in frames):
            others.append(capped(frames))
    return body, tuple(others)


def _plain(text: str) -> str:
    """Return *text* without the escapes of faulthandler, which writes ASCII."""
    return _ESCAPED.sub(lambda found: chr(int(found[1] or found[2] or found[3], 16)), text)
