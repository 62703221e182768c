import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("build", "server-cpu", "server-gpu", "trainer")
FINAL = ("server", "trainer", "all")


@dataclass
class Stage:
    """One stage of the Dockerfile."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def named(self, word: str) -> list[str]:
        """Return the instructions of one kind."""
        return [rest for name, rest in self.steps if name == word]


def read_stages() -> dict[str, Stage]:
    """Return the stages of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text()
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    stages: dict[str, Stage] = {}
    for line in filter(None, lines):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.split()
            stage = stages[name] = Stage(base, name)
        else:
            stage.steps.append((word, " ".join(rest.split())))
    return stages


STAGES = read_stages()


def lineage(name: str) -> Iterator[Stage]:
    """Yield the stage and its base stages."""
    while name in STAGES:
        yield STAGES[name]
        name = STAGES[name].base


def inherited(name: str, word: str) -> list[str]:
    """Return the instructions of one kind, of the stage and its base stages."""
    return [rest for stage in lineage(name) for rest in stage.named(word)]


def expand(text: str) -> list[str]:
    """Expand the build arguments."""
    return [text.replace("${ACCELERATOR}", value) for value in ("cpu", "gpu")] if "${" in text else [text]


def copied(stage: Stage) -> list[str]:
    """Return what the stage copies from the repository."""
    actual = []
    for rest in stage.named("COPY"):
        if not rest.startswith("--from="):
            actual += [path for source in rest.split()[:-1] for path in expand(source)]
    return actual


def is_ignored(path: str) -> bool:
    """Return whether .dockerignore excludes a path: the last matching pattern decides."""
    ignored = False
    for raw in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = raw.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keep, pattern = pattern.startswith("!"), pattern.lstrip("!")
        above = [path, *map(str, Path(path).parents)]
        patterns = {pattern, pattern.removeprefix("**/")}
        if any(fnmatch.fnmatch(item, each) for item in above for each in patterns if each != "*") or pattern == "*":
            ignored = not keep
    return ignored


def test_targets() -> None:
    """The three targets exist, and every base is another stage or one Python image pinned to a patch version."""
    assert set(FINAL) <= set(STAGES)
    bases = {stage.base for stage in STAGES.values()} - set(STAGES)
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.12\.\d+-slim-[a-z]+", bases.pop())


@pytest.mark.parametrize("name", FINAL)
def test_user(name: str) -> None:
    """Every image ends with a numeric user other than root."""
    user = inherited(name, "USER")[0]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert all(word != "USER" or rest != "root" for stage in lineage(name) for word, rest in stage.steps)


@pytest.mark.parametrize("name", ["server", "all"])
def test_health_check(name: str) -> None:
    """The health check uses the client's command, with options that exist."""
    check = inherited(name, "HEALTHCHECK")[0]
    assert '["twofold", "--timeout", "3", "health"]' in check
    command = [sys.executable, "-m", "twofold.cli", "--timeout", "3", "health", "--help"]
    assert subprocess.run(command, check=True, capture_output=True).stdout


def test_sources() -> None:
    """Nothing is added from a URL, and everything that is copied exists and is not ignored."""
    for stage in STAGES.values():
        assert not stage.named("ADD")
        for source in copied(stage):
            assert "://" not in source
            assert (ROOT / source).exists(), f"{stage.name} copies {source}, which is not there"
            assert not is_ignored(source), f"{stage.name} copies {source}, which .dockerignore keeps out"
    assert is_ignored(".git")
    assert is_ignored("server/twofold_server/__pycache__")


def test_copies_between_stages() -> None:
    """A stage copies only from existing stages."""
    for stage in STAGES.values():
        for rest in stage.named("COPY"):
            if rest.startswith("--from="):
                assert rest.split()[0].removeprefix("--from=") in STAGES


def test_every_install_is_locked() -> None:
    """Every pip install uses an existing lock file with hashes."""
    installs = [run for stage in STAGES.values() for run in stage.named("RUN") if "pip install" in run]
    assert installs
    for run in installs:
        if "--no-index" in run:
            assert "--no-deps" in run
            continue
        assert "--require-hashes" in run
        locks = re.findall(r"-r (\S+)", run)
        assert locks
        assert all((ROOT / path).is_file() for lock in locks for path in expand(lock))


@pytest.mark.parametrize("name", LOCKS)
def test_lock_is_exact(name: str) -> None:
    """A lock pins each requirement with a hash, and names no index."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=sha256:[0-9a-f]{64})", text, re.MULTILINE)
    entries = re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n?", "", text, flags=re.MULTILINE).strip())
    for entry in entries:
        assert re.match(r"[a-z0-9-]+(\[[a-z,-]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize("name", LOCKS)
def test_lock_covers_all_requirements(name: str) -> None:
    """A lock pins every requirement of pyproject.toml that it covers."""
    import tomllib

    groups = {
        "build": [],
        "server-cpu": ["server", "cpu"],
        "server-gpu": ["server", "gpu"],
        "trainer": ["trainer"],
    }[name]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"]] if name == "build" else [*project["project"]["dependencies"]]
    for group in groups:
        wanted += project["project"]["optional-dependencies"][group]
    if name.startswith("server"):
        client = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]
        wanted += client["dependencies"] + client["optional-dependencies"]["cli"]
    pinned = set(re.findall(r"^([a-z0-9-]+)", (ROOT / "requirements" / f"{name}.txt").read_text(), re.MULTILINE))
    names = {re.split(r"[^A-Za-z0-9-]", item)[0] for item in wanted} - {"twofold"}
    assert names <= pinned, f"run make lock; {name} lacks {sorted(names - pinned)}"


@pytest.mark.parametrize("name", ["server-cpu", "server-gpu"])
def test_server_is_locked_without_torch(name: str) -> None:
    """The server's locks have one ONNX Runtime, and no training libraries."""
    pinned = set(re.findall(r"^([a-z0-9-]+)", (ROOT / "requirements" / f"{name}.txt").read_text(), re.MULTILINE))
    assert not pinned & {"torch", "transformers", "onnx", "safetensors"}
    assert len(pinned & {"onnxruntime", "onnxruntime-gpu"}) == 1


def run_stage(stage: Stage, root: Path) -> None:
    """Run the stage's instructions, with *root* as the root directory."""
    python = Path(sys.executable).parent
    where = root
    for word, raw in stage.steps:
        rest = raw.replace("${ACCELERATOR}", "cpu")
        if word == "WORKDIR":
            where = root / rest.strip("/")
            where.mkdir(parents=True, exist_ok=True)
        elif word == "COPY" and not rest.startswith("--from="):
            *sources, target = rest.split()
            for source in sources:
                destination = where / (source if target == "./" else target)
                destination.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile
                copy(ROOT / source, destination)
        elif word == "RUN":
            command = re.sub(r"(?<!\S)/(?=opt/|wheels\b)", f"{root}/", rest)
            environment = os.environ | {"PATH": f"{python}:{os.environ['PATH']}", "PIP_COMPILE": "0"}  # Quicker.
            done = subprocess.run(
                ["bash", "-euc", command], cwd=where, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_server_stage_installs(tmp_path: Path) -> None:
    """The server's stages, run in a clean environment, give a server that starts and has no torch."""
    run_stage(STAGES["wheels"], tmp_path)
    assert len(list((tmp_path / "wheels").glob("*.whl"))) == 2
    run_stage(STAGES["server-environment"], tmp_path)
    python = tmp_path / "opt" / "server" / "bin" / "python"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, "-I", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)

    shown = run("-m", "twofold_server", "serve", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "--max-queue-tokens" in shown.stdout
    assert run("-c", "import torch").returncode == 1
    assert run("-m", "twofold.cli", "health", "--help").returncode == 0
    checked = run("-m", "pip", "check")
    assert checked.returncode == 0, checked.stdout
