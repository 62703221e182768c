"""Every setting of the server: a field is a flag, a variable, a key of a TOML file and a line of docs/configuration.md."""

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
    """Hold the server's settings. Flags are ``--listen``, variables ``TWOFOLD_LISTEN``, keys ``listen``; a flag wins."""

    store: Path = _setting(Path("store"), "directory of checkpoints, jobs and uploads")
    database: DatabaseUrl | None = _setting(
        None, "postgresql:// URL of the database of jobs, which servers may share; without it SQLite in the store"
    )
    listen: str = _setting("127.0.0.1:8500", "address of the gRPC port; port 0 takes a free one")
    metrics_listen: str = _setting(
        "127.0.0.1:9500", "address of the HTTP port, of metrics and reports; port 0 takes a free one"
    )
    plaintext: bool = _setting(False, "allow a listen address off loopback without TLS")
    tls_certificate: Path | None = _setting(None, "PEM certificate chain; switches TLS on")
    tls_key: Path | None = _setting(None, "PEM private key of the certificate")
    tls_client_ca: Path | None = _setting(None, "PEM authorities of client certificates; switches mutual TLS on")
    metrics_tls: bool = _setting(False, "speak TLS on the HTTP port, too, with the same certificate")
    tokens: Path | None = _setting(
        None, "TOML file of bearer tokens; switches them on, and is read again when it changes"
    )
    device: Literal["cpu", "cuda"] = _setting("cpu", "execution provider")
    precision: Literal["fp32", "int8", "bf16", "fp16", "auto"] = _setting(
        "fp32", "what the graph computes in; auto takes the fastest of those that passed their gate"
    )
    gpu_memory_mib: int = _setting(0, "memory of the GPU for one engine in MiB, two during a swap; 0 means no bound")
    threads: int = _setting(
        0, "threads of a forward pass; 0 means the CPUs that this process may use, less those of the other pass"
    )
    passes: int = _setting(0, "forward passes at a time; 0 means two, and one on cuda or on a single CPU")
    max_batch_tokens: int = _setting(2048, "padded tokens in one forward pass; lower it for shorter tails")
    max_queue_tokens: int = _setting(32768, "tokens that may wait; beyond it load is shed with RESOURCE_EXHAUSTED")
    max_requests: int = _setting(512, "requests in progress at once; beyond it load is shed")
    max_wait_ms: float = _setting(
        5000.0, "time within which a text is to be answered; where more waits than that, load is shed; 0 means no bound"
    )
    max_texts: int = _setting(256, "texts in one request")
    max_characters: int = _setting(20_000, "code points in one text")
    max_message_bytes: int = _setting(8 * 2**20, "bytes of one gRPC message")
    drain_delay: float = _setting(0.0, "seconds between NOT_SERVING and refusing calls, for load balancers to notice")
    drain_timeout: float = _setting(30.0, "seconds that calls in progress get to finish after SIGTERM")
    trainer_python: str = _setting(sys.executable, "interpreter that has twofold_trainer; it needs torch, this one not")
    trainer_threads: int = _setting(0, "threads of the trainer; 0 means the CPUs that this process may use")
    trainer_niceness: int = _setting(
        19, "how far the trainer steps back for a CPU; at 19 it takes what nothing else wants, at 0 its fair share"
    )
    pause_above_ms: float = _setting(0.0, "95th percentile of latency at which a running job is paused; 0 means never")
    watch_seconds: float = _setting(300.0, "seconds after a swap in which a bad one is undone by itself; 0 means never")
    watch_share: float = _setting(
        0.05, "share of texts that the checkpoint before, kept in memory, answers meanwhile; 0 compares nothing"
    )
    watch_fewest: int = _setting(50, "passes, or compared texts, by which a swap may be undone at the earliest")
    watch_errors: float = _setting(0.02, "share of passes that may fail after a swap")
    watch_slowdown: float = _setting(3.0, "times as long as before that a text may take after a swap")
    watch_agreement: float = _setting(0.8, "least share of texts that a head answers as before, unless it was adapted")
    watch_adapted_agreement: float = _setting(0.4, "the same of the head that was adapted")
    shadow_share: float = _setting(
        0.0, "share of texts that a candidate answers, too, before a job makes it live; a job may ask for another"
    )
    shadow_texts: int = _setting(500, "compared texts after which a candidate in shadow is made live or refused")
    shadow_seconds: float = _setting(600.0, "seconds after which it is, however few were compared")
    max_queued_jobs: int = _setting(16, "adaptation jobs that may wait")
    job_attempts: int = _setting(3, "attempts of a job before it fails, if its trainer or server dies")
    snapshot_seconds: float = _setting(
        10.0, "least time between two snapshots that a job goes on from; 0 takes one after every epoch"
    )
    max_dataset_examples: int = _setting(200_000, "examples in one data set")
    keep_checkpoints: int = _setting(0, "newest checkpoints that are kept beside those in use; 0 keeps all")
    keep_jobs: int = _setting(0, "newest jobs that are kept when they are over, with report and examples; 0 keeps all")
    keep_uploads: int = _setting(0, "newest uploads that are kept beside those of unfinished jobs; 0 keeps all")
    trace_endpoint: str | None = _setting(
        None, "URL of a collector that speaks OTLP over gRPC; switches traces on, which need the extra otel"
    )
    trace_share: float = _setting(
        0.1, "share of calls that begin a trace; a call that comes with one is recorded if its caller records it"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "least severe log line to write")

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
    """Tell whether ``host:port`` can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def redacted(text: str) -> str:
    """Hide the password of an address, such as a database's, wherever settings are shown."""
    text = re.sub(r"(?<=://)([^/@:]*):.*@", r"\1:***@", text)
    return re.sub(r"(?i)([?&][^=&]*(?:password|secret|token)[^=&]*=)[^&]*", r"\1***", text)
