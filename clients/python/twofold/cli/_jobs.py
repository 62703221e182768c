"""List, show, watch and cancel jobs, and fetch their reports."""

import re
import webbrowser
from pathlib import Path

import click
from rich.live import Live
from rich.text import Text

from twofold._client import Client
from twofold._retry import Retry
from twofold._types.jobs import Job, JobState
from twofold._types.report_format import ReportFormat
from twofold.cli._files import written_at_once
from twofold.cli._job_progress import Board, board_view, event_line, job_view
from twofold.cli._session import Session, json_line, table, when
from twofold.errors import UnavailableError

_WHICH = click.argument("job_id", metavar="[JOB]", required=False)
"""An argument that names a job, and the newest one if it is left out."""

EXIT_CODES = {JobState.SUCCEEDED: 0, JobState.FAILED: 1, JobState.REJECTED: 3, JobState.CANCELLED: 4}
SERVER_GONE = 5

PATIENT = Retry(attempts=40)
"""A minute and a half: a server that is stopped and started while somebody follows a job drains first, and then loads."""


@click.group(invoke_without_command=True)
@click.option("--limit", default=20, show_default=True, help="List at most so many.")
@click.pass_context
def jobs(ctx: click.Context, *, limit: int) -> None:
    """List the jobs, newest first, or do something with one."""
    if ctx.invoked_subcommand:
        return
    session: Session = ctx.obj
    shown = table("id", "state", "head", "made", "reason")
    with session.client() as client:
        for _, job in zip(range(limit), client.jobs(page_size=min(limit, 500)), strict=False):
            if session.for_people:
                state = f"{job.state} {job.phase}" if job.state is JobState.RUNNING else str(job.state)
                shown.add_row(job.id, state, job.head, when(job.create_time), job.reason)
            else:
                click.echo(json_line(job))
    if session.for_people:
        session.console.print(shown)


@jobs.command()
@_WHICH
@click.pass_obj
def show(session: Session, *, job_id: str | None) -> None:
    """Show what JOB, or the newest, measured and how it ended."""
    with session.client() as client:
        _print_job(session, _job(client, job_id))


@jobs.command()
@_WHICH
@click.pass_context
def watch(ctx: click.Context, *, job_id: str | None) -> None:
    """Follow JOB, or the newest, to its end; exit 0 succeeded, 1 failed, 3 rejected, 4 cancelled, 5 no server any more."""
    session: Session = ctx.obj
    with session.client() as client:
        job = _job(client, job_id)
    ctx.exit(follow(session, job))


@jobs.command()
@click.argument("job_id", metavar="JOB")
@click.pass_obj
def cancel(session: Session, *, job_id: str) -> None:
    """Stop JOB."""
    with session.client() as client:
        _print_job(session, client.cancel(job_id))


@jobs.command()
@_WHICH
@click.option("--json", "as_json", is_flag=True, help="Fetch the document that the page shows.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write here.  [default: JOB.html]")
@click.option("--open", "opens", is_flag=True, help="Show it in a browser.")
@click.pass_obj
def report(session: Session, *, job_id: str | None, as_json: bool, out: Path | None, opens: bool) -> None:
    """
    Fetch the report of JOB, or of the newest, once it is over: a page that needs nothing else.

    With --json and without --out the document goes to the standard output.
    """
    if opens and as_json:
        raise click.UsageError("--open shows the page; leave out --json")
    with session.client() as client:
        job_id = job_id or _job(client, None).id
        content = client.report(job_id, format=ReportFormat.JSON if as_json else ReportFormat.HTML)
    if as_json and out is None:
        click.echo(content)
        return
    path = out or Path(f"{re.sub(r'[^A-Za-z0-9._-]', '-', job_id)}.html")
    with written_at_once(path) as file:
        file.write(content)
    if opens and not webbrowser.open(path.absolute().as_uri()):
        raise click.ClickException(f"no browser was found; the report is in {path}: open it in one, or set BROWSER")
    click.echo(str(path) if session.for_people else json_line({"job": job_id, "report": str(path)}))


def follow(session: Session, job: Job) -> int:
    """Show a job until it is over and return the exit code. The server may be stopped and started meanwhile."""
    try:
        with session.client(PATIENT) as client:
            if session.for_people:
                _follow_live(session, client, job)
            else:
                _follow_in_lines(session, client, job)
            ended = client.wait(job)
    except UnavailableError as error:
        click.echo(f"Error: {error}", err=True)
        click.echo(f"The job goes on when the server is back. See it: twofold jobs watch {job.id}", err=True)
        return SERVER_GONE
    except KeyboardInterrupt:
        click.echo(f"\nThe job runs on. See it: twofold jobs watch {job.id}", err=True)
        click.echo(f"Stop it:                twofold jobs cancel {job.id}", err=True)
        return 130
    if session.as_json:
        click.echo(json_line(ended))
    else:
        session.console.print(job_view(ended))
    return EXIT_CODES[ended.state]


def _follow_live(session: Session, client: Client, job: Job) -> None:
    board = Board(job=job)
    console = session.console
    with Live(get_renderable=lambda: board_view(board), console=console, transient=True) as live:
        for event in client.watch(job):
            board = board.after(event)
            if event.warning:
                live.console.print(Text("! ", style="yellow").append(event.message, style="default"))


def _follow_in_lines(session: Session, client: Client, job: Job) -> None:
    board = Board(job=job)
    for event in client.watch(job):
        before, board = board, board.after(event)
        line = json_line(event) if session.as_json else event_line(event, before)
        if line:
            click.echo(line)


def _job(client: Client, job_id: str | None) -> Job:
    """Return the job of that id, or the newest one."""
    if job_id:
        return client.job(job_id)
    newest = next(client.jobs(page_size=1), None)
    if newest is None:
        raise click.ClickException("there is no job yet; make one: twofold adapt --help")
    return newest


def _print_job(session: Session, job: Job) -> None:
    if session.for_people:
        session.console.print(job_view(job))
    else:
        click.echo(json_line(job))
