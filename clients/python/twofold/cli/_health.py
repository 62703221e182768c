"""The command `twofold health`."""

import click

from twofold._types.inference import Health
from twofold.cli._output import json_line
from twofold.cli._session import Session

_EXAMPLES = """
\b
Examples:
  twofold health
  twofold health twofold.v1.InferenceService
"""


@click.command(epilog=_EXAMPLES)
@click.argument("service", default="")
@click.pass_context
def health(ctx: click.Context, *, service: str) -> None:
    """
    Print the health of the server, for scripts.

    SERVICE is a gRPC service, such as twofold.v1.InferenceService; without it the whole server is checked. Exit with 0 if it
    is serving, otherwise with 1. To find the cause of a problem use `twofold doctor`.
    """
    session: Session = ctx.obj
    with session.client() as client:
        status = client.health(service)
    click.echo(status if session.human_readable else json_line({"service": service, "health": status}))
    ctx.exit(0 if status is Health.SERVING else 1)
