"""A short run of the fuzzer, and tests of its checks; `make fuzz` runs it for longer."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fuzzing.calling import HANGS, Outcome
from fuzzing.cases import Case, make_case
from fuzzing.methods import METHODS
from fuzzing.run import fuzz, judge, split
from fuzzing.values import MARK
from fuzzing.world import indiscretions, strangers
from twofold_server.api.servicers.open_inference import UNSUPPORTED

pytestmark = pytest.mark.slow

PREDICT = "/twofold.v1.InferenceService/Predict"
HEALTH = "/grpc.health.v1.Health/Check"


@pytest.mark.parametrize(("world_kind", "count"), [("open", 1500), ("tokens", 700)])
def test_no_input_stops_the_server(world_kind: str, count: int) -> None:
    """No case crashes or blocks the server or ends in INTERNAL; answers stay right, and log and store stay clean."""
    cases = (make_case(1, number, tokens=world_kind == "tokens") for number in range(count))

    tally = fuzz(world_kind, cases, at_once=16, tell=lambda _: None)

    assert [(problem.kind, problem.message, problem.case and problem.case.name) for problem in tally.problems] == []
    assert tally.codes.total() == count
    assert tally.canary >= 2
    assert len({path for path, _ in tally.codes if path in METHODS}) > 0.8 * len(METHODS)


def case(path: str = PREDICT, **how: object) -> Case:
    """Return an empty case."""
    return Case(name="", kind="", path=path, messages=(b"",), **how)


@pytest.mark.parametrize(
    ("item", "code", "tokens", "wrong"),
    [
        (case(), "OK", False, ""),
        (case(), "INVALID_ARGUMENT", False, ""),
        (case(), "INTERNAL", False, "internal"),
        (case(), "UNKNOWN", False, "internal"),
        (case(), HANGS, False, "hang"),
        (case(), "UNAVAILABLE", False, "unexpected"),
        (case(), "CANCELLED", False, "unexpected"),
        (case(play="cancel"), "CANCELLED", False, ""),
        (case(), "DEADLINE_EXCEEDED", False, "unexpected"),
        (case(timeout=0.1), "DEADLINE_EXCEEDED", False, ""),
        (case(), "OK", True, "let in"),
        (case(), "INVALID_ARGUMENT", True, "let in"),
        (case(), "UNAUTHENTICATED", True, ""),
        (case(caller="admin"), "OK", True, "let in"),
        (case(caller="predict"), "OK", True, ""),
        (case(HEALTH), "OK", True, ""),
        (case("tcp:metrics"), "HTTP_500", False, "internal"),
    ],
)
def test_the_fuzzer_detects_problems(item: Case, code: str, tokens: bool, wrong: str) -> None:
    """An internal error, a call without an end and an unauthorised answer are problems; rejections are not."""
    assert judge(item, Outcome(code, "", 0.0), tokens=tokens) == wrong


def test_the_fuzzer_detects_leftover_files(tmp_path: Path) -> None:
    """Unexpected files in the store or next to it, and files of unknown jobs, are reported."""
    for path in (
        "store/jobs/job-1/train.jsonl",
        "store/staging/half/file",
        "store/checkpoints/a/model.onnx",
        "directory/x",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "escaped").touch()

    assert sorted(strangers(tmp_path, {"job-1"})) == [
        "'staging/half' in the store",
        "'staging/half/file' in the store",
        "escaped beside the store",
        "x in the server's directory",
    ]
    assert "jobs/job-1 of a job that there is not" in list(strangers(tmp_path, set()))


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ('{"message":"listening"}', 0),
        (f'{{"message":"{MARK}"}}', 1),
        ("I0000 not ours", 1),
        ('{"message":"no","traceback":"Traceback"}', 1),
    ],
)
def test_the_fuzzer_reads_the_log(line: str, count: int, tmp_path: Path) -> None:
    """Text of a caller, a line that is not JSON and a traceback in the log are reported."""
    (tmp_path / "log").write_text(f"{line}\n", encoding="utf-8")

    assert len(list(indiscretions(tmp_path / "log"))) == count


def test_a_case_comes_of_its_number_and_lasts_as_a_file() -> None:
    """The same seed and number give the same case, others give others, and a file gives the written case back."""
    cases = [make_case(3, number, tokens=number % 2 == 0) for number in range(60)]

    assert [make_case(3, number, tokens=number % 2 == 0) for number in range(60)] == cases
    assert [make_case(4, number, tokens=number % 2 == 0) for number in range(60)] != cases
    assert [msgspec.json.decode(msgspec.json.encode(case), type=Case) for case in cases] == cases


def test_the_worlds_share_the_cases() -> None:
    """Every number is played once."""
    assert sorted(number for numbers in split(1000).values() for number in numbers) == list(range(1000))


def test_every_procedure_has_its_messages() -> None:
    """Every method's messages are built from its descriptor; methods without one are only rejected."""
    assert {method.name for method in METHODS.values() if method.request is None} == set(UNSUPPORTED)
