"""Reading, writing and counting: what the tools do with files.

Covers: the work itself, as plain functions. Does not cover: lanes and budgets
(:mod:`examples.tools.app` declares them).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["count_words", "python_files", "read", "write_atomically"]

CHUNK_BYTES = 1024 * 1024
#: Directories below which there is nothing of the project's own.
FOREIGN_DIRECTORIES = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
_WORD = re.compile(r"[^\W\d_]{2,}")


def read(path: str) -> dict[str, Any]:
    """Return the path, size in bytes, SHA-256 and number of lines of a file.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    size = lines = 0
    last = b"\n"
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    # A last line without an end is a line too.
    lines += last != b"\n"
    return {"path": path, "bytes": size, "sha256": digest.hexdigest(), "lines": lines}


def write_atomically(path: str | Path, text: str) -> int:
    """Write *text* to *path*, all of it or nothing, and return its size in bytes.

    Whoever reads *path* sees the old file or the new one. Missing directories are made.

    Raises:
        OSError: The file cannot be written; what stood at *path* still stands there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode("utf-8", "backslashreplace")
    # Beside the target, because a rename is atomic only within one file system.
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        # A soft time limit may interrupt at any line, so not only OSError.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    return len(data)


def count_words(path: str, most_common: int = 5) -> dict[str, Any]:
    """Return how many words a text file has, and its most frequent ones with their counts.

    Raises:
        OSError: The file cannot be read.
    """
    words: Counter[str] = Counter()
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            words.update(_WORD.findall(line.lower()))
    return {"path": path, "words": words.total(), "most_common": words.most_common(most_common)}


def python_files(root: Path) -> list[Path]:
    """Return the Python files below *root*, the nearest first, then by name.

    Virtual environments, hidden directories and installed packages below *root* are left out.
    """
    found = sorted(_walk(root), key=lambda path: (len(path.parts), path))
    return [path for path in found if path.is_file()]


def _walk(root: Path) -> Iterator[Path]:
    for directory, below, names in os.walk(root):
        here = Path(directory)
        below[:] = [
            name
            for name in below
            if not name.startswith(".")
            and name not in FOREIGN_DIRECTORIES
            and not (here / name / "pyvenv.cfg").exists()
        ]
        yield from (here / name for name in names if name.endswith(".py"))
