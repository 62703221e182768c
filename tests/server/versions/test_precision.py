"""Precision: which graph of a checkpoint serves."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from support import tiny_checkpoints
from support.server_command import read_config
from twofold_checkpoint.manifest import ReducedGraph
from twofold_checkpoint.store import Store
from twofold_server.config.settings import EngineSettings
from twofold_server.errors import SwapError
from twofold_server.inference.engine import Engine
from twofold_server.versions import loader
from twofold_server.versions.loader import load_engine
from twofold_server.versions.precision import ROUNDS, SHAPES, time_passes

PASSED = ReducedGraph(precision="int8", passed=True, reason="It may serve.", isolation_error=0.0)
FAILED = ReducedGraph(precision="int8", passed=False, reason="It lost 3 points.", isolation_error=0.0)


def load(root: Path, precision: str, **recipe) -> Engine:
    """Publish a checkpoint and load it in a precision."""
    checkpoint = tiny_checkpoints.publish(Store(root), tiny_checkpoints.Recipe(**recipe))
    return load_engine(checkpoint, EngineSettings(threads=1, precision=precision))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_requested_precision_serves(precision: str, tmp_path: Path) -> None:
    """A checkpoint with both graphs serves in the requested precision."""
    assert load(tmp_path, precision, int8=PASSED).precision == precision


@pytest.mark.parametrize(
    ("int8", "message"),
    [
        (
            None,
            "a: precision: this checkpoint has no int8 graph; start the server with precision fp32, or with",
        ),
        (FAILED, r"its int8 graph did not pass the gate; start .* precision fp32, or with auto. It lost 3 points\."),
    ],
)
def test_a_graph_that_is_not_there_is_refused(int8: ReducedGraph | None, message: str, tmp_path: Path) -> None:
    """A checkpoint whose int8 graph did not pass is not served in int8, and the error says why and what to do."""
    with pytest.raises(SwapError, match=message):
        load(tmp_path, "int8", int8=int8)


@pytest.mark.parametrize(("faster", "expected"), [("int8", "int8"), ("fp32", "fp32")])
def test_auto_serves_the_faster_graph(faster: str, expected: str, tmp_path: Path) -> None:
    """Of the graphs that passed, auto keeps the faster one and closes the other."""
    loaded = []

    def timed(engines):
        loaded.extend(engines)
        return [1.0 if engine.precision == faster else 2.0 for engine in engines]

    with mock.patch.object(loader, "time_passes", timed):
        engine = load(tmp_path, "auto", int8=PASSED)

    assert engine.precision == expected
    assert [item.precision for item in loaded if item.state == "closed"] == [
        item.precision for item in loaded if item is not engine
    ]


@pytest.mark.parametrize("settled", ["int8", "fp32"])
def test_auto_reuses_the_precision_of_a_loaded_backbone(settled: str, tmp_path: Path) -> None:
    """If an engine of the same backbone is loaded, auto uses its precision without timing."""
    live = load(tmp_path, settled, int8=PASSED)
    checkpoint = tiny_checkpoints.publish(Store(tmp_path), tiny_checkpoints.Recipe(tag="b", int8=PASSED))

    with mock.patch.object(loader, "time_passes", side_effect=AssertionError):
        engine = load_engine(checkpoint, EngineSettings(threads=1, precision="auto"), live)

    assert engine.precision == settled
    assert engine.encoder is live.encoder


@pytest.mark.parametrize(
    "recipe", [{"int8": None}, {"int8": PASSED, "int8_golden_tag": "y"}], ids=["it has none", "it answers wrongly"]
)
def test_auto_falls_back_to_fp32(recipe: dict, tmp_path: Path) -> None:
    """If an engine in int8 is loaded, a checkpoint that cannot serve in int8 serves in fp32."""
    live = load(tmp_path, "int8", int8=PASSED)
    checkpoint = tiny_checkpoints.publish(Store(tmp_path), tiny_checkpoints.Recipe(tag="b", **recipe))

    engine = load_engine(checkpoint, EngineSettings(threads=1, precision="auto"), live)

    assert engine.precision == "fp32"


@pytest.mark.parametrize("recipe", [{}, {"int8": FAILED}, {"int8": PASSED, "int8_golden_tag": "y"}])
def test_auto_serves_fp32_where_nothing_else_may(recipe: dict, tmp_path: Path) -> None:
    """Without an int8 graph that passed and answers correctly here, auto serves fp32."""
    assert load(tmp_path, "auto", **recipe).precision == "fp32"


def test_int8_has_golden_answers_of_its_own(tmp_path: Path) -> None:
    """An int8 graph that does not reproduce its own golden answers is not served."""
    with pytest.raises(
        SwapError,
        match=r"golden answers: .* label \['a_weather'\] instead of \['y_weather'\], for text 1 of golden.int8.json$",
    ):
        load(tmp_path, "int8", int8=PASSED, int8_golden_tag="y")


def test_a_graph_whose_neighbours_matter_is_refused(tmp_path: Path) -> None:
    """In reduced precision, golden texts are also checked in one batch, and a graph whose answers change is rejected."""
    honest = Engine.run

    def leaking(self, ids, mask, outputs):
        actual = honest(self, ids, mask, outputs)
        return (
            actual
            if len(ids) == 1
            else [result + np.float32(0.01) * np.arange(result.shape[-1], dtype=np.float32) for result in actual]
        )

    with mock.patch.object(Engine, "run", leaking):
        assert load(tmp_path / "fp32", "fp32", int8=PASSED).precision == "fp32"
        with pytest.raises(
            SwapError,
            match=r"in int8 the answer to a text depends on its batch: a score differs.*, for text \d of golden.int8.json$",
        ):
            load(tmp_path / "int8", "int8", int8=PASSED)


def test_engines_are_timed_in_turns(tmp_path: Path) -> None:
    """The engines are timed alternately, each with every shape."""
    engine = load(tmp_path, "fp32")
    shapes = []
    honest = engine.run

    def seen(ids, mask, outputs):
        shapes.append(ids.shape)
        return honest(ids, mask, outputs)

    with mock.patch.object(engine, "run", seen):
        seconds = time_passes((engine, engine))

    assert len(seconds) == 2
    assert min(seconds) > 0
    longest = engine.encoder.settings.max_tokens
    assert shapes == [(rows, min(length, longest)) for _ in range(ROUNDS) for rows, length in SHAPES for _ in range(2)]


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cpu", "fp16", "precision 'fp16' needs device 'cuda'; write fp32, int8 or auto"),
        ("cpu", "bf16", "precision 'bf16' needs device 'cuda'; write fp32, int8 or auto"),
        ("cuda", "int8", "precision 'int8' needs device 'cpu'; write fp32 or auto"),
    ],
)
def test_a_precision_of_another_device_is_refused(device: str, precision: str, message: str, capsys) -> None:
    """A precision that the device does not support stops the server at once."""
    with pytest.raises(SystemExit):
        read_config(["--device", device, "--precision", precision], {})

    assert message in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_not_in_this_checkpoint(precision: str, tmp_path: Path) -> None:
    """On a GPU, a half precision that was not exported is rejected before anything is loaded."""
    checkpoint = tiny_checkpoints.publish(Store(tmp_path), tiny_checkpoints.Recipe())

    with pytest.raises(SwapError, match=f"this checkpoint has no {precision} graph"):
        load_engine(checkpoint, EngineSettings(device="cuda", precision=precision))
