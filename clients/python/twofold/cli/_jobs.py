"""The commands below `twofold jobs`."""

import re
import webbrowser
from pathlib import Path

import click

from twofold._client import Client
from twofold._types.jobs import Job, JobState, ReportFormat
from twofold.cli._files import atomic_write
from twofold.cli._help import SectionedGroup
from twofold.cli._job_display import render_job
from twofold.cli._output import format_time, json_line, make_table
from twofold.cli._session import Session
from twofold.cli._watch import EXIT_CODES_HELP, watch_job

_MAX_PAGE_SIZE = 500
_JOB_OR_NEWEST = click.argument("job_id", metavar="[JOB]", required=False)


@click.group(cls=SectionedGroup)
def jobs() -> None:
    """List, show, watch and cancel adaptation jobs."""


@jobs.command("list")
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Maximum number of jobs to list.",
)
@click.pass_obj
def list_(session: Session, *, limit: int) -> None:
    """List the jobs, newest first."""
    table = make_table("id", "state", "head", "created", "reason")
    with session.client() as client:
        newest = client.jobs(page_size=min(limit, _MAX_PAGE_SIZE))
        for _, job in zip(range(limit), newest, strict=False):
            if session.human_readable:
                state = f"{job.state} {job.phase}" if job.state is JobState.RUNNING else str(job.state)
                table.add_row(job.id, state, job.head, format_time(job.create_time), job.reason)
            else:
                click.echo(json_line(job))
    if session.human_readable:
        session.console.print(table)


@jobs.command()
@_JOB_OR_NEWEST
@click.pass_obj
def show(session: Session, *, job_id: str | None) -> None:
    """
    Show the state and the results of a job.

    Without JOB, the newest job is shown.
    """
    with session.client() as client:
        _print_job(session, _get_job(client, job_id))


@jobs.command(epilog=EXIT_CODES_HELP)
@_JOB_OR_NEWEST
@click.pass_context
def watch(ctx: click.Context, *, job_id: str | None) -> None:
    """
    Follow a job until it ends.

    Without JOB, the newest job is followed.
    """
    session: Session = ctx.obj
    with session.client() as client:
        job = _get_job(client, job_id)
    ctx.exit(watch_job(session, job))


@jobs.command()
@click.argument("job_id", metavar="JOB")
@click.pass_obj
def cancel(session: Session, *, job_id: str) -> None:
    """Cancel a job and wait until it has stopped."""
    with session.client() as client:
        _print_job(session, client.cancel(job_id))


@jobs.command(
    epilog="""
\b
Examples:
  twofold jobs report --open
  twofold jobs report JOB --output report.html
  twofold jobs report JOB --json
"""
)
@_JOB_OR_NEWEST
@click.option("--json", "as_json", is_flag=True, help="Fetch the report as JSON instead of HTML.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report to this file.  [default: JOB.html; with --json the standard output]",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a web browser.")
@click.pass_obj
def report(session: Session, *, job_id: str | None, as_json: bool, output: Path | None, open_browser: bool) -> None:
    """
    Download the report of a finished job.

    The report is one self-contained HTML page. Without JOB, the report of the newest job is downloaded.
    """
    if open_browser and as_json:
        raise click.UsageError("--open shows the HTML page; leave out --json")
    with session.client() as client:
        job_id = job_id or _get_job(client, None).id
        content = client.report(job_id, format=ReportFormat.JSON if as_json else ReportFormat.HTML)
    if as_json and output is None:
        click.echo(content)
        return
    path = output or Path(f"{re.sub(r'[^A-Za-z0-9._-]', '-', job_id)}.html")
    with atomic_write(path) as file:
        file.write(content)
    if open_browser and not webbrowser.open(path.absolute().as_uri()):
        raise click.ClickException(f"no web browser found; the report is in {path}. Open it yourself, or set BROWSER")
    click.echo(str(path) if session.human_readable else json_line({"job": job_id, "report": str(path)}))


def _get_job(client: Client, job_id: str | None) -> Job:
    """Return the job with that id, or the newest job for None."""
    if job_id:
        return client.job(job_id)
    newest = next(client.jobs(page_size=1), None)
    if newest is None:
        raise click.ClickException("there are no jobs yet; create one: twofold adapt --help")
    return newest


def _print_job(session: Session, job: Job) -> None:
    if session.human_readable:
        session.console.print(render_job(job))
    else:
        click.echo(json_line(job))
