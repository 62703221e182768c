"""The command `twofold adapt`."""

from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import click

from twofold._types.inference import Head
from twofold._types.jobs import Exact, Freeze, Hyperparameters, LabelPolicy, MemoryMode, PromotePolicy, Statistical
from twofold.cli._files import read_examples
from twofold.cli._help import SectionedCommand, SectionedOption
from twofold.cli._output import json_line
from twofold.cli._session import Session
from twofold.cli._watch import EXIT_CODES_HELP, watch_job

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(dir_okay=False, path_type=Path)
_EPILOG = f"""
{EXIT_CODES_HELP}

\b
Examples:
  twofold adapt --head ner --train train.jsonl --watch
  twofold adapt --head classifier --train train.jsonl --dev dev.jsonl --margin 0.5
  twofold adapt --head ner --train train.conll --exact --promote manual
"""


class _Hyperparameter(SectionedOption):
    section = "Hyperparameters (chosen by the trainer if left out)"


def _hyperparameters(command: F) -> F:
    """Add one option for each hyperparameter."""
    hints = get_type_hints(Hyperparameters)
    for field in reversed(fields(Hyperparameters)):
        (kind,) = set(get_args(hints[field.name])) - {NoneType}
        metavar = {int: "N", float: "X", bool: "true|false"}[kind]
        name = f"--{field.name.replace('_', '-')}"
        help_ = field.metadata["help"]
        command = click.option(name, cls=_Hyperparameter, type=kind, metavar=metavar, help=help_)(command)
    return command


def _choices(kind: type[StrEnum]) -> "click.Choice[str]":  # Choice is not generic before click 8.2.
    return click.Choice([member.value for member in kind])


@click.command(cls=SectionedCommand, epilog=_EPILOG)
@click.option(
    "--train",
    type=_FILE,
    required=True,
    multiple=True,
    help="Training examples: JSON lines or CoNLL columns. Repeat for more files.",
)
@click.option(
    "--dev",
    type=_FILE,
    help="Held-out examples for early stopping and the gate.  [default: part of --train]",
)
@click.option(
    "--head", type=_choices(Head), required=True, help="Head to adapt; the task of the other head is protected."
)
@click.option(
    "--freeze",
    type=_choices(Freeze),
    default=Freeze.AUTO.value,
    show_default=True,
    help=(
        "Parameters that may not change: auto tries the modes from cheap to strong, all trains nothing, backbone trains only the "
        "head, head trains the head and the backbone, staged unfreezes block by block."
    ),
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Largest accepted loss of the protected task, in points (0.01 of a score).  [default: 1]",
)
@click.option(
    "--retained-margin",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Largest accepted loss on the old labels of the adapted head, in points.  [default: 3]",
)
@click.option("--exact", is_flag=True, help="Leave every tensor that the protected head uses unchanged.")
@click.option(
    "--label-policy",
    type=_choices(LabelPolicy),
    default=LabelPolicy.APPEND.value,
    show_default=True,
    help="New labels: append adds them, fixed refuses them, replace drops the old ones.",
)
@click.option(
    "--promote",
    type=_choices(PromotePolicy),
    default=PromotePolicy.AUTO.value,
    show_default=True,
    help='After the gate: auto makes the result live, manual names it "candidate", never only stores it.',
)
@click.option(
    "--shadow-share",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Share of live texts that the candidate also answers before it goes live.  [default: the server's setting]",
)
@click.option(
    "--memory",
    type=_choices(MemoryMode),
    help="What the new checkpoint stores to protect this task later.  [default: as the base checkpoint]",
)
@click.option(
    "--annotated-type",
    "annotated_types",
    multiple=True,
    metavar="TYPE",
    help="Entity type that the data annotates, even if it does not occur. Repeat for more types.",
)
@click.option(
    "--base-checkpoint", default="", metavar="CHECKPOINT", help="Checkpoint to start from.  [default: current]"
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Seed of all random choices.")
@click.option(
    "--max-runtime",
    type=float,
    metavar="SECONDS",
    help="Stop training after this time and judge the best state so far.  [default: no limit]",
)
@click.option("--request-id", metavar="ID", help="Idempotency key: a second call with this id returns the first job.")
@click.option("--validate-only", is_flag=True, help="Check the data and plan the training, but train nothing.")
@click.option("--watch", is_flag=True, help="Follow the job until it ends.")
@_hyperparameters
@click.pass_context
def adapt(
    ctx: click.Context,
    /,
    *,
    train: tuple[Path, ...],
    dev: Path | None,
    margin: float | None,
    exact: bool,
    watch: bool,
    **options: Any,
) -> None:
    """
    Fine-tune one head and protect the other.

    A job trains the head on new examples while the task of the other head is protected.

    Each JSON line is {"text": ..., "label": ..., "entities": [{"start", "end", "type"}]}. A label or entities that are null
    or absent are not annotated; an empty list means that the text has no entities. Files that end in .conll, .bio, .iob,
    .tsv or .txt contain CoNLL columns: a token and its BIO tag on each line.
    """
    if exact and margin is not None:
        raise click.UsageError("--exact accepts no loss; leave out --margin")
    session: Session = ctx.obj
    hyperparameters = {field.name: options.pop(field.name) for field in fields(Hyperparameters)}
    with session.client() as client:
        job = client.adapt(
            [example for path in train for example in read_examples(path)],
            read_examples(dev) if dev else (),
            protection=Exact() if exact else Statistical(1.0 if margin is None else margin),
            hyperparameters=Hyperparameters(**hyperparameters),
            **options,
        )
    if watch:
        ctx.exit(watch_job(session, job))
    message = f"Job {job.id} is {job.state}. Follow it: twofold jobs watch {job.id}"
    if session.human_readable:
        click.echo(message)
        return
    click.echo(json_line(job))
    if not session.as_json:  # The output is redirected, but a person may still read the standard error.
        click.echo(message, err=True)
