"""The standard OTEL_* variables: which exporters, and which sampler, they stand for."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from celery_budgets.telemetry import exporters, meter_provider, spans

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No such variable from outside."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def given(monkeypatch):
    def give(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


@pytest.fixture
def provider(monkeypatch):
    """Make the tracer provider without setting it: ``provider(rate)``, or ``None``."""
    made = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)

    def make(rate=1.0):
        return made.pop() if spans._make_provider(rate) else None

    yield make
    for each in made:
        each.shutdown()


def names(signal):
    return [type(exporter).__name__ for exporter in exporters.exporters_for(signal)]


CONSOLE = {"TRACES": "ConsoleSpanExporter", "METRICS": "ConsoleMetricExporter"}
OTLP = {"TRACES": "OTLPSpanExporter", "METRICS": "OTLPMetricExporter"}


@pytest.mark.parametrize("signal", ["TRACES", "METRICS"])
@pytest.mark.parametrize(
    ("exporter", "expected"),
    [
        (None, [OTLP]),  # by the endpoint
        ("", [OTLP]),
        ("otlp", [OTLP]),
        ("otlp_proto_http", [OTLP]),
        ("console", [CONSOLE]),
        ("console,otlp", [CONSOLE, OTLP]),
        (" otlp , console ", [OTLP, CONSOLE]),
        ("console,console", [CONSOLE]),
        ("console,none", [CONSOLE]),
        ("none", []),
        ("None", []),
        (",", []),
    ],
)
def test_what_is_named_is_what_sends(given, caplog, signal, exporter, expected):
    """And nothing else: console does not send to port 4318."""
    given(ENDPOINT | ({} if exporter is None else {f"OTEL_{signal}_EXPORTER": exporter}))
    assert names(signal) == [kind[signal] for kind in expected]
    assert exporters.asked_for(signal) is bool(expected)
    assert not caplog.records


@pytest.mark.parametrize("signal", ["TRACES", "METRICS"])
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "opentelemetry-exporter-otlp-proto-grpc"),
        ({"OTEL_EXPORTER_OTLP_{}_PROTOCOL": "grpc"}, "opentelemetry-exporter-otlp-proto-grpc"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "set OTEL_EXPORTER_OTLP_PROTOCOL to one of"),
        ({"OTEL_{}_EXPORTER": "otlp_proto_grpc"}, "opentelemetry-exporter-otlp-proto-grpc"),
        ({"OTEL_{}_EXPORTER": "zipkin"}, "known: console, otlp_proto_http"),
    ],
)
def test_what_cannot_be_had_is_told_and_nothing_sends_in_its_place(
    given, caplog, provider, signal, variables, said
):
    """With the remedy; and no provider is made for nothing."""
    given(ENDPOINT | {name.format(signal): value for name, value in variables.items()})
    assert names(signal) == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("budgets.no_exporter: ")
    assert said in record.getMessage()
    made = provider() if signal == "TRACES" else meter_provider.make_meter_provider()
    assert made is None


def test_a_protocol_of_one_signal_goes_before_that_of_all(given):
    """As the specification has it."""
    given(ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    given({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"})
    assert names("TRACES") == ["OTLPSpanExporter"]
    assert names("METRICS") == []


def test_one_of_several_that_is_missing_leaves_the_others(given, provider):
    """Both are told of; one sends."""
    given({"OTEL_TRACES_EXPORTER": "zipkin,console"})
    processors = provider()._active_span_processor._span_processors
    assert len(processors) == 1


def test_an_exporter_that_cannot_be_made_fails_no_program(given, monkeypatch, caplog):
    """It is left out, and told of."""
    broken = SimpleNamespace(name="broken", load=lambda: int("no number"))
    monkeypatch.setattr(exporters, "entry_points", lambda **_: [broken])
    given({"OTEL_TRACES_EXPORTER": "broken"})
    assert names("TRACES") == []
    assert "the exporter broken fails (ValueError" in caplog.text


@pytest.mark.parametrize("value", ["true", "TRUE", " true "])
def test_a_disabled_sdk_sends_nothing(given, value):
    """Whatever else is asked for."""
    given(ENDPOINT | {"OTEL_SDK_DISABLED": value, "OTEL_TRACES_EXPORTER": "console"})
    assert not exporters.asked_for("TRACES")
    assert not exporters.asked_for("METRICS")


def test_nothing_is_asked_for_by_variables_of_logs(given):
    """They are no affair of this package."""
    given({"OTEL_LOGS_EXPORTER": "console", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://x"})
    assert not exporters.asked_for("TRACES")
    assert not exporters.asked_for("METRICS")


@pytest.mark.parametrize(
    ("name", "argument", "described"),
    [
        (None, None, "ParentBased{root:TraceIdRatioBased{0.25}"),
        ("", "0.5", "ParentBased{root:TraceIdRatioBased{0.25}"),
        ("always_on", None, "AlwaysOnSampler"),
        ("always_off", None, "AlwaysOffSampler"),
        ("ALWAYS_OFF", None, "AlwaysOffSampler"),
        ("traceidratio", "0.5", "TraceIdRatioBased{0.5}"),
        ("parentbased_always_on", None, "ParentBased{root:AlwaysOnSampler"),
        ("parentbased_always_off", None, "ParentBased{root:AlwaysOffSampler"),
        ("parentbased_traceidratio", "0.5", "ParentBased{root:TraceIdRatioBased{0.5}"),
    ],
)
def test_the_variable_decides_what_is_kept(given, caplog, provider, name, argument, described):
    """The setting only where it says nothing; both together are told of."""
    given({"OTEL_TRACES_EXPORTER": "console"})
    given({} if name is None else {"OTEL_TRACES_SAMPLER": name})
    given({} if argument is None else {"OTEL_TRACES_SAMPLER_ARG": argument})
    assert provider(0.25).sampler.get_description().startswith(described)
    told = [record.getMessage() for record in caplog.records]
    assert [text.split()[0] for text in told] == (["budgets.sample_rate_ignored"] if name else [])


@pytest.mark.parametrize(
    ("made", "expected"), [(lambda _: ALWAYS_OFF, ALWAYS_OFF), (lambda _: 7, None)]
)
def test_a_sampler_of_somebody_else_is_found(given, monkeypatch, caplog, made, expected):
    """By its entry point; one that is none keeps all, and says so."""
    entry_point = SimpleNamespace(name="own", load=lambda: made)
    monkeypatch.setattr(exporters, "entry_points", lambda **_: [entry_point])
    given({"OTEL_TRACES_SAMPLER": "own"})
    found = exporters.sampler(1.0)
    if expected is not None:
        assert found is expected
    else:
        assert "budgets.no_sampler" in caplog.text
        assert (
            found.should_sample(None, 2**127, "some").decision
            == ALWAYS_ON.should_sample(None, 2**127, "some").decision
        )


def test_a_sampler_that_is_not_there_keeps_all(given, caplog):
    """Rather than to lose what somebody looks for."""
    given({"OTEL_TRACES_SAMPLER": "unknown"})
    assert "TraceIdRatioBased{1.0}" in exporters.sampler(1.0).get_description()
    assert "budgets.no_sampler: OTEL_TRACES_SAMPLER=unknown" in caplog.text
