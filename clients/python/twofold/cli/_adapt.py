"""Make a job."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import click

from twofold._types.inference import Head
from twofold._types.jobs import Exact, Freeze, Hyperparameters, LabelPolicy, MemoryMode, PromotePolicy, Statistical
from twofold.cli._files import read_examples
from twofold.cli._jobs import follow
from twofold.cli._session import Session, json_line

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(dir_okay=False, path_type=Path)


def _hyperparameters(command: F) -> F:
    """Give *command* an option for each hyperparameter."""
    hints = get_type_hints(Hyperparameters)
    for one in reversed(fields(Hyperparameters)):
        (kind,) = set(get_args(hints[one.name])) - {NoneType}
        command = click.option(f"--{one.name.replace('_', '-')}", type=kind, help=one.metadata["help"])(command)
    return command


@click.command()
@click.option(
    "--train",
    type=_FILE,
    required=True,
    multiple=True,
    help="Examples to learn from: JSON lines or CoNLL columns; repeat it for more files.",
)
@click.option("--dev", type=_FILE, help="Examples to stop and judge by; a part of --train if absent.")
@click.option(
    "--head",
    type=click.Choice([one.value for one in Head]),
    required=True,
    help="Adapt this head; the other is protected.",
)
@click.option(
    "--freeze", type=click.Choice([one.value for one in Freeze]), default=Freeze.AUTO.value, show_default=True
)
@click.option("--margin", type=click.FloatRange(0, 100), help="Points that the protected score may fall.  [default: 1]")
@click.option(
    "--retained-margin",
    type=click.FloatRange(0, 100),
    help="Points that the adapted head may lose on its old labels.  [default: 3]",
)
@click.option("--exact", is_flag=True, help="Keep the protected path's tensors as they are.")
@click.option(
    "--label-policy",
    type=click.Choice([one.value for one in LabelPolicy]),
    default=LabelPolicy.APPEND.value,
    show_default=True,
)
@click.option(
    "--promote",
    type=click.Choice([one.value for one in PromotePolicy]),
    default=PromotePolicy.AUTO.value,
    show_default=True,
)
@click.option(
    "--shadow-share",
    type=click.FloatRange(0, 1),
    help="Share of live texts that it answers, too, before it is promoted; what the server is set to if absent.",
)
@click.option(
    "--memory",
    type=click.Choice([one.value for one in MemoryMode]),
    help="What the candidate carries for the next adaptation; what its base does if absent.",
)
@click.option("--annotates", multiple=True, metavar="TYPE", help="An entity type that the data annotates; repeat it.")
@click.option("--base", default="", metavar="CHECKPOINT", help="Start from this one.  [default: current]")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--max-runtime", type=float, metavar="SECONDS", help="Stop training after this and judge the best so far."
)
@click.option("--request-id", help="Make no second job if this id made one already.")
@_hyperparameters
@click.option("--validate-only", is_flag=True, help="Check and plan, but train nothing.")
@click.option(
    "--watch",
    is_flag=True,
    help="Follow the job; exit 0 succeeded, 1 failed, 3 rejected, 4 cancelled, 5 no server any more.",
)
@click.pass_context
def adapt(
    ctx: click.Context,
    /,
    *,
    train: tuple[Path, ...],
    dev: Path | None,
    margin: float | None,
    exact: bool,
    annotates: tuple[str, ...],
    base: str,
    watch: bool,
    **options: Any,
) -> None:
    """
    Adapt one head and protect the other.

    The examples are JSON lines: {"text": ..., "label": ..., "entities": [{"start", "end", "type"}]}. A label or entities
    that are null or absent are not annotated; an empty list says that there are none. A file that ends in .conll, .bio,
    .iob, .tsv or .txt has CoNLL columns instead: a token and its BIO tag on each line.

    How to train, from --epochs to --mixed-precision, is chosen by the trainer where it is left open.
    """
    if exact and margin is not None:
        raise click.UsageError("--exact allows no loss at all; leave out --margin")
    session: Session = ctx.obj
    chosen = {one.name: options.pop(one.name) for one in fields(Hyperparameters)}
    with session.client() as client:
        job = client.adapt(
            [example for path in train for example in read_examples(path)],
            read_examples(dev) if dev else (),
            protection=Exact() if exact else Statistical(1.0 if margin is None else margin),
            hyperparameters=Hyperparameters(**chosen),
            annotated_types=annotates,
            base_checkpoint=base,
            **options,
        )
    if watch:
        ctx.exit(follow(session, job))
    told = f"{job.id} is {job.state}. Follow it: twofold jobs watch {job.id}"
    if session.for_people:
        click.echo(told)
        return
    click.echo(json_line(job))
    if not session.as_json:  # A person has redirected the job, and still wants to know what to do next.
        click.echo(told, err=True)
