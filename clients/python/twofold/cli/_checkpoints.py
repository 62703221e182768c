"""See the checkpoints and the server, say which checkpoint answers, and delete others."""

import click

from twofold._types.checkpoints import Promotion
from twofold._types.inference import Health
from twofold.cli._session import Session, json_line, table, when


@click.command()
@click.pass_obj
def checkpoints(session: Session) -> None:
    """List the checkpoints, newest first."""
    with session.client() as client:
        shown = table("", "id", "aliases", "made", "scores", "parent")
        for one in client.checkpoints():
            if not session.for_people:
                click.echo(json_line(one))
                continue
            scores = "  ".join(f"{s.head} {s.metric} {100 * s.value:.1f}" for s in one.scores)
            mark = "●" if "current" in one.aliases else ""
            style = "bold" if mark else ""
            shown.add_row(
                mark, one.id, " ".join(one.aliases), when(one.create_time), scores, one.parent_id, style=style
            )
        if session.for_people:
            session.console.print(shown)


@click.command()
@click.pass_obj
def history(session: Session) -> None:
    """List who moved which alias, when and why, newest first."""
    with session.client() as client:
        shown = table("when", "alias", "from", "to", "who", "why")
        for one in client.alias_changes():
            if not session.for_people:
                click.echo(json_line(one))
                continue
            style = "bold" if one.alias == "current" else ""
            ids = one.from_id or "none", one.to_id or "none"
            shown.add_row(when(one.time), one.alias, *ids, one.who, one.why, style=style)
        if session.for_people:
            session.console.print(shown)


@click.command()
@click.argument("checkpoint")
@click.pass_obj
def promote(session: Session, *, checkpoint: str) -> None:
    """Make CHECKPOINT, an id or "candidate", the one that answers."""
    with session.client() as client:
        _tell(session, client.promote(checkpoint))


@click.command()
@click.pass_obj
def roll_back(session: Session) -> None:
    """Make the previous checkpoint the one that answers."""
    with session.client() as client:
        _tell(session, client.roll_back())


@click.command()
@click.argument("checkpoint")
@click.pass_obj
def delete(session: Session, *, checkpoint: str) -> None:
    """
    Remove CHECKPOINT, an id, for good.

    One that is current, previous or approved, or that a job needs, stays.
    """
    with session.client() as client:
        client.delete_checkpoint(checkpoint)
    click.echo(f"{checkpoint} is deleted." if session.for_people else json_line({"deleted": checkpoint}))


@click.command()
@click.pass_obj
def model(session: Session) -> None:
    """Describe the checkpoint that answers."""
    with session.client() as client:
        found = client.model()
    if not session.for_people:
        click.echo(json_line(found))
        return
    shown = table("", "")
    shown.show_header = False
    for name, value in (
        ("checkpoint", found.checkpoint_id),
        ("labels", ", ".join(found.labels)),
        ("entity types", ", ".join(found.entity_types)),
        ("backbone", f"{found.backbone}, {found.hidden_size} wide, windows of {found.max_tokens} tokens"),
        ("limits", f"{found.limits.max_texts} texts of {found.limits.max_characters} characters in a request"),
        ("server", found.server_version),
    ):
        shown.add_row(name, value)
    session.console.print(shown)


@click.command()
@click.argument("service", default="")
@click.pass_context
def health(ctx: click.Context, *, service: str) -> None:
    """
    Say whether the server is serving.

    With SERVICE, such as twofold.v1.InferenceService, say it of that one. Exit 1 if it is not serving.
    """
    session: Session = ctx.obj
    with session.client() as client:
        found = client.health(service)
    click.echo(found if session.for_people else json_line({"service": service, "health": found}))
    ctx.exit(0 if found is Health.SERVING else 1)


def _tell(session: Session, done: Promotion) -> None:
    if not session.for_people:
        click.echo(json_line(done))
    elif done.replaced_id == done.checkpoint.id:
        click.echo(f"{done.checkpoint.id} answers already.")
    else:
        click.echo(
            f"{done.checkpoint.id} answers now, in place of {done.replaced_id}, after {done.swap_seconds:.2f} s."
        )
