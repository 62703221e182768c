"""Every metric that the server exports. docs/metrics.md lists them; a test compares the two."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

# From 0.1 ms to 30 s; each bound is 1.7 times the previous one.
_SECONDS = tuple(round(1e-4 * 1.7**power, 7) for power in range(25))
_MINUTES = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
_TOKENS = tuple(2**power for power in range(3, 17))
_TEXTS = tuple(2**power for power in range(10))


class Metrics:
    """The metrics of one server. Durations are in seconds, scores from 0 to 1; label values are bounded."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        # Requests.
        self.requests = counter("twofold_requests_total", "Completed RPCs, by method and gRPC code.", "method", "code")
        self.request_seconds = histogram("twofold_request_seconds", "Duration of RPCs.", _SECONDS, "method")
        self.in_flight = gauge("twofold_requests_in_flight", "RPCs in progress.", "method")
        self.texts = counter("twofold_texts_total", "Texts answered, by method.", "method")
        self.stage_seconds = histogram(
            "twofold_stage_seconds", "Time by stage: tokenize, queue, infer, decode.", _SECONDS, "stage"
        )

        # Batching.
        self.batch_windows = histogram("twofold_batch_windows", "Windows in one forward pass.", _TEXTS)
        self.batch_tokens = histogram("twofold_batch_tokens", "Tokens with padding in one forward pass.", _TOKENS)
        self.tokens = counter("twofold_tokens_total", "Tokens computed, by kind: text or padding.", "kind")
        self.queue_tokens = gauge("twofold_queue_tokens", "Tokens in the request queue.")
        self.shed = counter("twofold_shed_total", "Requests rejected under load, by limit.", "reason")
        self.dropped = counter("twofold_dropped_total", "Queued texts dropped before inference, by reason.", "reason")

        # Checkpoints.
        self.ready = gauge("twofold_ready", "1 if a checkpoint is live, else 0.")
        self.checkpoint = gauge("twofold_checkpoint_info", "1 for the live checkpoint.", "checkpoint")
        self.precision = gauge("twofold_precision_info", "1 for the precision in use.", "precision")
        self.engines = gauge("twofold_engines", "Engines in memory: live, standby and draining.")
        self.standby_engines = gauge("twofold_standby_engines", "Standby engines in memory, 0 or 1.")
        self.swaps = counter("twofold_swaps_total", "Promotions, by outcome.", "outcome")
        self.swap_seconds = histogram("twofold_swap_seconds", "Duration of swaps, from load to live.", _SECONDS)

        self.swap_rollbacks = counter(
            "twofold_swap_rollbacks_total", "Swaps that were rolled back automatically.", "cause"
        )
        self.shadow_texts = counter("twofold_shadow_texts_total", "Live texts mirrored to a standby engine.", "outcome")
        self.shadow_answers = counter(
            "twofold_shadow_answers_total",
            "Answers of a standby engine, compared with the live one.",
            "head",
            "outcome",
        )

        self.collected = counter(
            "twofold_collected_total", "Objects that the garbage collector removed, by kind.", "kind"
        )

        # Adaptation.
        self.jobs = counter("twofold_jobs_total", "Jobs that ended, by final state.", "state")
        self.jobs_queued = gauge("twofold_jobs_queued", "Queued jobs.")
        self.jobs_running = gauge("twofold_jobs_running", "Running jobs.")
        self.job_phase_seconds = histogram("twofold_job_phase_seconds", "Duration of job phases.", _MINUTES, "phase")
        self.job_start = gauge("twofold_job_start_time_seconds", "Unix time at which the running job started, or 0.")
        self.score = gauge(
            "twofold_adaptation_score", "Scores of the last adaptation on held-out examples.", "figure", "moment"
        )
        self.job_restarts = counter("twofold_job_restarts_total", "Restarts of jobs that lost their trainer or server.")
        self.job_paused = gauge(
            "twofold_job_paused", "1 while the running job is paused because request latency is too high."
        )
        self.job_pauses = counter("twofold_job_pauses_total", "Pauses of jobs because of high request latency.")
        self.interference = gauge(
            "twofold_interference_ratio",
            "Mean engine time per batch while a job runs, divided by the mean while none runs. 0 until both are known.",
        )

        # GPUs, if there are any.
        self.gpu_memory = gauge(
            "twofold_gpu_memory_bytes", "GPU memory: used by all processes, and total.", "gpu", "kind"
        )
        self.gpu_utilization = gauge(
            "twofold_gpu_utilization_ratio", "Share of time during which the GPU was busy.", "gpu"
        )
        self.gpu_power = gauge("twofold_gpu_power_watts", "Power draw of the GPU.", "gpu")

        for stage in ("tokenize", "queue", "infer", "decode"):
            self.stage_seconds.labels(stage)
        for reason in ("requests", "queue", "wait", "rate"):
            self.shed.labels(reason)
        for reason in ("deadline", "cancelled"):
            self.dropped.labels(reason)
        for kind in ("checkpoint", "job", "upload"):
            self.collected.labels(kind)
        for outcome in ("succeeded", "failed"):
            self.swaps.labels(outcome)
        for cause in ("errors", "latency", "agreement"):
            self.swap_rollbacks.labels(cause)
        for outcome in ("compared", "failed", "dropped"):
            self.shadow_texts.labels(outcome)
        for head in ("classifier", "ner"):
            for outcome in ("agreed", "differed"):
                self.shadow_answers.labels(head, outcome)
        for state in ("succeeded", "rejected", "failed", "cancelled"):
            self.jobs.labels(state)
