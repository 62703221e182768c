"""The metrics of a real server after real traffic."""

from __future__ import annotations

import os
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import tiny_checkpoints
from support.tensors import ask
from twofold import Client, Example, Head, InvalidArgumentError, JobState, Span, TwofoldError
from twofold.open_inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from twofold_checkpoint.protocol.events import Finished, PhaseStarted, ScoreMeasured, to_line
from twofold_checkpoint.protocol.job import PHASES
from twofold_server.testing import serving

Scrape = dict[str, list[dict[str, str]]]
"""The labels of every series, by the name of the metric."""
EXAMPLES = [Example(text="we are in berlin", entities=(Span(start=10, end=16, type="b_place"),))] * 20


def write_trainer(path: Path) -> Path:
    """Write a program that plays a trainer whose job the gate rejects."""
    message = [PhaseStarted(phase=phase) for phase in PHASES[:-1]]
    message += [
        ScoreMeasured(figure=figure, moment=moment, metric="f1", value=0.9, examples=100)
        for figure in ("protected", "retained", "new")
        for moment in ("before", "after")
    ]
    message.append(Finished(outcome="rejected", reason="The gate said no."))
    lines = b"".join(to_line(item) for item in message).decode()
    path.write_text(f"#!{sys.executable}\nprint({lines!r}, end='')\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@contextmanager
def two_gpus() -> Iterator[None]:
    """Let servers find two GPUs, through a fake of NVIDIA's library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support" / "doubles"), prepend=os.pathsep)
        yield


def send_traffic(target: str, client: Client, broken: str) -> None:
    """Make calls of every kind that the metrics distinguish."""
    with grpc.insecure_channel(target) as channel:
        GRPCInferenceServiceStub(channel).ModelInfer(ask("rain in oslo today"))
    for texts in (["rain in oslo today"], ["play a song", "so much " * 40]):
        client.predict(texts)
        client.embed(texts)
    with pytest.raises(InvalidArgumentError):
        client.predict(["x" * 100_000])
    client.promote("b")
    with pytest.raises(TwofoldError):
        client.promote(broken)
    job = client.adapt(EXAMPLES, head=Head.NER)
    assert client.wait(job.id).state is JobState.REJECTED


@pytest.fixture(scope="session")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    """Return the metrics of a real server after calls, promotions (one fails) and a job."""
    root = tmp_path_factory.mktemp("scrape")
    store = tiny_checkpoints.make_store(root / "store", "a", "b")
    broken = tiny_checkpoints.publish_broken(store, "one bit flipped").id
    trainer = write_trainer(root / "trainer")
    flags = ("--trainer-python", str(trainer))
    with (
        two_gpus(),
        serving(store.root, *flags, log=root / "log") as server,
        Client(server.target) as client,
    ):
        send_traffic(server.target, client, broken)
        with urllib.request.urlopen(server.metrics_url) as answer:
            text = answer.read().decode()
    actual: Scrape = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            actual[sample.name].append(sample.labels)
    return dict(actual)
