"""Find out why it does not work."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from twofold.cli._checks import Check, State, examine, local_check
from twofold.cli._session import Session, json_line

_MARKS = {State.OK: ("✓", "green"), State.WARNING: ("!", "yellow"), State.FAILED: ("✗", "red")}
_NO_SERVER = Check(
    name="local",
    state=State.FAILED,
    said="the server is not installed for this Python, so that its store cannot be looked at",
    todo="pip install 'twofold-service[server,cpu]', or run twofold-server doctor where it is",
)


@click.command()
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    help="Look at this store, and at what a server on this machine would run with, too.",
)
@click.pass_context
def doctor(ctx: click.Context, *, store: Path | None) -> None:
    """
    Check the server, and what this machine needs to be one; say what to do about each fault.

    Exit 1 if a check fails. Warnings are no failures.
    """
    session: Session = ctx.obj
    failed = False
    for one in _checks(session, store):
        failed |= one.state is State.FAILED
        if session.for_people:
            mark, style = _MARKS[one.state]
            line = Text.assemble((f"{mark} ", style), (f"{one.name:<12}", "bold"), one.said)
            session.console.print(line.append(f"\n  → {one.todo}", style="dim") if one.todo else line)
        else:
            click.echo(json_line(one))
    ctx.exit(1 if failed else 0)


def _checks(session: Session, store: Path | None) -> Iterator[Check]:
    yield from examine(session.endpoint, session.timeout)
    if store is not None:
        yield from _local(["--store", str(store)])


def _local(settings: list[str]) -> Iterator[Check]:
    """Let the server, which is a package of its own, look at this machine."""
    command = [sys.executable, "-m", "twofold_server", "doctor", "--json", *settings]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if "No module named" in ended.stderr:
        yield _NO_SERVER
        return
    if ended.returncode not in {0, 1} or not ended.stdout:
        said: Any = ended.stderr.strip().splitlines() or ["it said nothing"]
        yield Check(name="local", state=State.FAILED, said=said[-1], todo="Mend that setting, then ask again.")
        return
    yield from map(local_check, ended.stdout.splitlines())
