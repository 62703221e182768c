"""Small models for the trainer's tests: real classes with random weights, real tokenizers, learnable texts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    GPTNeoConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)
from twofold_checkpoint.examples import Example, Span, write_examples
from twofold_checkpoint.protocol.events import Event, Finished, PhaseStarted
from twofold_checkpoint.protocol.job import Hyperparameters, TrainerJob
from twofold_trainer.adapt import run_job
from twofold_trainer.initial_training import train_initial_checkpoint
from twofold_trainer.modeling.backbone import Backbone, load_backbone

ARCHITECTURES = ("bert", "distilbert", "roberta", "gpt_neo", "modernbert")
WORD_PIECE = frozenset({"bert", "distilbert", "modernbert"})
POSITIONS = 40

CITIES = ("paris", "berlin", "new york", "oslo", "san jose")
DATES = ("today", "tomorrow", "next friday", "monday")
ARTISTS = ("nina", "bowie", "miles davis", "adele")
PEOPLE = ("two people", "five guests", "nine adults", "one child")
TEMPLATES: dict[str, tuple[str, ...]] = {
    "weather": ("will it rain in {city} {date}", "weather for {city}", "is it cold {date} in {city} please"),
    "flight": ("book a flight to {city} {date}", "fly me from {city} {date}", "i need a plane to {city}"),
    "music": ("play something by {artist}", "put {artist} on now", "i want to hear {artist} {date}"),
    "alarm": ("wake me {date}", "set an alarm for {date} please", "remind me {date}"),
}
RESTAURANT = ("a table for {people} {date}", "reserve for {people}", "we are {people} and come {date}")
NEW_INTENTS: dict[str, tuple[str, ...]] = {
    "taxi": ("call a cab to {city}", "taxi from {city} {date}", "i want a cab {date}"),
    "recipe": ("how do i cook soup", "recipe for soup {date}", "cook a soup {date} please"),
}
VALUES = {"city": CITIES, "date": DATES, "artist": ARTISTS, "people": PEOPLE}


def fill(template: str, chance: random.Random) -> tuple[str, tuple[Span, ...]]:
    """Fill a template and annotate the inserted words."""
    text, spans = "", []
    for piece in template.replace("{", "\0{").replace("}", "}\0").split("\0"):
        if piece.startswith("{"):
            kind = piece[1:-1]
            value = chance.choice(VALUES[kind])
            spans.append(Span(start=len(text), end=len(text) + len(value), type=kind))
            text += value
        else:
            text += piece
    return text, tuple(spans)


def examples(count: int, *, seed: int = 0) -> list[Example]:
    """Return examples of the base task, annotated for both heads."""
    chance = random.Random(seed)
    made = []
    for index in range(count):
        label = sorted(TEMPLATES)[index % len(TEMPLATES)]
        text, spans = fill(chance.choice(TEMPLATES[label]), chance)
        # A number keeps texts apart, so that they fall into different parts.
        made.append(Example(text=f"{text} {index}", label=label, entities=spans))
    return made


def restaurant(count: int, *, seed: int = 1) -> list[Example]:
    """Return examples of an NER task with one new type."""
    chance = random.Random(seed)
    filled = [fill(chance.choice(RESTAURANT), chance) for _ in range(count)]
    return [Example(text=f"{text} r{index}", entities=spans) for index, (text, spans) in enumerate(filled)]


def intents(count: int, *, seed: int = 2) -> list[Example]:
    """Return examples of a classification task with two new labels."""
    chance = random.Random(seed)
    made = []
    for index in range(count):
        label = sorted(NEW_INTENTS)[index % 2]
        made.append(Example(text=f"{fill(chance.choice(NEW_INTENTS[label]), chance)[0]} t{index}", label=label))
    return made


def _corpus() -> Iterator[str]:
    for values in (examples(80), restaurant(80), intents(80)):
        for example in values:
            yield example.text


@cache
def word_piece() -> str:
    """Return a BERT-like tokenizer as JSON: letters and the most common words, because a trained one differs from run to run."""
    words = Counter(word for text in _corpus() for word in text.lower().split())
    letters = sorted({letter for word in words for letter in word})
    often = [word for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0]))[:40]]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *often])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(12)  # As the packaged MiniLM has it: both must be switched off again.
    tokenizer.enable_padding(length=12)
    return tokenizer.to_str()


@cache
def byte_pairs(*, causal: bool) -> str:
    """Train a RoBERTa-like tokenizer, or a GPT-like one without special tokens, and return it as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>"] if causal else ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    if not causal:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return tokenizer.to_str()


def _tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    if architecture in WORD_PIECE:
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(word_piece()),
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
        )
    if architecture == "gpt_neo":
        tokenizer = Tokenizer.from_str(byte_pairs(causal=True))
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    tokenizer = Tokenizer.from_str(byte_pairs(causal=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _config(architecture: str, size: int, layers: int):
    wide = {"vocab_size": size, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    match architecture:
        case "bert":
            return BertConfig(**wide, intermediate_size=64, max_position_embeddings=POSITIONS, pad_token_id=0)
        case "distilbert":
            return DistilBertConfig(
                vocab_size=size,
                dim=32,
                n_layers=layers,
                n_heads=4,
                hidden_dim=64,
                max_position_embeddings=POSITIONS,
                pad_token_id=0,
            )
        case "roberta":
            return RobertaConfig(**wide, intermediate_size=64, max_position_embeddings=POSITIONS + 2, pad_token_id=1)
        case "gpt_neo":  # Local attention sees 8 tokens: fewer than a window has.
            return GPTNeoConfig(
                vocab_size=size,
                hidden_size=32,
                num_layers=layers,
                attention_types=[[["global", "local"], layers // 2]],
                num_heads=4,
                intermediate_size=64,
                max_position_embeddings=POSITIONS,
                window_size=8,
                bos_token_id=0,
                eos_token_id=0,
            )
        case _:
            return ModernBertConfig(
                **wide,
                intermediate_size=64,
                max_position_embeddings=POSITIONS,
                local_attention=8,
                global_attn_every_n_layers=2,
                pad_token_id=0,
                bos_token_id=2,
                eos_token_id=3,
                cls_token_id=2,
                sep_token_id=3,
            )


def save_backbone(architecture: str, directory: Path, *, layers: int = 2) -> Path:
    """Save a backbone with random weights and its tokenizer, in the layout of a hub repository."""
    tokenizer = _tokenizer(architecture)
    torch.manual_seed(0)
    backbone = AutoModel.from_config(_config(architecture, len(tokenizer), layers))
    backbone.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_base_store(root: Path, *, train_examples: int = 240) -> Path:
    """Create a store whose current checkpoint has learned the base task. One thread makes training deterministic."""
    torch.set_num_threads(1)
    backbone = save_backbone("bert", root / "backbone", layers=3)
    write_examples(root / "train.jsonl", examples(train_examples))
    write_examples(root / "dev.jsonl", examples(120, seed=9))
    # Random weights learn from scratch, at rates that a pretrained backbone would not survive.
    rates = Hyperparameters(epochs=12, batch_size=16, head_learning_rate=2e-2, backbone_learning_rate=3e-3, patience=4)
    out = root / "store"
    for _ in train_initial_checkpoint(
        train=str(root / "train.jsonl"),
        dev=str(root / "dev.jsonl"),
        backbone=str(backbone),
        out=str(out),
        hyperparameters=rates,
    ):
        pass
    return out


def make_backbone(architecture: str, directory: Path, *, layers: int = 2) -> Backbone:
    """Save a backbone and load it as init does."""
    return load_backbone(str(save_backbone(architecture, directory, layers=layers)))


def ending(events: Iterable[Event]) -> tuple[list[Event], Finished]:
    """Run a job to its end; return all events and the last one."""
    seen = list(events)
    last = seen[-1]
    assert isinstance(last, Finished)
    return seen, last


def until(job: TrainerJob, phase: str) -> list[Event]:
    """Run a job until a phase starts, and stop there, because the rest takes seconds."""
    seen: list[Event] = []
    running = run_job(job)
    for event in running:
        if isinstance(event, PhaseStarted) and event.phase == phase:
            break
        seen.append(event)
    running.close()
    return seen
