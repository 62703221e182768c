"""Format results as JSON lines, tables and times."""

import json
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any

from rich.table import Table


def json_line(value: Any) -> str:
    """Return *value*, a dataclass or a dict, as one line of JSON."""
    return json.dumps(asdict(value) if is_dataclass(value) else value, default=_encode, ensure_ascii=False)  # type: ignore[arg-type]


def make_table(*columns: str, show_header: bool = True) -> Table:
    """Return an empty table without a frame."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0), show_header=show_header)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def format_time(time: datetime | None) -> str:
    """Return *time* in the local time zone, or an empty string for None."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S") if time else ""


def _encode(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
