"""What every subcommand is given, and how it speaks."""

import json
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from twofold._channel import Endpoint
from twofold._client import Client
from twofold._retry import Retry

ORDINARY = Retry()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The server that the command speaks to, and how to print what it says."""

    endpoint: Endpoint
    timeout: float
    as_json: bool

    def client(self, retry: Retry = ORDINARY) -> Client:
        """Return a client, to be closed by the caller."""
        end = self.endpoint
        return Client(
            end.target, tls=end.tls, token=end.token, plaintext=end.plaintext, timeout=self.timeout, retry=retry
        )

    @property
    def console(self) -> Console:
        """Where results go."""
        # Labels and texts may hold brackets, so no markup. A log is not 80 columns wide.
        console = Console(highlight=False, markup=False)
        return console if console.is_terminal else Console(highlight=False, markup=False, width=200)

    @property
    def for_people(self) -> bool:
        """Whether a person reads the results."""
        return self.console.is_terminal and not self.as_json


def json_line(value: Any) -> str:
    """Return *value*, a dataclass or a dict, as a line of JSON."""
    return json.dumps(asdict(value) if is_dataclass(value) else value, default=_plain, ensure_ascii=False)  # type: ignore[arg-type]


def table(*columns: str) -> Table:
    """Return a table without a frame."""
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def when(moment: datetime | None) -> str:
    """Return *moment* in the reader's time."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
