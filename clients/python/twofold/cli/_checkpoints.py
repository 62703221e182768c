"""The commands below `twofold checkpoints`; `promote` and `roll-back` are top-level commands, too."""

from collections.abc import Iterator

import click
from rich.text import Text

from twofold._types.checkpoints import Checkpoint, Promotion, Score
from twofold.cli._help import SectionedGroup
from twofold.cli._output import format_time, json_line, make_table
from twofold.cli._session import Session

_CURRENT = "current"


@click.group(cls=SectionedGroup)
def checkpoints() -> None:
    """List, show, promote and delete checkpoints."""


@checkpoints.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """
    List the checkpoints, newest first.

    ● marks the live checkpoint.
    """
    table = make_table("", "id", "aliases", "created", "scores", "parent")
    with session.client() as client:
        for checkpoint in client.checkpoints():
            if not session.human_readable:
                click.echo(json_line(checkpoint))
                continue
            live = _CURRENT in checkpoint.aliases
            table.add_row(
                "●" if live else "",
                checkpoint.id,
                " ".join(checkpoint.aliases),
                format_time(checkpoint.create_time),
                "  ".join(map(_format_score, checkpoint.scores)),
                checkpoint.parent_id,
                style="bold" if live else "",
            )
    if session.human_readable:
        session.console.print(table)


@checkpoints.command(
    epilog="""
\b
Examples:
  twofold checkpoints show
  twofold checkpoints show candidate --json
"""
)
@click.argument("checkpoint", default=_CURRENT)
@click.pass_obj
def show(session: Session, *, checkpoint: str) -> None:
    """
    Show everything about one checkpoint.

    CHECKPOINT is an id or an alias: current (the default), previous, candidate or approved.
    """
    with session.client() as client:
        stored = client.checkpoint(checkpoint)
    if not session.human_readable:
        click.echo(json_line(stored))
        return
    table = make_table("", "", show_header=False)
    for name, value in _properties(stored):
        table.add_row(Text(name, "dim"), value)
    session.console.print(table)


@checkpoints.command()
@click.argument("checkpoint")
@click.pass_obj
def promote(session: Session, *, checkpoint: str) -> None:
    """
    Make a checkpoint live.

    CHECKPOINT is an id or the alias candidate.
    """
    with session.client() as client:
        _print_promotion(session, client.promote(checkpoint))


@checkpoints.command()
@click.pass_obj
def roll_back(session: Session) -> None:
    """Make the previous checkpoint live again."""
    with session.client() as client:
        _print_promotion(session, client.roll_back())


@checkpoints.command()
@click.argument("checkpoint", metavar="ID")
@click.pass_obj
def delete(session: Session, *, checkpoint: str) -> None:
    """
    Delete a checkpoint permanently.

    The server refuses to delete a checkpoint that is current, previous or approved, or that a job needs.
    """
    with session.client() as client:
        client.delete_checkpoint(checkpoint)
    click.echo(f"Deleted {checkpoint}." if session.human_readable else json_line({"deleted": checkpoint}))


@checkpoints.command()
@click.pass_obj
def history(session: Session) -> None:
    """List who moved which alias, when and why, newest first."""
    table = make_table("time", "alias", "from", "to", "actor", "reason")
    with session.client() as client:
        for change in client.alias_changes():
            if not session.human_readable:
                click.echo(json_line(change))
                continue
            table.add_row(
                format_time(change.time),
                change.alias,
                change.from_id or "none",
                change.to_id or "none",
                change.actor,
                change.reason,
                style="bold" if change.alias == _CURRENT else "",
            )
    if session.human_readable:
        session.console.print(table)


def _properties(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    yield "id", checkpoint.id
    yield "aliases", ", ".join(checkpoint.aliases) or "none"
    yield "created", format_time(checkpoint.create_time)
    yield "parent", checkpoint.parent_id or "none"
    yield "job", checkpoint.job_id or "none"
    yield "backbone", checkpoint.backbone
    yield "size", f"{checkpoint.size_bytes / 1e6:.1f} MB"
    for score in checkpoint.scores:
        yield "score", f"{_format_score(score)} ({score.examples} examples)"
    yield "labels", ", ".join(checkpoint.labels)
    yield "entity types", ", ".join(checkpoint.entity_types)


def _format_score(score: Score) -> str:
    return f"{score.head} {score.metric} {100 * score.value:.1f}"


def _print_promotion(session: Session, promotion: Promotion) -> None:
    live, replaced = promotion.checkpoint.id, promotion.replaced_id
    if not session.human_readable:
        click.echo(json_line(promotion))
    elif replaced == live:
        click.echo(f"{live} is already live.")
    else:
        click.echo(f"{live} is live and replaces {replaced}; the swap took {promotion.swap_seconds:.2f} s.")
