from dataclasses import asdict
from pathlib import Path

import click
import msgspec
import pytest
from twofold.cli._files import read_examples
from twofold_checkpoint.errors import ExampleError
from twofold_checkpoint.examples import Example
from twofold_trainer.datasets.readers import read_source

FILES = {
    "everything that a file may contain": "-DOCSTART- O\n\n# label: fly\n# a comment\nto IN O\nNew NN B-city\nYork NN I-city\n\n"
    "# intent = rain\n# O\nOslo B-city\nParis B-city\n\n\nalone O",
    "a span without a first token": "a O\nb I-x\n",
    "a span that changes its type": "a B-y\nb I-x\n",
    "BOM and CRLF": "\ufeff# label: fly\r\nto O\r\nOslo B-city\r\n\r\n",
    "one column": "a\n",
    "no tag": "a B\n",
}


@pytest.mark.parametrize("body", FILES.values(), ids=FILES)
def test_conll(tmp_path: Path, body: str) -> None:
    """`twofold adapt` reads the same examples from a CoNLL file as `twofold-trainer init`, and refuses the same line."""
    path = tmp_path / "train.conll"
    path.write_text(body, encoding="utf-8", newline="")

    try:
        expected = read_source(str(path))
    except ExampleError as error:
        with pytest.raises(click.ClickException, match=f"^{path}:{error.line}: "):
            read_examples(path)
    else:
        assert [msgspec.convert(asdict(example), Example) for example in read_examples(path)] == expected
