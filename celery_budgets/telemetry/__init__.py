"""What is said about a call: spans, metrics, logs, statistics."""
