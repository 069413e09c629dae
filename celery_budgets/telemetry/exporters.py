"""Creates the exporters and samplers that the standard ``OTEL_*`` variables name.

For programs without a provider of their own. Mirrors the SDK's configurator, which finds them by
entry points. That is not used itself, because it sets providers for all signals at once, and each
forked process would send its metrics again. Differs: ``otlp`` is HTTP if no protocol is named, as
the specification recommends, and an exporter that is unavailable is logged and left out.

Covers: traces and metrics. Does not cover: ``OTEL_LOGS_EXPORTER``, which is left to the program.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

__all__ = ["asked_for", "exporters_for", "sampler"]

logger = logging.getLogger(__name__)

#: Entry points of the exporters that "otlp" stands for, by protocol.
_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_PACKAGES = {
    "otlp_proto_http": "'celery-budgets[otlp]'",
    "otlp_proto_grpc": "opentelemetry-exporter-otlp-proto-grpc",
}
#: Samplers that a TracerProvider creates from the variables itself.
_SAMPLERS = frozenset(
    kind + ending
    for kind in ("", "parentbased_")
    for ending in ("always_on", "always_off", "traceidratio")
)


def asked_for(signal: str) -> bool:
    """Return whether a standard ``OTEL_*`` variable enables *signal*: TRACES or METRICS."""
    if _variable("OTEL_SDK_DISABLED").lower() == "true":
        return False
    return bool(_names(signal))


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def _names(signal: str) -> list[str]:
    """Return the names of the exporters that the variables request."""
    given = _variable(f"OTEL_{signal}_EXPORTER")
    if given:
        names = [name.strip() for name in given.split(",")]
        return [name for name in dict.fromkeys(names) if name and name.lower() != "none"]
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return ["otlp"] if any(map(_variable, endpoints)) else []


def exporters_for(signal: str) -> Iterator[Any]:
    """Yield the exporters, or metric readers, that the variables request; never raise.

    Logs each one that is unavailable, with the remedy.

    Args:
        signal: TRACES or METRICS.
    """
    group = f"opentelemetry_{signal.lower()}_exporter"
    for asked in _names(signal):
        name = _entry_point(signal, asked)
        if name is None:
            continue
        try:
            (found,) = list(entry_points(group=group, name=name))[:1]
            exporter = found.load()()
        except Exception as exc:
            _tell_missing(signal, asked, name, group, exc)
        else:
            yield exporter


def _entry_point(signal: str, name: str) -> str | None:
    """Return the entry point name of the exporter; ``None`` if the protocol is unknown."""
    if name != "otlp":
        return name
    variables = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next(filter(None, map(_variable, variables)), "http/protobuf")
    if protocol not in _OTLP:
        logger.warning(
            "budgets.no_exporter: the protocol %r of OTLP is not known, and no %s are sent; set "
            "OTEL_EXPORTER_OTLP_PROTOCOL to one of %s", protocol, signal.lower(), ", ".join(_OTLP),
        )  # fmt: skip
    return _OTLP.get(protocol)


def _tell_missing(signal: str, asked: str, name: str, group: str, exc: Exception) -> None:
    known = {entry_point.name for entry_point in entry_points(group=group)}
    package = _PACKAGES.get(name)
    if name in known and not isinstance(exc, ImportError):
        why, remedy = f"fails ({exc!r})", "look at its variables"
    else:
        why = "is not installed"
        remedy = f"pip install {package}" if package else f"known: {', '.join(sorted(known))}"
    logger.warning(
        "budgets.no_exporter: an OTEL_* variable asks for %s by %s, but the exporter %s %s; %s",
        signal.lower(), asked, name, why, remedy,
    )  # fmt: skip


def sampler(sample_rate: float) -> Any:
    """Return the sampler of a tracer provider; ``None`` if the provider creates it itself.

    ``OTEL_TRACES_SAMPLER`` decides if it is set, else *sample_rate*.

    Args:
        sample_rate: The setting ``budgets_span_sample_rate``, 0 to 1.
    """
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio, Sampler

    name = _variable("OTEL_TRACES_SAMPLER")
    if not name:
        return ParentBasedTraceIdRatio(sample_rate)
    if sample_rate != 1.0:
        logger.warning(
            "budgets.sample_rate_ignored rate=%s: OTEL_TRACES_SAMPLER=%s decides; drop one",
            sample_rate, name,
        )  # fmt: skip
    if name.lower() in _SAMPLERS:
        return None
    try:
        (found,) = list(entry_points(group="opentelemetry_traces_sampler", name=name))[:1]
        made = found.load()(os.environ.get("OTEL_TRACES_SAMPLER_ARG"))
        if not isinstance(made, Sampler):
            raise TypeError(f"{made!r} is no sampler")
        return made
    except Exception as exc:
        logger.warning("budgets.no_sampler: OTEL_TRACES_SAMPLER=%s: %r; all are kept", name, exc)
        return ParentBasedTraceIdRatio(1.0)
