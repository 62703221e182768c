"""Time transformers.Trainer fine-tuning the same backbone for token classification, to compare with a whole job.

    python -m benchmarks.transformers_trainer --checkpoint DIRECTORY --train FILE --epochs N --out DIRECTORY

It follows the documentation: dynamic padding, AdamW, a linear schedule, and batches of 32, as in Twofold. Nothing is evaluated
or saved. The last line of output is {"seconds": ...}, the time of Trainer.train() alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.examples import read_examples
from twofold_trainer.modeling.model import load_model


def main() -> None:
    """Fine-tune and print the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--checkpoint", "--train", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    arguments = parser.parse_args()
    checkpoint = Checkpoint.open(arguments.checkpoint)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=checkpoint.tokenizer(), pad_token="[PAD]")  # noqa: S106 -- no secret.
    examples = list(read_examples(arguments.train))
    types = sorted({span.type for example in examples for span in example.entities or ()})
    rows = []
    for example in examples:
        encoded = tokenizer(example.text, return_offsets_mapping=True, truncation=True, max_length=256)
        labels = [tag(offsets, example.entities or (), types) for offsets in encoded.pop("offset_mapping")]
        rows.append({**encoded, "labels": labels})
    model = AutoModelForTokenClassification.from_config(
        AutoConfig.from_pretrained(arguments.checkpoint / "config.json", num_labels=1 + 2 * len(types))
    )
    model.base_model.load_state_dict(load_model(checkpoint).backbone.state_dict(), strict=False)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.out),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=32,
            learning_rate=3e-4,
            warmup_steps=0.1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    started_at = time.monotonic()
    trainer.train()
    print(json.dumps({"seconds": time.monotonic() - started_at, "threads": torch.get_num_threads()}))


def tag(offsets: tuple[int, int], spans: tuple, types: list[str]) -> int:  # type: ignore[type-arg]
    """Return the BIO tag of a token; special tokens have none."""
    start, stop = offsets
    if start == stop:
        return -100
    for span in spans:
        if span.start <= start and stop <= span.end:
            return 1 + 2 * types.index(span.type) + (start > span.start)
    return 0


if __name__ == "__main__":
    main()
