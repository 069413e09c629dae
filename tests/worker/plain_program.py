"""A worker as it is where this package is not installed: it knows none of our commands.

`celery worker` would not do: it loads the entry point of this package with all others.
"""

from __future__ import annotations

import sys

from tests.worker.plain_app import app

if __name__ == "__main__":
    hostname, pool = sys.argv[1:]
    app.Worker(hostname=hostname, pool=pool, concurrency=1, loglevel="INFO").start()
