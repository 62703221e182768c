"""What the inference half answers with."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class Head(StrEnum):
    """One of the two tasks that share the encoder."""

    CLASSIFIER = "classifier"
    NER = "ner"


class OffsetUnit(StrEnum):
    """What span offsets count; code points index a Python string."""

    CODE_POINT = "code_point"
    UTF16 = "utf16"
    UTF8 = "utf8"


class Health(StrEnum):
    """What grpc.health.v1 says about a server or one of its services."""

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
    """A typed, half-open span of a text, with the smallest tag probability in it."""

    start: int
    end: int
    type: str
    score: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """
    The answer for one text.

    *label* is empty and *entities* are none where that head was not asked for; *labels* are best first.
    """

    label: str = ""
    labels: tuple[LabelScore, ...] = ()
    entities: tuple[Entity, ...] = ()
    checkpoint_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds that a request spent in the server, by what they were spent on."""

    tokenize_seconds: float = 0.0
    queue_seconds: float = 0.0
    infer_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """
    The answers for a list of texts, in its order; iterate, index or take its length.

    *checkpoint_id* is empty if a swap came between two texts; then each prediction names its own.
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
    """One token's place in the text and its vector."""

    start: int
    end: int
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The features of one text; *tokens* are empty unless they were asked for."""

    pooled: tuple[float, ...] = ()
    tokens: tuple[TokenEmbedding, ...] = ()
    checkpoint_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The features of a list of texts, in its order; iterate, index or take its length."""

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
    """What one inference request may hold; characters are code points."""

    max_texts: int = 0
    max_characters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The live checkpoint and the server that answers from it."""

    checkpoint_id: str = ""
    labels: tuple[str, ...] = ()
    entity_types: tuple[str, ...] = ()
    backbone: str = ""
    hidden_size: int = 0
    max_tokens: int = 0
    limits: Limits = field(default_factory=Limits)
    server_version: str = ""
    precision: str = ""
