"""The settings that every subcommand shares."""

from dataclasses import dataclass

from rich.console import Console

from twofold._channel import Endpoint
from twofold._client import Client
from twofold._retry import Retry

_DEFAULT_RETRY = Retry()
_LOG_WIDTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The server that the command calls, and how the command prints results."""

    endpoint: Endpoint
    timeout: float
    as_json: bool

    def client(self, retry: Retry = _DEFAULT_RETRY) -> Client:
        """Return a new client. The caller closes it."""
        endpoint = self.endpoint
        return Client(
            endpoint.target,
            tls=endpoint.tls,
            token=endpoint.token,
            plaintext=endpoint.plaintext,
            timeout=self.timeout,
            retry=retry,
        )

    @property
    def console(self) -> Console:
        """The console for results: without markup, because labels and texts may contain brackets."""
        console = Console(highlight=False, markup=False)
        return console if console.is_terminal else Console(highlight=False, markup=False, width=_LOG_WIDTH)

    @property
    def human_readable(self) -> bool:
        """Whether to print tables and sentences: on a terminal without --json."""
        return self.console.is_terminal and not self.as_json
