"""What to do next when a call has failed."""

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

_SCOPES = {"predict": "predict", "embed": "predict", "model": "predict", "adapt": "adapt", "jobs": "adapt"}


def advice_of(error: Exception, command: str) -> str:
    """Return a sentence that says what to do about *error* of the command of that name."""
    if isinstance(error, TwofoldError):
        return _of_call(error, command)
    if isinstance(error, UnicodeError):
        return "Write it in UTF-8, for instance: iconv -f latin1 -t utf-8 FILE"
    return "Check that the file is there and that you may use it."


def _of_call(error: TwofoldError, command: str) -> str:
    on_checkpoints = command in {"checkpoints", "promote", "roll-back", "delete"}
    match error:
        case UnavailableError() if error.reason:
            return "Wait until it is ready, or make a checkpoint live: twofold checkpoints, twofold promote ID"
        case UnavailableError():
            return "See what is wrong: twofold doctor. Another server is named by --target or TWOFOLD_TARGET."
        case DeadlineExceededError():
            return "Give it longer with --timeout SECONDS, or ask for less at a time."
        case OverloadedError():
            when = "in a moment" if error.retry_after is None else f"in {error.retry_after:.1f} seconds"
            return f"Ask again {when}, or for less at a time."
        case AccessDeniedError():
            scope = _SCOPES.get(command, "admin" if on_checkpoints else "right")
            return f"Give a token that has the {scope} scope, with --token or TWOFOLD_TOKEN."
        case NotFoundError() if command == "jobs":
            return "See which there are: twofold jobs"
        case NotFoundError() if on_checkpoints or command == "adapt":
            return "See which there are: twofold checkpoints"
        case NotFoundError() | InvalidArgumentError():
            return f"Change what you ask for: twofold {command} --help"
        case AlreadyExistsError():
            return "Name another --request-id, or leave it out."
        case FailedPreconditionError() if command == "jobs":
            return "See how the job stands: twofold jobs show JOB_ID"
        case FailedPreconditionError() if command == "adapt":
            return "See what runs, and what there is: twofold jobs, twofold checkpoints"
        case FailedPreconditionError():
            return "See what there is, and what names it: twofold checkpoints"
    return "See whether the server is well: twofold doctor"
