"""The `twofold` command: its global options, and how it reports errors."""

from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import click

from twofold._channel import TLS, Endpoint
from twofold.cli._adapt import adapt
from twofold.cli._checkpoints import checkpoints, promote, roll_back
from twofold.cli._doctor import doctor
from twofold.cli._embed import embed
from twofold.cli._health import health
from twofold.cli._help import SectionedGroup
from twofold.cli._hints import hint_for
from twofold.cli._jobs import jobs
from twofold.cli._model import model
from twofold.cli._predict import predict
from twofold.cli._session import Session
from twofold.errors import TwofoldError, UnavailableError

_JSON_HELP = "Print results as JSON lines. This is the default if the output is not a terminal."
_PEM_FILE = click.Path(dir_okay=False, path_type=Path)
_EXAMPLES = """
\b
Examples:
  twofold predict "Ada Lovelace was born in London."
  twofold adapt --head ner --train train.jsonl --watch
  twofold jobs report --open
  twofold checkpoints list
"""


class _CommandError(click.ClickException):
    """An error message, with a second line that says what to do next."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self._hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        super().show(file)
        click.echo(f"Next: {self._hint}", file=file, err=file is None)


class _App(SectionedGroup):
    """Turns the exceptions of a call into an error message, a hint and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # The reader of the output has closed it; click exits quietly.
        except (TwofoldError, UnicodeError, OSError) as error:
            hint = hint_for(error, ctx.invoked_subcommand or "")
            raise _CommandError(_message_of(error, ctx.params["target"]), hint) from error


def _message_of(error: Exception, target: str) -> str:
    match error:
        # An error with a reason comes from a server that is not ready.
        case UnavailableError() if not error.reason:
            return f"{target} does not answer: {error}"
        case UnicodeError():
            return f"the input is not UTF-8: {error}"
        case OSError() if error.filename:
            return f"{error.filename}: {error.strerror}"
    return str(error)


@click.group(
    cls=_App, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_EXAMPLES
)
@click.option(
    "--target",
    envvar="TWOFOLD_TARGET",
    default="127.0.0.1:8500",
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    help="Address of the server.",
)
@click.option("--token", envvar="TWOFOLD_TOKEN", show_envvar=True, metavar="TOKEN", help="Bearer token.")
@click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Timeout of each call, including its retries.",
)
@click.option("--plaintext", is_flag=True, help="Allow an unencrypted connection to another machine.")
@click.option("--tls", is_flag=True, help="Encrypt the connection and trust the root certificates of the system.")
@click.option("--ca", type=_PEM_FILE, help="Encrypt the connection and trust the certificates in this PEM file.")
@click.option("--certificate", type=_PEM_FILE, help="Client certificate for mutual TLS, a PEM file.")
@click.option("--key", type=_PEM_FILE, help="Private key of the client certificate, a PEM file.")
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.version_option(package_name="twofold")
@click.pass_context
def app(
    ctx: click.Context,
    *,
    target: str,
    token: str | None,
    timeout: float,
    plaintext: bool,
    tls: bool,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Classify texts, find their entities, and fine-tune the model that does both."""
    try:
        encrypted = tls or ca or certificate or key
        security = TLS.from_files(ca, certificate=certificate, private_key=key) if encrypted else None
        endpoint = Endpoint(target=target, tls=security, token=token, plaintext=plaintext)
    except ValueError as error:
        # The library's message names Python arguments; name the options instead.
        message = str(error).replace("tls=TLS()", "--tls or --ca FILE").replace("plaintext=True", "--plaintext")
        message = message.replace("certificate and private_key", "--certificate and --key")
        raise click.UsageError(message) from error
    ctx.obj = Session(endpoint=endpoint, timeout=timeout, as_json=as_json)


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and ctx.obj is not None:  # It is None during shell completion.
        ctx.obj = replace(ctx.obj, as_json=True)


def _add_json_option(command: click.Command) -> None:
    """Give *command* and its subcommands the option --json, unless they define it themselves."""
    if not any("--json" in parameter.opts for parameter in command.params):
        option = click.Option(
            ["--json", "sets_json"], is_flag=True, expose_value=False, callback=_set_json, help=_JSON_HELP
        )
        command.params.append(option)
    for subcommand in command.commands.values() if isinstance(command, click.Group) else ():
        _add_json_option(subcommand)


for _command in (predict, embed, adapt, promote, roll_back, doctor, health, jobs, checkpoints, model):
    app.add_command(_command)
_add_json_option(app)
