"""The server, called by tritonclient in a separate process."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from support import tiny_checkpoints
from support.running_server import running

ROOT = Path(__file__).parents[4]
PYTHON = ROOT / ".venv-triton" / "bin" / "python"
CALLS = ROOT / "tests" / "support" / "tritonclient_calls.py"
PAGE = (ROOT / "docs" / "open-inference.md").read_text(encoding="utf-8")
OURS = "twofold.open_inference.open_inference_pb2"

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="tritonclient has an environment of its own: make .venv-triton/.done"
)


async def call(store, *arguments):
    """Run a command in tritonclient's environment against a server, whose address replaces TARGET; return its output."""
    async with running(store) as server:
        command = [argument.replace("TARGET", server.target) for argument in arguments]
        process = await asyncio.create_subprocess_exec(
            PYTHON, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            printed, complaints = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, complaints.decode()
        return printed.decode()


ORDERS = [
    pytest.param(("tritonclient.grpc",), id="alone"),
    pytest.param(("tritonclient.grpc", "twofold", OURS), id="before our client"),
    pytest.param(("twofold", OURS, "tritonclient.grpc"), id="after our client"),
]


@pytest.mark.parametrize("modules", ORDERS)
async def test_tritonclient(modules, store):
    """Tritonclient reads every answer, and so does our client in the same process, in either import order."""
    answers = json.loads(await call(store, str(CALLS), "TARGET", *modules))
    actual = answers.pop("tritonclient")

    expected = [tiny_checkpoints.answer(text) for text in ("rain in oslo", "play ♫")]
    assert (actual["live"], actual["ready"], actual["model_ready"]) == (True, True, [True, True, False])
    assert actual["server"]["name"] == "twofold"
    assert actual["metadata"]["versions"] == ["a"]
    assert actual["metadata"]["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1"]}]
    assert [item["name"] for item in actual["config"]["config"]["output"]] == [
        output["name"] for output in actual["metadata"]["outputs"]
    ]
    assert actual["answered"] == ["seven", "a"]
    assert actual["label"] == [answer.labels[0].label for answer in expected]
    assert actual["label_score"] == pytest.approx([answer.labels[0].score for answer in expected], abs=1e-5)
    assert [[(e["start"], e["end"], e["type"]) for e in entity] for entity in actual["entities"]] == [
        [(e.start, e.end, e.type) for e in answer.entities] for answer in expected
    ]
    assert actual["entities"][0]
    assert actual["checkpoint_id"] == ["a", "a"]
    assert actual["async"] == actual["label"]
    assert actual["some"] == {"label": actual["label"]}
    assert actual["unknown_version"] == [
        "StatusCode.NOT_FOUND",
        "model_version: 'b' is not live; the live checkpoint is 'a'; leave it empty for the live checkpoint",
    ]
    code, says = actual["wrong_text"]
    assert (code, "raw_input_contents[0][0]: is not UTF-8: byte 0xff at 0" in says) == (
        "StatusCode.INVALID_ARGUMENT",
        True,
    )
    code, says = actual["unload"]
    assert (code, "call RepositoryModelLoad" in says) == ("StatusCode.UNIMPLEMENTED", True)
    assert [label[:2] for label in actual["loaded"] + actual["back"]] == ["b_", "b_", "a_", "a_"]
    assert [(model["version"], model["state"]) for model in actual["index"]["models"]] == [
        ("b", "READY"),
        ("a", "UNAVAILABLE"),
    ]
    [statistics] = actual["statistics"]["model_stats"]
    assert (statistics["version"], statistics["inference_count"]) == ("b", "8")

    ours = {"label": "a_weather", "version": "a", "two_pools": True}
    assert answers == ({"twofold": ours} if OURS in modules else {})


async def test_the_example(store):
    """The example of docs/open-inference.md runs unchanged, except for the server's address."""
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = await call(store, "-W", "error", "-c", example.replace("127.0.0.1:8500", "TARGET"))
    assert re.fullmatch(r"(a_\w+ \[.*\]\n){2}", printed)
