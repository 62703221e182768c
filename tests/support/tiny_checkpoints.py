"""Tiny real checkpoints: an ONNX graph of a few nodes, a real tokenizer, and predictable answers.

Words mean what they look like: "rain" is weather, "new york" is a city. Every token attends to the mean of its text, so errors in
masks, padding or windows change the answers. Names of labels and types contain the checkpoint's *tag*, so an answer shows which
checkpoint gave it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from twofold_checkpoint import checkpoint as files
from twofold_checkpoint import decoding
from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.decoding import Prediction, merge_tokens, merge_windows
from twofold_checkpoint.encoding import Encoder, EncoderSettings, Encoding, pad
from twofold_checkpoint.golden import GoldenAnswer, write_golden
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import FORMAT, Manifest, Provenance, ReducedGraph, Score
from twofold_checkpoint.memory import Memory, write_memory
from twofold_checkpoint.store import Store

TOPICS = {"weather": ("rain", "cold", "sunny"), "music": ("play", "song", "loud"), "alarm": ("wake", "alarm", "clock")}
PLACES = ("oslo", "new york", "san jose", "berlin")
DATES = ("today", "next friday", "monday")
FILLERS = ("the", "please", "and", "in", "it", "we", "so", "very", "much")
TEXTS = ("rain in oslo today", "play a song", "wake me next friday in new york", "", "so much")
WIDTH = 16
MAX_TOKENS = 32
OVERLAP = 8


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a checkpoint differs from the default one."""

    tag: str = "a"
    seed: int = 0
    reverse_vocabulary: bool = False
    """Number the tokens the other way round: ids of another checkpoint's encoder then mean nothing here."""
    labels_too_many: int = 0
    """Labels in the manifest that the graph has no row for."""
    open_widths: bool = False
    """Leave the widths of the outputs unknown until the graph runs."""
    poison: float | None = None
    """A number to put into the NER head's weights, such as NaN."""
    golden_tag: str | None = None
    """Tag of the golden answers, if another."""
    missing_output: str | None = None
    extra_input: bool = False
    forgets: tuple[str, ...] = ()
    """Words of a topic that mean the next topic here. Words that are in no golden text pass every check."""
    breaks: tuple[str, ...] = ()
    """Words for which every output is NaN."""
    lacks_last_piece: bool = False
    """Leave out the embedding of the last piece, "!": the graph fails on every text with one."""
    int8: ReducedGraph | None = None
    """What the gate said of a graph in int8, which is here the same as that in fp32; if it passed, the graph is there."""
    int8_golden_tag: str | None = None
    """Tag of the golden answers in int8, if another."""


def vocabulary(recipe: Recipe) -> list[str]:
    """Return the word pieces in the order of their ids."""
    words = [
        word for group in (*TOPICS.values(), PLACES, DATES, FILLERS) for phrase in group for word in phrase.split()
    ]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    body = [*dict.fromkeys(words), *letters, *(f"##{letter}" for letter in letters), *"😀.,!"]
    # A letter that is a word, too, stands once.
    body = list(dict.fromkeys(body))
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(reversed(body) if recipe.reverse_vocabulary else body)]


def make_tokenizer(recipe: Recipe) -> Tokenizer:
    """Build a BERT-like tokenizer."""
    pieces = {piece: index for index, piece in enumerate(vocabulary(recipe))}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=10_000))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(name, pieces[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer


def label_set(tag: str) -> LabelSet:
    """Return the labels and types of a checkpoint."""
    return LabelSet(labels=tuple(f"{tag}_{topic}" for topic in TOPICS), entity_types=(f"{tag}_place", f"{tag}_date"))


@dataclass(frozen=True)
class Weights:
    """The model's numbers: embedding (pieces, WIDTH), head weights and biases."""

    embedding: np.ndarray
    classifier: np.ndarray
    ner: np.ndarray
    ner_bias: np.ndarray

    def forward(self, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        """Compute in NumPy what the graph computes."""
        weights = mask[..., None].astype(np.float32)
        embedded = self.embedding[ids]
        mean = (embedded * weights).sum(1) / weights.sum(1)
        features = (embedded + np.float32(0.2) * mean[:, None, :]).astype(np.float32)
        pooled = ((features * weights).sum(1) / weights.sum(1)).astype(np.float32)
        return {
            "classifier_logits": pooled @ self.classifier,
            "ner_logits": features @ self.ner + self.ner_bias,
            "pooled": pooled,
            "token_features": features,
        }


def make_weights(recipe: Recipe) -> Weights:
    """Choose the weights: each column of the embedding represents a topic or a tag, plus a little noise."""
    chance = np.random.default_rng(recipe.seed)
    pieces = vocabulary(recipe)
    embedding = chance.normal(0, 0.02, (len(pieces), WIDTH)).astype(np.float32)
    for column, words in enumerate(TOPICS.values()):
        for word in words:
            embedding[pieces.index(word), (column + (word in recipe.forgets)) % len(TOPICS)] += 1
    for word in recipe.breaks:
        embedding[pieces.index(word)] = np.nan
    if recipe.lacks_last_piece:
        embedding = embedding[:-1]
    for column, phrases in ((3, PLACES), (5, DATES)):
        for phrase in phrases:
            for index, word in enumerate(phrase.split()):
                embedding[pieces.index(word), column + min(index, 1)] += 1
    classifier = np.zeros((WIDTH, len(TOPICS)), np.float32)
    classifier[range(3), range(3)] = 20
    ner = np.zeros((WIDTH, 5), np.float32)
    ner[[3, 4, 5, 6], [1, 2, 3, 4]] = 10
    if recipe.poison is not None:
        ner[3, 1] = recipe.poison
    return Weights(embedding, classifier, ner, np.asarray([4, 0, 0, 0, 0], np.float32))


def make_graph(recipe: Recipe) -> onnx.ModelProto:
    """Build the graph."""
    weights = make_weights(recipe)
    node, value = helper.make_node, helper.make_tensor_value_info
    constants = {
        "embedding": weights.embedding,
        "classifier": weights.classifier,
        "ner": weights.ner,
        "ner_bias": weights.ner_bias,
        "share": np.float32(0.2),
        "last": np.asarray([2], np.int64),
        "along": np.asarray([1], np.int64),
    }
    nodes = [
        node("Gather", ["embedding", "input_ids"], ["embedded"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["weights"]),
        node("ReduceSum", ["weights", "along"], ["count"], keepdims=1),
        node("Mul", ["embedded", "weights"], ["seen"]),
        node("ReduceSum", ["seen", "along"], ["sum"], keepdims=1),
        node("Div", ["sum", "count"], ["mean"]),
        node("Mul", ["mean", "share"], ["shared"]),
        node("Add", ["embedded", "shared"], ["token_features"]),
        node("Mul", ["token_features", "weights"], ["kept"]),
        node("ReduceSum", ["kept", "along"], ["kept_sum"], keepdims=0),
        node("ReduceSum", ["weights", "along"], ["kept_count"], keepdims=0),
        node("Div", ["kept_sum", "kept_count"], ["pooled"]),
        node("MatMul", ["pooled", "classifier"], ["classifier_logits"]),
        node("MatMul", ["token_features", "ner"], ["ner_scores"]),
        node("Add", ["ner_scores", "ner_bias"], ["ner_logits"]),
    ]
    shapes = {
        "classifier_logits": ["batch", len(TOPICS)],
        "ner_logits": ["batch", "length", 5],
        "pooled": ["batch", WIDTH],
        "token_features": ["batch", "length", WIDTH],
    }
    if recipe.open_widths:
        shapes = {name: [*shape[:-1], f"{name}_width"] for name, shape in shapes.items()}
    inputs = ["input_ids", "attention_mask", *(["position_ids"] if recipe.extra_input else [])]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [value(name, TensorProto.INT64, ["batch", "length"]) for name in inputs],
        [value(name, TensorProto.FLOAT, shape) for name, shape in shapes.items() if name != recipe.missing_output],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def settings() -> EncoderSettings:
    """Return settings with windows of a few dozen tokens, so that long texts can be short."""
    return EncoderSettings(max_tokens=MAX_TOKENS, overlap=OVERLAP, pad_id=0)


def answer(text: str, recipe: Recipe | None = None, *, tag: str | None = None, top: int = 1) -> Prediction:
    """Compute the answer of a checkpoint in NumPy, window by window, without padding."""
    recipe = recipe or Recipe()
    [encoding] = Encoder(make_tokenizer(recipe), settings()).encode([text])
    weights = make_weights(recipe)
    rows = [weights.forward(*pad([window], 0)) for window in encoding.windows]
    return decode(encoding, rows, label_set(recipe.tag if tag is None else tag), top)


def decode(encoding: Encoding, rows: Sequence[dict[str, np.ndarray]], labels: LabelSet, top: int) -> Prediction:
    """Decode rows of single windows, one text at a time."""
    label_logits = merge_windows(encoding, [row["classifier_logits"][0] for row in rows])
    tag_logits = merge_tokens(encoding, [row["ner_logits"][0] for row in rows])
    [actual] = decoding.decode([encoding], [label_logits], [tag_logits], labels, top=top)
    return actual


def publish(store: Store, recipe: Recipe | None = None, *, name: str = "", parent: str | None = None) -> Checkpoint:
    """Build a checkpoint and publish it, under its tag as id if no other is given."""
    recipe = recipe or Recipe()
    labels = label_set(recipe.tag)
    extra = tuple(f"{recipe.tag}_extra{number}" for number in range(recipe.labels_too_many))
    with store.create().staging() as staged:
        onnx.save(
            make_graph(recipe),
            str(staged / files.GRAPH),
            save_as_external_data=True,
            location=files.GRAPH_WEIGHTS,
            size_threshold=256,
        )
        make_tokenizer(recipe).save(str(staged / files.TOKENIZER))
        healthy = dataclasses.replace(recipe, poison=None, breaks=())
        golden = [GoldenAnswer(text=text, prediction=answer(text, healthy, tag=recipe.golden_tag)) for text in TEXTS]
        write_golden(staged / files.GOLDEN, golden)
        if recipe.int8 is not None and recipe.int8.passed:
            shutil.copyfile(staged / files.GRAPH, staged / files.INT8_GRAPH)
            (staged / files.INT8_GRAPH_WEIGHTS).write_bytes(b"")
            tag = recipe.int8_golden_tag
            write_golden(
                staged / files.INT8_GOLDEN,
                [GoldenAnswer(text=text, prediction=answer(text, healthy, tag=tag)) for text in TEXTS],
            )
        write_memory(staged / files.MEMORY, Memory())
        (staged / files.TRAINING_WEIGHTS).write_bytes(b"")
        (staged / files.BACKBONE_CONFIG).write_text(json.dumps({"model_type": "bert"}))
        number = len(list((store.root / "checkpoints").glob("*")))
        manifest = Manifest(
            format=FORMAT,
            id=name or recipe.tag,
            parent=parent,
            job_id=None,
            created=f"2026-01-01T00:00:{number:02d}+00:00",
            backbone="tiny",
            architecture="bert",
            pooling="mean",
            hidden_size=WIDTH,
            labels=LabelSet(labels=labels.labels + extra, entity_types=labels.entity_types),
            encoder=settings(),
            scores=(Score(head="classifier", metric="accuracy", value=0.9, examples=100),),
            provenance=Provenance(seed=recipe.seed, data_sha256="", settings={}, versions={}),
            files=(),
            reduced=() if recipe.int8 is None else (recipe.int8,),
        )
        return store.publish(staged, manifest)


def make_store(root: Path, *tags: str) -> Store:
    """Create a store of checkpoints named by their tags; the first one is current."""
    store = Store(root).create()
    for tag in tags:
        publish(store, Recipe(tag=tag))
    if tags:
        store.promote(tags[0])
    return store


def _truncate(checkpoint: Checkpoint) -> None:
    path = checkpoint.path / files.GRAPH_WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _flip(checkpoint: Checkpoint) -> None:
    path = checkpoint.path / files.GRAPH_WEIGHTS
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def _forget_tokenizer(checkpoint: Checkpoint) -> None:
    (checkpoint.path / files.TOKENIZER).unlink()


def _garble_manifest(checkpoint: Checkpoint) -> None:
    (checkpoint.path / files.MANIFEST).write_text("{")


def _swap_digest(checkpoint: Checkpoint) -> None:
    """Write another digest of the graph into the manifest."""
    listed = [
        structs.replace(file, sha256="0" * 64) if file.name == files.GRAPH else file
        for file in checkpoint.manifest.files
    ]
    files.write_manifest(checkpoint.path, structs.replace(checkpoint.manifest, files=tuple(listed)))


def _garble_graph(checkpoint: Checkpoint) -> None:
    """Replace the graph by an invalid one with a matching digest."""
    (checkpoint.path / files.GRAPH).write_bytes(b"no graph")
    listed = [files.digest_file(checkpoint.path / file.name) for file in checkpoint.manifest.files]
    files.write_manifest(checkpoint.path, structs.replace(checkpoint.manifest, files=tuple(listed)))


BROKEN: dict[str, tuple[Recipe, Callable[[Checkpoint], None] | None, str]] = {
    "truncated weights": (Recipe(tag="x"), _truncate, "model.onnx.data has"),
    "one bit flipped": (Recipe(tag="x"), _flip, "model.onnx.data has changed"),
    "wrong digest": (Recipe(tag="x"), _swap_digest, "model.onnx has changed"),
    "no graph": (Recipe(tag="x"), _garble_graph, "x: load: "),
    "no tokenizer": (Recipe(tag="x"), _forget_tokenizer, "tokenizer.json"),
    "no manifest": (Recipe(tag="x"), _garble_manifest, "manifest.json"),
    "wrong width": (
        Recipe(tag="x", labels_too_many=1),
        None,
        "output classifier_logits has width 3; the manifest says 4",
    ),
    "wrong width, undeclared": (
        Recipe(tag="x", labels_too_many=1, open_widths=True),
        None,
        "output classifier_logits has width 3",
    ),
    "NaN weights": (
        Recipe(tag="x", poison=float("nan")),
        None,
        "output ner_logits has values that are not finite",
    ),
    "NaN for one word": (Recipe(tag="x", breaks=("oslo",)), None, "golden answers"),
    "other weights": (Recipe(tag="x", poison=0.0), None, "golden answers"),
    "wrong golden answers": (Recipe(tag="x", golden_tag="y"), None, "label ['x_weather'] instead of ['y_weather']"),
    "no ner output": (Recipe(tag="x", missing_output="ner_logits"), None, "the graph has no output ner_logits"),
    "a third input": (Recipe(tag="x", extra_input=True), None, "position_ids"),
}
"""Checkpoints that must never serve: how they are made, what is done to them afterwards, and what the error says."""


def publish_broken(store: Store, kind: str) -> Checkpoint:
    """Publish a checkpoint that must not serve."""
    recipe, damage, _ = BROKEN[kind]
    checkpoint = publish(store, recipe)
    if damage is not None:
        damage(checkpoint)
    return checkpoint
