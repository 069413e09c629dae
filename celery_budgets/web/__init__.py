"""The page of the lanes: what ``celery lanes status`` prints, live in a browser.

Runs in the process that serves it.
"""

from __future__ import annotations
