"""Follow a job to its end."""

import click
from rich.live import Live
from rich.text import Text

from twofold._client import Client
from twofold._retry import Retry
from twofold._types.jobs import Job, JobState
from twofold.cli._job_display import format_event, render_job, render_progress
from twofold.cli._job_progress import JobProgress
from twofold.cli._output import json_line
from twofold.cli._session import Session
from twofold.errors import UnavailableError

EXIT_CODES = {JobState.SUCCEEDED: 0, JobState.FAILED: 1, JobState.REJECTED: 3, JobState.CANCELLED: 4}
SERVER_UNAVAILABLE = 5
INTERRUPTED = 130

EXIT_CODES_HELP = "Exit codes: 0 succeeded, 1 failed, 3 rejected, 4 cancelled, 5 server unavailable (the job continues), 130 interrupted."

RECONNECT = Retry(attempts=40)
"""About a minute and a half: a server that restarts first drains its requests and then loads the checkpoint."""


def watch_job(session: Session, job: Job) -> int:
    """Show a job until it is over and return the exit code; survive a restart of the server."""
    try:
        with session.client(RECONNECT) as client:
            if session.human_readable:
                _watch_live(session, client, job)
            else:
                _watch_as_lines(session, client, job)
            final = client.wait(job)
    except UnavailableError as error:
        click.echo(f"Error: {error}", err=True)
        click.echo(f"Next: The job continues once the server is back; follow it: twofold jobs watch {job.id}", err=True)
        return SERVER_UNAVAILABLE
    except KeyboardInterrupt:
        click.echo(f"\nThe job is still running. Follow it: twofold jobs watch {job.id}", err=True)
        click.echo(f"Cancel it: twofold jobs cancel {job.id}", err=True)
        return INTERRUPTED
    if session.as_json:
        click.echo(json_line(final))
    else:
        session.console.print(render_job(final))
    return EXIT_CODES[final.state]


def _watch_live(session: Session, client: Client, job: Job) -> None:
    progress = JobProgress(job=job)
    with Live(get_renderable=lambda: render_progress(progress), console=session.console, transient=True) as live:
        for event in client.watch(job):
            progress = progress.apply(event)
            if event.warning:
                live.console.print(Text("! ", style="yellow").append(event.message, style="default"))


def _watch_as_lines(session: Session, client: Client, job: Job) -> None:
    progress = JobProgress(job=job)
    for event in client.watch(job):
        before, progress = progress, progress.apply(event)
        line = json_line(event) if session.as_json else format_event(event, before)
        if line:
            click.echo(line)
