"""Every setting of the server. Each field is a flag, a variable, a TOML key and a line of docs/configuration.md."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from twofold_server.config.database_url import DatabaseUrl


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The server's settings: flags ``--listen``, variables ``TWOFOLD_LISTEN``, TOML keys ``listen``; a flag wins."""

    store: Path = _setting(Path("store"), "directory of checkpoints, jobs and uploads")
    database: DatabaseUrl | None = _setting(
        None, "postgresql:// URL of the job database, which several servers may share; unset: SQLite in the store"
    )
    listen: str = _setting("127.0.0.1:8500", "address of the gRPC port; port 0 takes a free one")
    metrics_listen: str = _setting(
        "127.0.0.1:9500", "address of the HTTP port for metrics and reports; port 0 takes a free one"
    )
    plaintext: bool = _setting(False, "allow a listen address off loopback without TLS")
    tls_certificate: Path | None = _setting(None, "PEM certificate chain; switches TLS on")
    tls_key: Path | None = _setting(None, "PEM private key of the certificate")
    tls_client_ca: Path | None = _setting(None, "PEM authorities of client certificates; switches mutual TLS on")
    metrics_tls: bool = _setting(False, "use TLS on the HTTP port as well, with the same certificate")
    tokens: Path | None = _setting(
        None, "TOML file of bearer tokens; enables authentication, and is reloaded when it changes"
    )
    device: Literal["cpu", "cuda"] = _setting("cpu", "execution provider")
    precision: Literal["fp32", "int8", "bf16", "fp16", "auto"] = _setting(
        "fp32", "precision of the graph; auto: the fastest precision that passed its gate"
    )
    gpu_memory_mib: int = _setting(0, "GPU memory of one engine in MiB, twice that during a swap; 0: no limit")
    threads: int = _setting(
        0, "intra-op threads per forward pass; 0: available CPUs minus one for each other concurrent pass"
    )
    passes: int = _setting(0, "concurrent forward passes; 0: two, or one on cuda or on a single CPU")
    max_batch_tokens: int = _setting(2048, "padded tokens in one forward pass; lower it for a lower tail latency")
    max_queue_tokens: int = _setting(32768, "tokens in the queue; beyond that, load is shed with RESOURCE_EXHAUSTED")
    max_requests: int = _setting(512, "concurrent requests; beyond that, load is shed")
    max_wait_ms: float = _setting(
        5000.0, "longest expected wait of a text in the queue, beyond which load is shed; 0: no limit"
    )
    max_texts: int = _setting(256, "texts in one request")
    max_characters: int = _setting(20_000, "code points in one text")
    max_message_bytes: int = _setting(8 * 2**20, "bytes of one gRPC message")
    drain_delay: float = _setting(0.0, "seconds between NOT_SERVING and refusing calls, for load balancers to notice")
    drain_timeout: float = _setting(30.0, "seconds for calls in progress to finish after SIGTERM")
    trainer_python: str = _setting(
        sys.executable, "Python interpreter with twofold_trainer and torch; the server needs neither"
    )
    trainer_threads: int = _setting(0, "threads of the trainer; 0: available CPUs")
    trainer_niceness: int = _setting(19, "niceness of the trainer; 19: only idle CPU time, 0: its fair share")
    pause_above_ms: float = _setting(
        0.0, "95th percentile of request latency above which a running job is paused; 0: never"
    )
    watch_seconds: float = _setting(
        300.0, "seconds after a swap during which a bad checkpoint is rolled back automatically; 0: never"
    )
    watch_share: float = _setting(
        0.05, "share of texts that the previous checkpoint, kept in memory, answers as well, for comparison; 0: none"
    )
    watch_fewest: int = _setting(50, "fewest passes or compared texts before a rollback")
    watch_errors: float = _setting(0.02, "share of passes that may fail after a swap")
    watch_slowdown: float = _setting(3.0, "factor by which a text may take longer after a swap")
    watch_agreement: float = _setting(
        0.8, "smallest share of texts that a head must answer as before, unless it was adapted"
    )
    watch_adapted_agreement: float = _setting(0.4, "the same for the adapted head")
    shadow_share: float = _setting(
        0.0, "share of texts that a candidate answers in shadow before its job promotes it; a job can override it"
    )
    shadow_texts: int = _setting(500, "compared texts after which a shadow test ends")
    shadow_seconds: float = _setting(600.0, "seconds after which a shadow test ends, with any number of compared texts")
    max_queued_jobs: int = _setting(16, "adaptation jobs in the queue")
    job_attempts: int = _setting(3, "attempts of a job before it fails, if its trainer or server dies")
    snapshot_seconds: float = _setting(
        10.0, "shortest time between two resume snapshots, in seconds; 0: one after every epoch"
    )
    max_dataset_examples: int = _setting(200_000, "examples in one data set")
    keep_checkpoints: int = _setting(0, "newest checkpoints to keep besides those in use; 0: all")
    keep_jobs: int = _setting(0, "newest finished jobs to keep, with report and examples; 0: all")
    keep_uploads: int = _setting(0, "newest uploads to keep besides those of unfinished jobs; 0: all")
    trace_endpoint: str | None = _setting(
        None, "URL of an OTLP/gRPC collector; enables tracing, which needs the extra otel"
    )
    trace_share: float = _setting(
        0.1, "share of calls that start a trace; a call with a traceparent follows the client's decision"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "lowest level to log")

    def __post_init__(self) -> None:
        for name in ("listen", "metrics_listen"):
            host, _, port = getattr(self, name).rpartition(":")
            if not host or not port.isdecimal():
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)!r} must be HOST:PORT")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls-certificate and tls-key belong together; give both or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls-client-ca needs tls-certificate and tls-key")
        if self.metrics_tls and not self.tls_certificate:
            raise ValueError("metrics-tls needs tls-certificate and tls-key")
        if not self.tls_certificate and not self.plaintext and not is_loopback(self.listen):
            raise ValueError(
                f"listen {self.listen!r} is off loopback and there is no TLS; give tls-certificate and tls-key, "
                "or say --plaintext if the network protects the port"
            )
        if self.device == "cpu" and self.precision in ("bf16", "fp16"):
            raise ValueError(f"precision {self.precision!r} needs device 'cuda'; write fp32, int8 or auto")
        if self.device == "cuda" and self.precision == "int8":
            raise ValueError("precision 'int8' needs device 'cpu'; write fp32 or auto")
        for name in (
            "job_attempts",
            "max_batch_tokens",
            "max_queue_tokens",
            "max_requests",
            "max_texts",
            "max_characters",
            "watch_fewest",
            "shadow_texts",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        for name in (
            "gpu_memory_mib",
            "threads",
            "passes",
            "trainer_threads",
            "max_wait_ms",
            "drain_delay",
            "drain_timeout",
            "pause_above_ms",
            "watch_seconds",
            "shadow_seconds",
            "snapshot_seconds",
            "keep_checkpoints",
            "keep_jobs",
            "keep_uploads",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)} must not be negative")

        if not 0 <= self.trainer_niceness <= 19:
            raise ValueError(f"trainer-niceness {self.trainer_niceness} must be from 0 to 19")
        if self.trace_endpoint is not None and not re.match(r"https?://[^/]", self.trace_endpoint):
            raise ValueError(
                f"trace-endpoint {redacted(self.trace_endpoint)!r} must be http://HOST:PORT, or https:// for TLS"
            )
        for name in (
            "trace_share",
            "shadow_share",
            "watch_share",
            "watch_errors",
            "watch_agreement",
            "watch_adapted_agreement",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)} must be from 0 to 1")
        if self.watch_slowdown <= 1:
            raise ValueError(f"watch-slowdown {self.watch_slowdown} must be above 1")

    def __repr__(self) -> str:
        shown = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        pairs = (f"{name}={redacted(value) if isinstance(value, str) else value!r}" for name, value in shown)
        return f"Config({', '.join(pairs)})"


def is_loopback(address: str) -> bool:
    """Return whether ``host:port`` is reachable from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def redacted(text: str) -> str:
    """Return a value for display, with the password of a URL hidden."""
    text = re.sub(r"(?<=://)([^/@:]*):.*@", r"\1:***@", text)
    return re.sub(r"(?i)([?&][^=&]*(?:password|secret|token)[^=&]*=)[^&]*", r"\1***", text)
