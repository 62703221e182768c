"""Every setting of the server, in groups. Each is a flag, a variable, a TOML key and a line of docs/configuration.md."""

from __future__ import annotations

import ipaddress
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from twofold_server.config.database_url import DatabaseUrl
from twofold_server.config.group import SettingsGroup, fraction, redacted, setting


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ListenerSettings(SettingsGroup):
    """Addresses, access and shutdown of the two ports."""

    listen: str = setting("127.0.0.1:8500", "address of the gRPC port; port 0 takes a free one")
    metrics_listen: str = setting(
        "127.0.0.1:9500", "address of the HTTP port for metrics and reports; port 0 takes a free one"
    )
    plaintext: bool = setting(False, "allow a listen address off loopback without TLS")
    metrics_tls: bool = setting(False, "use TLS on the HTTP port as well, with the same certificate")
    tokens: Path | None = setting(
        None, "TOML file of bearer tokens; enables authentication, and is reloaded when it changes"
    )
    drain_delay: float = setting(
        0.0, "seconds between NOT_SERVING and refusing calls, for load balancers to notice", at_least=0
    )
    drain_timeout: float = setting(30.0, "seconds for calls in progress to finish after SIGTERM", at_least=0)

    def _validate(self) -> None:
        for name, address in (("listen", self.listen), ("metrics-listen", self.metrics_listen)):
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal():
                raise ValueError(f"{name} {address!r} must be HOST:PORT")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TlsSettings(SettingsGroup):
    """Certificates of the server and its clients."""

    PREFIX: ClassVar[str] = "tls_"

    certificate: Path | None = setting(None, "PEM certificate chain; switches TLS on")
    key: Path | None = setting(None, "PEM private key of the certificate")
    client_ca: Path | None = setting(None, "PEM authorities of client certificates; switches mutual TLS on")

    def _validate(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("tls-certificate and tls-key belong together; give both or neither")
        if self.client_ca and not self.certificate:
            raise ValueError("tls-client-ca needs tls-certificate and tls-key")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EngineSettings(SettingsGroup):
    """Device, precision and threads of the forward passes."""

    device: Literal["cpu", "cuda"] = setting("cpu", "execution provider")
    precision: Literal["fp32", "int8", "bf16", "fp16", "auto"] = setting(
        "fp32", "precision of the graph; auto: the fastest precision that passed its gate"
    )
    gpu_memory_mib: int = setting(
        0, "GPU memory of one engine in MiB, twice that during a swap; 0: no limit", at_least=0
    )
    threads: int = setting(
        0, "intra-op threads per forward pass; 0: available CPUs minus one for each other concurrent pass", at_least=0
    )
    passes: int = setting(0, "concurrent forward passes; 0: two, or one on cuda or on a single CPU", at_least=0)

    def _validate(self) -> None:
        if self.device == "cpu" and self.precision in ("bf16", "fp16"):
            raise ValueError(f"precision {self.precision!r} needs device 'cuda'; write fp32, int8 or auto")
        if self.device == "cuda" and self.precision == "int8":
            raise ValueError("precision 'int8' needs device 'cpu'; write fp32 or auto")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LimitSettings(SettingsGroup):
    """Limits of requests and of the queue."""

    max_batch_tokens: int = setting(
        2048, "padded tokens in one forward pass; lower it for a lower tail latency", at_least=1
    )
    max_queue_tokens: int = setting(
        32768, "tokens in the queue; beyond that, load is shed with RESOURCE_EXHAUSTED", at_least=1
    )
    max_requests: int = setting(512, "concurrent requests; beyond that, load is shed", at_least=1)
    max_wait_ms: float = setting(
        5000.0, "longest expected wait of a text in the queue, beyond which load is shed; 0: no limit", at_least=0
    )
    max_texts: int = setting(256, "texts in one request", at_least=1)
    max_characters: int = setting(20_000, "code points in one text", at_least=1)
    max_message_bytes: int = setting(8 * 2**20, "bytes of one gRPC message", at_least=1)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RollbackSettings(SettingsGroup):
    """Automatic rollback after a swap, and the limits of a healthy checkpoint."""

    PREFIX: ClassVar[str] = "rollback_"

    seconds: float = setting(
        300.0, "seconds after a swap during which a bad checkpoint is rolled back automatically; 0: never", at_least=0
    )
    share: float = fraction(
        0.05, "share of texts that the previous checkpoint, kept in memory, answers as well, for comparison; 0: none"
    )
    min_samples: int = setting(50, "fewest passes or compared texts before a rollback", at_least=1)
    max_error_rate: float = fraction(0.02, "share of passes that may fail after a swap")
    max_slowdown: float = setting(3.0, "factor by which a text may take longer after a swap", above=1)
    min_agreement: float = fraction(
        0.8, "smallest share of texts that a head must answer as before, unless it was adapted"
    )
    min_adapted_agreement: float = fraction(0.4, "the same for the adapted head")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ShadowSettings(SettingsGroup):
    """Shadow test of a candidate before its promotion."""

    PREFIX: ClassVar[str] = "shadow_"

    share: float = fraction(
        0.0, "share of texts that a candidate answers in shadow before its job promotes it; a job can override it"
    )
    texts: int = setting(500, "compared texts after which a shadow test ends", at_least=1)
    seconds: float = setting(
        600.0, "seconds after which a shadow test ends, with any number of compared texts", at_least=0
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class JobSettings(SettingsGroup):
    """The queue of adaptation jobs."""

    max_queued_jobs: int = setting(16, "adaptation jobs in the queue", at_least=0)
    max_dataset_examples: int = setting(200_000, "examples in one data set", at_least=1)
    job_attempts: int = setting(3, "attempts of a job before it fails, if its trainer or server dies", at_least=1)
    preempt_above_ms: float = setting(
        0.0, "95th percentile of request latency above which a running job is paused; 0: never", at_least=0
    )
    resume_snapshot_seconds: float = setting(
        10.0, "shortest time between two resume snapshots, in seconds; 0: one after every epoch", at_least=0
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TrainerSettings(SettingsGroup):
    """The trainer's process."""

    PREFIX: ClassVar[str] = "trainer_"

    python: str = setting(sys.executable, "Python interpreter with twofold_trainer and torch; the server needs neither")
    threads: int = setting(0, "threads of the trainer; 0: available CPUs", at_least=0)
    niceness: int = setting(
        19, "niceness of the trainer; 19: only idle CPU time, 0: its fair share", at_least=0, at_most=19
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RetentionSettings(SettingsGroup):
    """What the garbage collector keeps."""

    keep_checkpoints: int = setting(0, "newest checkpoints to keep besides those in use; 0: all", at_least=0)
    keep_jobs: int = setting(0, "newest finished jobs to keep, with report and examples; 0: all", at_least=0)
    keep_uploads: int = setting(0, "newest uploads to keep besides those of unfinished jobs; 0: all", at_least=0)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TracingSettings(SettingsGroup):
    """OpenTelemetry traces."""

    PREFIX: ClassVar[str] = "trace_"

    endpoint: str | None = setting(None, "URL of an OTLP/gRPC collector; enables tracing, which needs the extra otel")
    share: float = fraction(
        0.1, "share of calls that start a trace; a call with a traceparent follows the client's decision"
    )

    def _validate(self) -> None:
        if self.endpoint is not None and not re.match(r"https?://[^/]", self.endpoint):
            raise ValueError(
                f"trace-endpoint {redacted(self.endpoint)!r} must be http://HOST:PORT, or https:// for TLS"
            )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Config(SettingsGroup):
    """All settings. Flags, variables and file keys are flat: ``shadow.texts`` is ``--shadow-texts``; see schema.py."""

    store: Path = setting(Path("store"), "directory of checkpoints, jobs and uploads")
    database: DatabaseUrl | None = setting(
        None, "postgresql:// URL of the job database, which several servers may share; unset: SQLite in the store"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "lowest level to log")
    listener: ListenerSettings = ListenerSettings()
    tls: TlsSettings = TlsSettings()
    engine: EngineSettings = EngineSettings()
    limits: LimitSettings = LimitSettings()
    rollback: RollbackSettings = RollbackSettings()
    shadow: ShadowSettings = ShadowSettings()
    jobs: JobSettings = JobSettings()
    trainer: TrainerSettings = TrainerSettings()
    retention: RetentionSettings = RetentionSettings()
    tracing: TracingSettings = TracingSettings()

    def _validate(self) -> None:
        if self.listener.metrics_tls and not self.tls.certificate:
            raise ValueError("metrics-tls needs tls-certificate and tls-key")
        if not self.tls.certificate and not self.listener.plaintext and not is_loopback(self.listener.listen):
            raise ValueError(
                f"listen {self.listener.listen!r} is not a loopback address, which requires TLS; set tls-certificate and tls-key, "
                "or --plaintext if the network protects the port"
            )


def is_loopback(address: str) -> bool:
    """Return whether ``host:port`` is reachable from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
