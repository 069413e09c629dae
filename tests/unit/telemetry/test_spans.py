"""What a span repeats of its resource."""

from __future__ import annotations

from opentelemetry.sdk.resources import Resource

from celery_budgets.telemetry.spans import shared_attributes


def test_a_span_repeats_its_own_resource():
    """The last one is remembered; a program may set another provider meanwhile, as tests do."""
    first = Resource({"service.name": "tools", "host.name": "vm"})
    second = Resource({"service.name": "critics", "service.version": "2"})
    for _ in range(2):
        assert shared_attributes(first) == {"service.name": "tools"}
        assert shared_attributes(second) == {"service.name": "critics", "service.version": "2"}
        assert shared_attributes(None) == {}, "of a span that is not the SDK's"
