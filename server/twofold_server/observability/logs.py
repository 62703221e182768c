"""Log lines for machines: one JSON object a line on stderr."""

from __future__ import annotations

import datetime as dt
import logging
import sys

import msgspec

from twofold_server.observability.request_context import CALL, REQUEST

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Write time, level, logger, message, whatever `extra` holds, the request and the trace it belongs to, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if request := REQUEST.get():
            line["request"] = request.id
        if call := CALL.get():
            line |= {"trace_id": call.trace_id, "span_id": call.span_id}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def log_to_stderr(level: str) -> None:
    """Send all log lines of *level* and above to stderr, and the audit's whatever the level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("twofold_server.audit").setLevel(logging.INFO)
