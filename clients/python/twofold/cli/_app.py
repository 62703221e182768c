"""The command's options and errors; its subcommands are in the modules beside."""

from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import click

from twofold._channel import TLS, Endpoint
from twofold.cli import _adapt, _checkpoints, _doctor, _jobs, _predict
from twofold.cli._hints import advice_of
from twofold.cli._session import Session
from twofold.errors import TwofoldError, UnavailableError


class _Error(click.ClickException):
    """An error, and on a line of its own what to do next."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self._advice = advice

    def show(self, file: IO[Any] | None = None) -> None:
        super().show(file)
        click.echo(f"Next: {self._advice}", file=file, err=file is None)


class _App(click.Group):
    """Turns what a call can raise into two lines, the fault and what to do, and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # Whoever read along has seen enough; click ends quietly.
        except (TwofoldError, UnicodeError, OSError) as error:
            raise _Error(_said(error, ctx.params["target"]), advice_of(error, ctx.invoked_subcommand or "")) from error


def _said(error: Exception, target: str) -> str:
    match error:
        # With a reason it is a server that speaks, to say that it is not ready.
        case UnavailableError() if not error.reason:
            return f"{target} does not answer: {error}"
        case UnicodeError():
            return f"the input is not UTF-8: {error}"
        case OSError() if error.filename:
            return f"{error.filename}: {error.strerror}"
    return str(error)


@click.group(cls=_App, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--target", envvar="TWOFOLD_TARGET", default="127.0.0.1:8500", show_default=True, show_envvar=True)
@click.option("--token", envvar="TWOFOLD_TOKEN", show_envvar=True, help="Bearer token.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds for each call, its retries included.")
@click.option("--plaintext", is_flag=True, help="Do not encrypt, though the target is another machine.")
@click.option("--tls", is_flag=True, help="Encrypt, and trust the system's root certificates.")
@click.option("--ca", type=click.Path(dir_okay=False, path_type=Path), help="Encrypt, and trust these (PEM file).")
@click.option(
    "--certificate", type=click.Path(dir_okay=False, path_type=Path), help="Show this certificate (PEM file)."
)
@click.option(
    "--key", type=click.Path(dir_okay=False, path_type=Path), help="The certificate's private key (PEM file)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines even on a terminal.")
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
    """Label texts, find their entities, and adapt the model that does."""
    try:
        encrypted = tls or ca or certificate or key
        security = TLS.from_files(ca, certificate=certificate, private_key=key) if encrypted else None
        endpoint = Endpoint(target=target, tls=security, token=token, plaintext=plaintext)
    except ValueError as error:
        # The library speaks of its arguments; here they are options.
        said = str(error).replace("tls=TLS()", "--tls or --ca FILE").replace("plaintext=True", "--plaintext")
        said = said.replace("certificate and private_key", "--certificate and --key")
        raise click.UsageError(said) from error
    ctx.obj = Session(endpoint=endpoint, timeout=timeout, as_json=as_json)


for command in (
    _predict.predict,
    _predict.embed,
    _adapt.adapt,
    _jobs.jobs,
    _checkpoints.checkpoints,
    _checkpoints.history,
    _checkpoints.promote,
    _checkpoints.roll_back,
    _checkpoints.delete,
    _checkpoints.model,
    _checkpoints.health,
    _doctor.doctor,
):
    app.add_command(command)


def _speak_json(ctx: click.Context, _: click.Parameter, given: bool) -> None:
    if given and ctx.obj is not None:  # It is None while a shell asks for completions.
        ctx.obj = replace(ctx.obj, as_json=True)


def _take_json(command: click.Command) -> None:
    """Let a command and those below it take --json, too; one that has its own keeps it."""
    if not any("--json" in one.opts for one in command.params):
        told = "Print JSON lines even on a terminal."
        command.params.append(
            click.Option(["--json", "speaks_json"], is_flag=True, expose_value=False, callback=_speak_json, help=told)
        )
    for one in command.commands.values() if isinstance(command, click.Group) else ():
        _take_json(one)


_take_json(app)
