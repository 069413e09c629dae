"""Where the project is, and what processes have written into a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def json_lines(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield what processes have written into the ``*.jsonl`` files of *folder*, with the file.

    Whole lines only: the last one may be written just now.
    """
    for path in folder.glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield path, json.loads(line)
