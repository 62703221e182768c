"""The commands below `twofold model`."""

import click

from twofold.cli._help import SectionedGroup
from twofold.cli._output import json_line, make_table
from twofold.cli._session import Session


@click.group(cls=SectionedGroup)
def model() -> None:
    """Inspect the model that answers requests."""


@model.command()
@click.pass_obj
def show(session: Session) -> None:
    """Show the labels, entity types and limits of the live checkpoint."""
    with session.client() as client:
        model = client.model()
    if not session.human_readable:
        click.echo(json_line(model))
        return
    table = make_table("", "", show_header=False)
    for name, value in (
        ("checkpoint", model.checkpoint_id),
        ("labels", ", ".join(model.labels)),
        ("entity types", ", ".join(model.entity_types)),
        ("backbone", f"{model.backbone}, hidden size {model.hidden_size}, {model.max_tokens} tokens per window"),
        ("precision", model.precision),
        ("limits", f"{model.limits.max_texts} texts per request, {model.limits.max_characters} characters per text"),
        ("server", model.server_version),
    ):
        table.add_row(name, value)
    session.console.print(table)
