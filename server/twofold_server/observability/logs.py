"""Structured logs: one JSON object per line on stderr."""

from __future__ import annotations

import datetime as dt
import logging
import sys

import msgspec

from twofold_server.observability.request_context import CALL_SPAN, REQUEST_ID

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats time, level, logger, message, `extra`, request id, trace id and traceback as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        line = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if request_id := REQUEST_ID.get():
            line["request"] = request_id.value
        if span := CALL_SPAN.get():
            line |= {"trace_id": span.trace_id, "span_id": span.span_id}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def log_to_stderr(level: str) -> None:
    """Log to stderr at *level* and above, and audit lines at any level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("twofold_server.audit").setLevel(logging.INFO)
