"""Metrics, logs, traces, the audit log and the context of a request."""
