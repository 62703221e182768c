"""Diagnostics: check whether a server can run here, with its files, execution provider, store, database and trainer."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec
import onnxruntime as ort
from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.errors import CheckpointError, CheckpointNotFoundError
from twofold_checkpoint.store import ALIASES, Store

from twofold_server import VERSION
from twofold_server.config.settings import Config, EngineSettings, TlsSettings
from twofold_server.errors import ServerError, SwapError
from twofold_server.inference.session import choose_providers
from twofold_server.security.tls import credentials_of, expiry_of
from twofold_server.security.tokens import read_tokens
from twofold_server.storage.database import Database, is_writable
from twofold_server.storage.migrate import read_schema_state

_FIND = "import sys; from importlib.util import find_spec as f; sys.exit(not (f('twofold_trainer') and f('torch')))"
_TIMEOUT_SECONDS = 30.0
"""Seconds that the trainer's interpreter may take to start."""
EXPIRY_WARNING = dt.timedelta(days=14)
"""Time before the expiry of a certificate from which the check warns."""
MIN_FREE_CHECKPOINTS = 3
"""Minimum free disk space, in checkpoints of the current size: one being written, one staged, and a data set."""


class Check(msgspec.Struct, frozen=True):
    """Result of one check: its state, a message, and how to fix a problem. `twofold doctor` reads it as a line of JSON."""

    name: str
    state: Literal["ok", "warning", "failed"]
    message: str
    fix: str = ""


def run_checks(config: Config, warnings: tuple[str, ...] = ()) -> Iterator[Check]:
    """Run all checks and yield their results. Changes nothing, except for a temporary file in the store."""
    yield Check("version", "ok", f"twofold-service {VERSION}")
    for warning in warnings:
        yield Check("settings", "warning", warning, "Correct the name, or remove the setting.")
    yield _providers(config.engine)
    yield _tls(config.tls, config.listener.listen)
    yield from _tokens(config.listener.tokens)
    yield _trainer(config.trainer.python)
    yield from _store(config.store)
    yield from _database(config)
    yield from _traces(config.tracing.endpoint)


def _providers(settings: EngineSettings) -> Check:
    available = ort.get_available_providers()
    message = f"onnxruntime {ort.__version__} has {', '.join(available)}"
    try:
        choose_providers(settings.device, settings.gpu_memory_mib, available)
    except SwapError as error:
        return Check("providers", "failed", f"{message}: {error}", "Fix the problem above, or use --device cpu.")
    return Check("providers", "ok", message)


def _tls(settings: TlsSettings, address: str) -> Check:
    """Load the certificates as the server does, and check the expiry of its certificate."""
    renew = "Renew it; a running server reloads it."
    try:
        credentials_of(settings)
        if settings.certificate is None or settings.key is None:
            return Check("tls", "ok", f"not configured; {address} uses plaintext")
        expires_at = expiry_of(settings.certificate, settings.key)
    except ssl.SSLCertVerificationError as error:
        return Check("tls", "failed", f"{settings.certificate}: {error.verify_message}", renew)
    except (OSError, ValueError) as error:
        return Check("tls", "failed", str(error), "Check --tls-certificate, --tls-key and --tls-client-ca.")
    message = f"the certificate matches its key and is valid until {expires_at:%Y-%m-%d %H:%M} UTC"
    if expires_at - dt.datetime.now(dt.UTC) < EXPIRY_WARNING:
        return Check("tls", "warning", message, renew)
    return Check("tls", "ok", message)


def _tokens(path: Path | None) -> Iterator[Check]:
    """Load the tokens as the server does."""
    if path is None:
        return
    try:
        grants = read_tokens(path)
    except (OSError, ValueError) as error:
        yield Check("tokens", "failed", str(error), "Correct the line; twofold-server make-token prints a valid one.")
        return
    if grants:
        yield Check("tokens", "ok", f"{len(grants)} in {path}")
    else:
        fix = "Append the line that twofold-server make-token prints."
        yield Check("tokens", "failed", f"{path} is empty, so every call will be rejected", fix)


def _trainer(python: str) -> Check:
    """Check the packages of the trainer's interpreter. Only jobs need them, so a failure is a warning."""
    fix = "Jobs will fail: pip install 'twofold-service[trainer]' for this interpreter, or set --trainer-python."
    command = [python, "-c", _FIND]
    try:
        process = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False)  # noqa: S603 - as jobs run it
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("trainer", "warning", f"{python} does not run: {error}", fix)
    if process.returncode:
        return Check("trainer", "warning", f"{python} lacks twofold_trainer or torch", fix)
    return Check("trainer", "ok", f"{python} has twofold_trainer and torch")


def _store(root: Path) -> Iterator[Check]:
    if not root.is_dir():
        fix = "Create a first checkpoint: twofold-trainer init --out STORE --train FILE; or set --store."
        yield Check("store", "failed", f"{root} is not a directory", fix)
        return
    try:
        with tempfile.NamedTemporaryFile(dir=root, prefix=".doctor-"):
            pass
    except OSError as error:
        fix = f"Give user {os.getuid()} write permission: jobs, uploads and promotions need it."
        yield Check("store", "failed", f"{root} cannot be written: {error.strerror}", fix)
    else:
        yield Check("store", "ok", f"{root.absolute()} can be read and written")
    size = 0
    for check, checkpoint in _aliases(Store(root)):
        size = max(size, sum(file.size for file in checkpoint.manifest.files) if checkpoint else 0)
        yield check
    yield _disk(root, size)


def _aliases(store: Store) -> Iterator[tuple[Check, Checkpoint | None]]:
    """Open the checkpoint of each alias and verify the digests of its files."""
    try:
        named = store.aliases()
    except (CheckpointError, OSError) as error:
        fix = "Restore aliases.json, or remove it and promote a checkpoint: twofold promote ID"
        yield Check("aliases", "failed", str(error), fix), None
        return
    for alias in ALIASES:
        checkpoint_id = getattr(named, alias)
        if checkpoint_id is None:
            if alias == "current":
                fix = "Promote a checkpoint, or create a first one: twofold-trainer init --out STORE --train FILE"
                yield Check(alias, "failed", "no checkpoint is current", fix), None
            continue
        try:
            checkpoint = store.get(checkpoint_id)
            checkpoint.verify()
        except (CheckpointError, OSError) as error:
            fix = (
                "Restore it from a backup, or promote another checkpoint: twofold checkpoints list, twofold promote ID"
            )
            state: Literal["failed", "warning"] = "failed" if alias == "current" else "warning"
            message = (
                str(error) if isinstance(error, CheckpointNotFoundError) else f"{checkpoint_id} is damaged: {error}"
            )
            yield Check(alias, state, message, fix), None
        else:
            yield Check(alias, "ok", f"{checkpoint_id} is intact"), checkpoint


def _disk(root: Path, size: int) -> Check:
    """Compare the free disk space with the size of a checkpoint."""
    free = shutil.disk_usage(root).free
    message = (
        f"{_gigabytes(free)} are free; a checkpoint takes {_gigabytes(size)}"
        if size
        else f"{_gigabytes(free)} are free"
    )
    if free >= MIN_FREE_CHECKPOINTS * size:
        return Check("disk", "ok", message)
    fix = "Free some disk space, or delete unused checkpoints: twofold checkpoints list, twofold checkpoints delete ID"
    return Check("disk", "failed" if free < size else "warning", message, fix)


def _database(config: Config) -> Iterator[Check]:
    """Open the database of jobs and alias changes and check its schema. Writes nothing."""
    file = config.store / "jobs.sqlite3"
    location = config.database or file
    if not config.database and not file.exists():
        if config.store.is_dir():
            yield Check("database", "ok", f"{file.name} does not exist yet; the server creates it")
        return
    fix = (
        "Check --database, the network, and that its user may write and create tables."
        if config.database
        else f"Give user {os.getuid()} write permission. If it is damaged, restore a backup, or move it away, which loses its jobs."
    )
    try:
        with closing(Database(location, migrates=False)) as database, database.writing() as connection:
            schema = read_schema_state(connection)
            writable = connection.dialect.name == "sqlite" or is_writable(
                connection, has_tables=schema.revision is not None
            )
    except ServerError as error:
        if "locked" in str(error):
            fix = "Another process holds a write lock: find it with fuser, and run doctor again."
        yield Check("database", "failed", str(error), fix)
        return
    if not writable:
        message = f"{location} cannot be written: it is a read-only replica, or this user lacks a permission"
        yield Check("database", "failed", message, fix)
    elif schema.is_newer:
        message = f"{location} has schema {schema.revision}, of a newer twofold-service; this version supports up to {schema.latest}"
        fix = "Start the newer twofold-server that created it, or restore an older backup of the database."
        yield Check("database", "failed", message, fix)
    elif schema.revision and schema.pending:
        message = f"{location} has schema {schema.revision} and needs migration {' and '.join(schema.pending)}"
        fix = (
            "Back up the database first: the server migrates it at startup, and older servers cannot use it afterwards."
        )
        yield Check("database", "warning", message, fix)
    else:
        state = (
            f"schema {schema.revision} is current" if schema.revision else "it is empty; the server creates its tables"
        )
        yield Check("database", "ok", f"{location} can be read and written; {state}")


def _traces(endpoint: str | None) -> Iterator[Check]:
    """Check the connection to the trace collector. The server also runs without it."""
    if endpoint is None:
        return
    spec = None
    with suppress(ModuleNotFoundError):
        spec = find_spec("opentelemetry.exporter.otlp.proto.grpc")
    if spec is None:
        fix = "pip install 'twofold-service[otel]', or remove --trace-endpoint."
        yield Check("traces", "failed", "OpenTelemetry is not installed", fix)
        return
    parts = urlsplit(endpoint)
    location = f"{parts.hostname}:{parts.port or 4317}"
    try:
        socket.create_connection((parts.hostname or "", parts.port or 4317), 5.0).close()
    except OSError as error:
        fix = (
            "Start the collector, or correct --trace-endpoint. Until then spans are dropped; nothing else is affected."
        )
        yield Check("traces", "warning", f"cannot connect to {location}: {error}", fix)
    else:
        yield Check("traces", "ok", f"{location} accepts connections")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
