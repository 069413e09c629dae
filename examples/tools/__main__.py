"""Reviews every Python file below a directory, with one worker per lane.

Each file goes through fs_read, critics_run and fs_write; a forecast runs beside them, and a
few calls that break their budget on purpose. Without CELERY_BROKER_URL a server of its own is
started, and stopped at the end.
"""

from __future__ import annotations

import argparse
import signal
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from examples.tools.files import python_files
from examples.tools.interrupts import plain_interrupts

EXIT_DONE = 0
EXIT_FAILED = 1
#: What a shell reports of a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job, and return the exit code."""
    # SIGINT too: a shell starts a background program with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    run = None
    try:
        files, root, output, web = _read(arguments)
        # Here, because this import takes a second, in which Ctrl-C may come too.
        with plain_interrupts():
            from examples.tools.run import Run

        run = Run(files, root, output, web=web)
        return EXIT_DONE if run.execute() else EXIT_FAILED
    except KeyboardInterrupt:
        if run is None:
            print("interrupted before anything was started")
        return EXIT_INTERRUPTED


def _read(arguments: Sequence[str] | None) -> tuple[list[Path], Path, Path | None, bool]:
    """Return the files, the directory that they are below, that for the output, and --web."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.tools",
        description=__doc__,
        epilog="Exits with 0 when every call has an outcome, with 1 otherwise.",
    )
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=Path(sysconfig.get_path("stdlib")),
        metavar="DIRECTORY",
        help="where the Python files are (default: the standard library)",
    )
    parser.add_argument("--limit", type=int, default=300, metavar="N", help="at most N files (300)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="for the reports (default: a new temporary one)"
    )
    parser.add_argument(
        "--web", action="store_true", help="show the lanes on a page too, until Ctrl-C"
    )
    options = parser.parse_args(arguments)
    if not options.directory.is_dir():
        parser.error(f"{options.directory} is not a directory")
    if options.limit < 1:
        parser.error(f"--limit {options.limit}: give 1 or more")
    root = options.directory.absolute()
    files = python_files(root)[: options.limit]
    if not files:
        parser.error(f"there is no Python file below {root}")
    return files, root, options.output, options.web


if __name__ == "__main__":
    sys.exit(main())
