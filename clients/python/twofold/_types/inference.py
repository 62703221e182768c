"""Predictions, embeddings and the model."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class Head(StrEnum):
    """One of the two tasks that share the encoder."""

    CLASSIFIER = "classifier"
    NER = "ner"


class OffsetUnit(StrEnum):
    """The unit of span offsets; code points are the index of a Python string."""

    CODE_POINT = "code_point"
    UTF16 = "utf16"
    UTF8 = "utf8"


class Health(StrEnum):
    """The health of a server or of one of its services, from grpc.health.v1."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    SERVICE_UNKNOWN = "service_unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """A label and its probability, from 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """A typed, half-open span of a text; *score* is the smallest tag probability in it, from 0 to 1."""

    start: int
    end: int
    type: str
    score: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """
    The prediction for one text.

    *labels* are sorted by score, best first. The results of a head that was not requested are empty.
    """

    label: str = ""
    labels: tuple[LabelScore, ...] = ()
    entities: tuple[Entity, ...] = ()
    checkpoint_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The time that a request spent in the server, by stage."""

    tokenize_seconds: float = 0.0
    queue_seconds: float = 0.0
    infer_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """
    A sequence of predictions, in the order of the texts.

    *checkpoint_id* is empty if the live checkpoint changed between two texts; then each prediction names its own.
    """

    predictions: tuple[Prediction, ...] = ()
    checkpoint_id: str = ""
    timings: Timings = field(default_factory=Timings)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions)

    def __len__(self) -> int:
        return len(self.predictions)

    def __getitem__(self, index: int) -> Prediction:
        return self.predictions[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEmbedding:
    """The position of a token in the text, and its vector."""

    start: int
    end: int
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The features of one text; *tokens* is empty unless it was requested."""

    pooled: tuple[float, ...] = ()
    tokens: tuple[TokenEmbedding, ...] = ()
    checkpoint_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """A sequence of embeddings, in the order of the texts."""

    embeddings: tuple[Embedding, ...] = ()
    checkpoint_id: str = ""
    timings: Timings = field(default_factory=Timings)

    def __iter__(self) -> Iterator[Embedding]:
        return iter(self.embeddings)

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, index: int) -> Embedding:
        return self.embeddings[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one inference request; characters are code points."""

    max_texts: int = 0
    max_characters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The live checkpoint, the limits and the version of the server."""

    checkpoint_id: str = ""
    labels: tuple[str, ...] = ()
    entity_types: tuple[str, ...] = ()
    backbone: str = ""
    hidden_size: int = 0
    max_tokens: int = 0
    limits: Limits = field(default_factory=Limits)
    server_version: str = ""
    precision: str = ""
