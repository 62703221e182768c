"""The results of an adaptation job."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """The decision of the gate."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreChange:
    """One score, from 0 to 1, before and after the adaptation; None if it was not measured."""

    metric: str = ""
    before: float | None = None
    after: float | None = None
    examples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenVerification:
    """The number of frozen tensors and their SHA-256 digests before and after the training."""

    parameters: int = 0
    digest_before: str = ""
    digest_after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStatistics:
    """The number of examples by use, their label counts, and their length."""

    train_examples: int = 0
    dev_examples: int = 0
    gate_examples: int = 0
    label_counts: Mapping[str, int] = field(default_factory=dict)
    unaligned_annotations: int = 0
    mean_tokens: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GateComparison:
    """
    The protected score of the candidate compared with that of a reference checkpoint, on held-out examples.

    *against* is "base" or "approved". Scores are from 0 to 1; the bounds are one-sided 95 % confidence bounds of *after*
    minus *before*. *needed_examples* is the number of examples that would allow a decision, or None if there were enough.
    """

    against: str = ""
    before: float = 0.0
    after: float = 0.0
    lower_bound: float = 0.0
    upper_bound: float = 0.0
    examples: int = 0
    gained: int = 0
    lost: int = 0
    needed_examples: int | None = None
    calibration_before: float | None = None
    calibration_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactVerification:
    """The number of texts that the protected head answers exactly as before, and the largest difference of a logit."""

    texts: int = 0
    max_error: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowAgreement:
    """The number of texts with the same answer, and the number of texts that could be compared."""

    agreed: int = 0
    texts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowReport:
    """
    The answers of the candidate and of the live checkpoint to live texts, compared.

    The candidate could not answer *failed* texts and took many times as long on *slow* texts. The agreement of a head is
    None if no text could be compared.
    """

    texts: int = 0
    failed: int = 0
    slow: int = 0
    classifier: ShadowAgreement | None = None
    ner: ShadowAgreement | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """
    The results of a job; None and empty values were not measured.

    protected        the score of the other head's task
    retained         the score of the adapted head on its old labels
    new              the score of the adapted head on the data set
    verdict, gate    the decision of the gate, and the comparisons that it is based on
    frozen, exact    the checks that frozen tensors and the protected head's answers did not change
    negative_flips   texts that the candidate answers worse
    shadow           the result of the shadow test
    rollback_reason  why the candidate was rolled back after it had gone live
    """

    protected: ScoreChange | None = None
    retained: ScoreChange | None = None
    new: ScoreChange | None = None
    verdict: Verdict | None = None
    frozen: FrozenVerification | None = None
    dataset: DatasetStatistics | None = None
    added_labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    swap_seconds: float = 0.0
    plan: str = ""
    max_parity_error: float = 0.0
    gate: tuple[GateComparison, ...] = ()
    negative_flips: tuple[str, ...] = ()
    exact: ExactVerification | None = None
    rollback_reason: str = ""
    shadow: ShadowReport | None = None
