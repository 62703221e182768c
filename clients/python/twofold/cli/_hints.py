"""What to do next when a call has failed."""

from collections.abc import Mapping

from twofold.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    TwofoldError,
    UnavailableError,
)

_REQUIRED_SCOPES: Mapping[str, str] = {
    "predict": "predict",
    "embed": "predict",
    "model": "predict",
    "adapt": "adapt",
    "jobs": "adapt",
    "checkpoints": "admin",
    "promote": "admin",
    "roll-back": "admin",
}
_CHECKPOINT_COMMANDS = frozenset({"checkpoints", "promote", "roll-back"})


def hint_for(error: Exception, command: str) -> str:
    """Return what to do about *error*, raised by `twofold COMMAND`."""
    if isinstance(error, TwofoldError):
        return _hint_for_call(error, command)
    if isinstance(error, UnicodeError):
        return "Convert the input to UTF-8, for example: iconv -f latin1 -t utf-8 FILE"
    return "Check that the file exists and that you have permission to use it."


def _hint_for_call(error: TwofoldError, command: str) -> str:
    match error:
        case UnavailableError() if error.reason:
            return (
                "Wait until the server is ready, or make a checkpoint live: "
                "twofold checkpoints list, twofold promote CHECKPOINT"
            )
        case UnavailableError():
            return "Find the cause: twofold doctor. To use another server, set --target or TWOFOLD_TARGET."
        case DeadlineExceededError():
            return "Allow more time with --timeout SECONDS, or send less per request."
        case OverloadedError():
            delay = "in a moment" if error.retry_after is None else f"in {error.retry_after:.1f} seconds"
            return f"Retry {delay}, or send less per request."
        case AccessDeniedError():
            scope = _REQUIRED_SCOPES.get(command, "required")
            return f"Use a token with the {scope} scope: set --token or TWOFOLD_TOKEN."
        case NotFoundError() if command == "jobs":
            return "List the jobs: twofold jobs list"
        case NotFoundError() if command in _CHECKPOINT_COMMANDS or command == "adapt":
            return "List the checkpoints: twofold checkpoints list"
        case NotFoundError() | InvalidArgumentError():
            return f"Check the arguments: twofold {command} --help"
        case AlreadyExistsError():
            return "Use another --request-id, or leave it out."
        case FailedPreconditionError() if command == "jobs":
            return "Check the state of the job: twofold jobs show JOB"
        case FailedPreconditionError() if command == "adapt":
            return "Check the jobs and the checkpoints: twofold jobs list, twofold checkpoints list"
        case FailedPreconditionError():
            return "Check the checkpoints and their aliases: twofold checkpoints list"
    return "Check the server: twofold doctor"
