"""Telemetry of calls: spans, metrics, logs and statistics."""
