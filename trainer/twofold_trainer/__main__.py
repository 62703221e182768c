"""The trainer's command line: ``init`` for people, ``run`` for the server."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, get_args, get_type_hints

import msgspec
from twofold_checkpoint.errors import CheckpointError
from twofold_checkpoint.manifest import MemoryMode
from twofold_checkpoint.protocol.events import (
    DatasetDescribed,
    Event,
    ExactVerified,
    Finished,
    FrozenVerified,
    GateEvaluated,
    GuardChecked,
    NoteAdded,
    ParityMeasured,
    PhaseStarted,
    PlanMade,
    Published,
    ScoreMeasured,
    StepCompleted,
    to_line,
)
from twofold_checkpoint.protocol.job import Hyperparameters, read_job_file

from twofold_trainer.errors import TrainerError
from twofold_trainer.stop import StopSignal

INITIAL_HYPERPARAMETERS = (
    "epochs", "batch_size", "head_learning_rate", "backbone_learning_rate", "layer_decay", "warmup_ratio", "weight_decay",
    "patience", "unfrozen_blocks",
)  # fmt: skip
"""Hyperparameters that matter without anything to protect."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    stop = StopSignal()
    # Before the slow imports, so that a job that is cancelled early also ends with an event.
    signal.signal(signal.SIGTERM, lambda *_: stop.cancel())
    signal.signal(signal.SIGINT, lambda *_: stop.cancel())
    _configure_libraries(arguments.threads)
    return _run(arguments, stop) if arguments.command == "run" else _init(arguments, stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="twofold-trainer", description="Train and adapt Twofold checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run one adaptation job; writes events to stdout as JSON lines")
    run.add_argument("job", help="the job as a JSON file")
    init = commands.add_parser("init", help="train a first checkpoint from a pretrained backbone")
    init.add_argument(
        "--train",
        required=True,
        action="append",
        help="training examples: .jsonl, CoNLL columns, or hf:name[:config][:split]; may be repeated",
    )
    init.add_argument("--dev", help="held-out examples; default: a tenth of --train")
    init.add_argument("--out", required=True, metavar="STORE", help="store directory")
    init.add_argument(
        "--backbone",
        default="sentence-transformers/all-MiniLM-L6-v2",
        help="directory or Hugging Face Hub id of the pretrained backbone",
    )
    init.add_argument("--seed", type=int, default=0, help="random seed")
    init.add_argument(
        "--memory",
        choices=get_args(MemoryMode),
        default="examples",
        help="what the checkpoint stores for later adaptations: examples, covariances without texts, or nothing",
    )
    for name in INITIAL_HYPERPARAMETERS:
        kind, _ = get_args(get_type_hints(Hyperparameters)[name])
        init.add_argument(f"--{name.replace('_', '-')}", type=kind, help="default: chosen from the size of the data")
    for command in (run, init):
        command.add_argument("--threads", type=int, help="compute threads; default: all cores")
    return parser


def _run(arguments: argparse.Namespace, stop: StopSignal) -> int:
    """Run a job. Only events are written to stdout; everything that libraries print goes to stderr."""
    with _redirect_stdout() as pipe:
        threading.Thread(target=_exit_with_reader, args=(pipe.fileno(),), name="reader", daemon=True).start()
        try:
            job = read_job_file(arguments.job)
        except (OSError, msgspec.DecodeError) as error:
            reason = f"cannot read the job file {arguments.job}: {error}."
            return _write([Finished(outcome="failed", reason=reason)], pipe)
        from twofold_trainer.adapt import run_job  # noqa: PLC0415 -- imports torch: seconds.

        return _write(run_job(job, stop), pipe)


def _write(events: Iterable[Event], pipe: BinaryIO) -> int:
    """Write events as they occur. A closed pipe ends the job."""
    try:
        for event in events:
            pipe.write(to_line(event))
            pipe.flush()
    except BrokenPipeError:
        return 1
    return 0


def _exit_with_reader(pipe: int) -> None:
    """Exit when the reader closes the pipe: the server has died, and the next one starts a new trainer."""
    watched = select.poll()
    watched.register(pipe, 0)  # poll() always reports errors.
    watched.poll()
    os._exit(1)


@contextlib.contextmanager
def _redirect_stdout() -> Iterator[BinaryIO]:
    """Yield the real stdout, and redirect all other writes to it to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(stdout, "wb") as pipe:
        yield pipe


def _init(arguments: argparse.Namespace, stop: StopSignal) -> int:
    """Train a first checkpoint and print the progress to stderr."""
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 -- imports torch: seconds.

    from twofold_trainer.initial_training import train_initial_checkpoint  # noqa: PLC0415 -- the same.

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    hyperparameters = Hyperparameters(**{name: getattr(arguments, name) for name in INITIAL_HYPERPARAMETERS})
    try:
        show(
            train_initial_checkpoint(
                train=arguments.train,
                dev=arguments.dev,
                out=arguments.out,
                backbone=arguments.backbone,
                seed=arguments.seed,
                hyperparameters=hyperparameters,
                memory=arguments.memory,
                stop=stop,
            )
        )
    except (TrainerError, CheckpointError) as error:
        print(f"twofold-trainer: {error}", file=sys.stderr)
        return 1
    return 0


def show(events: Iterable[Event]) -> None:
    """Print events to stderr. On a terminal, steps share one line; elsewhere about every tenth of them is printed."""
    terminal, tenth = sys.stderr.isatty(), -1
    for event in events:
        line = event_line(event)
        if terminal:
            step = isinstance(event, StepCompleted)
            print(f"\r\033[K{line}", end="" if step else "\n", file=sys.stderr, flush=True)
            continue
        if isinstance(event, StepCompleted):
            if (reached := 10 * event.step // event.total_steps) == tenth:
                continue
            tenth = reached
        print(line, file=sys.stderr, flush=True)


def event_line(event: Event) -> str:
    """Return a line of text for an event."""
    match event:
        case PhaseStarted():
            return f"== {event.phase}"
        case StepCompleted():
            remaining = f"at most {event.remaining_seconds:.0f} s left"
            return f"   {event.stage}: step {event.step}/{event.total_steps}, loss {event.loss:.3f}, {remaining}"
        case ScoreMeasured(figure="dev"):  # The mean of both heads: an accuracy and an F1.
            return f"   dev score {100 * event.value:.1f}"
        case ScoreMeasured():
            value = f"{event.metric} {100 * event.value:.1f}"
            return f"   {event.figure} ({event.moment}): {value} on {event.examples} examples"
        case GuardChecked():
            return f"   guard: protected {100 * event.baseline:.1f} -> {100 * event.value:.1f} on dev: {event.action}"
        case DatasetDescribed():
            examples = (
                f"{event.train_examples} training, {event.dev_examples} dev and {event.gate_examples} gate examples"
            )
            return f"   {examples}; {len(event.label_counts)} labels; {event.mean_tokens:.1f} tokens per text"
        case NoteAdded():
            return f" {'!' if event.warning else ' '} {event.message}"
        case PlanMade():
            return f"   {event.plan}"
        case FrozenVerified():
            return f"   {event.parameters} frozen tensors are unchanged"
        case ParityMeasured():
            return f"   the graph differs from the model by at most {event.max_error:.1e} on {event.texts} texts"
        case ExactVerified():
            return f"   the protected head answers {event.texts} texts as before; logits differ by at most {event.max_error:.1e}"
        case GateEvaluated() | Finished():
            return event.reason
        case Published():
            return f"   published {event.checkpoint_id}"


def _configure_libraries(threads: int | None) -> None:
    """Set the environment variables that libraries read on import: threads, spinning, logging and progress bars."""
    # Long spin waits make training five times slower as soon as another process, such as the server, uses a core. A few
    # microseconds of spinning are free, and avoid most sleep and wake-up system calls.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)


if __name__ == "__main__":
    sys.exit(main())
