"""What a browser asks and what it gets, whatever server is between them.

Runs in the process that serves the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MOST_BYTES", "SAFE_HEADERS", "Answer", "Request", "as_json", "refusal"]

#: Largest body of a request, and largest path with its query, bytes.
MOST_BYTES = 4096

#: Of every answer. The page loads nothing from elsewhere, and no other page may frame it.
SAFE_HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose sender may make it."""

    method: str
    #: Below where the page is mounted, such as ``/lanes.json``.
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    #: Who asks, for the record of what operators do.
    sender: str = ""
    #: Whether the page itself has sent it, and no other page that the browser has open.
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    #: Headers besides :data:`SAFE_HEADERS`, the kind and the length.
    headers: tuple[tuple[str, str], ...] = ()


def refusal(status: int, reason: str, *headers: tuple[str, str]) -> Answer:
    """Return an answer that is an error, with its reason as text."""
    return Answer(status, f"{reason}\n".encode(), headers=headers)


def as_json(value: Any, status: int = 200) -> Answer:
    """Return *value* as JSON."""
    return Answer(status, json.dumps(value, indent=2).encode() + b"\n", "application/json")
