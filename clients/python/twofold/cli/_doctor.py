"""The command `twofold doctor`."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich.text import Text

from twofold.cli._checks import Check, State, check_server, parse_check
from twofold.cli._output import json_line
from twofold.cli._session import Session

_MARKS = {State.OK: ("✓", "green"), State.WARNING: ("!", "yellow"), State.FAILED: ("✗", "red")}
_SERVER_NOT_INSTALLED = Check(
    name="local",
    state=State.FAILED,
    message="cannot check the store: the server is not installed for this Python",
    fix="Run pip install 'twofold-service[server,cpu]', or run twofold-server doctor where the server is installed.",
)
_EXAMPLES = """
\b
Examples:
  twofold doctor
  twofold doctor --store store
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also check this store and this machine, as `twofold-server doctor` does.",
)
@click.pass_context
def doctor(ctx: click.Context, *, store: Path | None) -> None:
    """
    Check the server, with a fix for each fault.

    The checks run step by step. Exit with 1 if a check fails. Warnings are not failures.
    """
    session: Session = ctx.obj
    failed = False
    for check in _run_checks(session, store):
        failed |= check.state is State.FAILED
        if session.human_readable:
            session.console.print(_render(check))
        else:
            click.echo(json_line(check))
    ctx.exit(1 if failed else 0)


def _run_checks(session: Session, store: Path | None) -> Iterator[Check]:
    yield from check_server(session.endpoint, session.timeout)
    if store is not None:
        yield from _check_machine(store)


def _check_machine(store: Path) -> Iterator[Check]:
    """Yield the checks of `twofold-server doctor`, which is in another package."""
    command = [sys.executable, "-m", "twofold_server", "doctor", "--json", "--store", str(store)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if "No module named" in result.stderr:
        yield _SERVER_NOT_INSTALLED
    elif result.returncode not in {0, 1} or not result.stdout:
        lines = result.stderr.strip().splitlines() or ["twofold-server doctor printed nothing"]
        yield Check(name="local", state=State.FAILED, message=lines[-1], fix="Fix that setting and run doctor again.")
    else:
        yield from map(parse_check, result.stdout.splitlines())


def _render(check: Check) -> Text:
    mark, style = _MARKS[check.state]
    line = Text.assemble((f"{mark} ", style), (f"{check.name:<12}", "bold"), check.message)
    return line.append(f"\n  → {check.fix}", style="dim") if check.fix else line
