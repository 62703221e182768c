"""Imports between the packages, checked by importing and by import-linter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "twofold": ROOT / "clients" / "python",
    "twofold_checkpoint": ROOT / "checkpoint",
    "twofold_server": ROOT / "server",
}
# What each package must work without: whoever installs it does not have these.
WITHOUT = {
    "twofold": (
        ["twofold_checkpoint", "twofold_server", "twofold_trainer"],
        ["numpy", "tokenizers", "msgspec", "onnxruntime", "torch", "transformers"],
    ),
    "twofold_checkpoint": (
        ["twofold", "twofold_server", "twofold_trainer"],
        ["grpc", "google", "onnxruntime", "prometheus_client", "torch", "transformers", "onnx"],
    ),
    "twofold_server": (["twofold_trainer"], ["torch", "transformers", "onnx", "onnxscript", "safetensors"]),
}
REFUSE = """
import importlib, sys
refused, modules = set(sys.argv[1].split(",")), sys.argv[2].split(",")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ImportError(f"{name} is out of bounds")

sys.meta_path.insert(0, Refuse())
for module in modules:
    importlib.import_module(module)
print(len(modules))
"""


def modules_of(package: str) -> list[str]:
    """Return the names of all modules of a package."""
    folder = FOLDERS[package]
    paths = sorted((folder / package).rglob("*.py"))
    names = [".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    # The client's command line needs an extra, and only Alembic can execute env.py.
    return [name for name in names if not name.startswith("twofold.cli") and not name.endswith(".migrations.env")]


@pytest.mark.parametrize("package", WITHOUT)
def test_a_package_imports_without_forbidden_packages(package):
    """Every module imports in a process that cannot import the forbidden packages."""
    ours, theirs = WITHOUT[package]
    modules = modules_of(package)
    command = [sys.executable, "-c", REFUSE, ",".join(ours + theirs), ",".join(modules)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == len(modules) > 5


def test_the_refusal_refuses():
    """The test above would notice a forbidden import."""
    command = [sys.executable, "-c", REFUSE, "json", "json.decoder"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert "json is out of bounds" in ended.stderr


def test_the_contracts_hold():
    """All contracts of import-linter in pyproject.toml are kept."""
    pytest.importorskip("importlinter", reason="import-linter is in the group `check`")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_files_stay_small():
    """No file of the server or the client has more than 300 lines."""
    lengths = {
        path.name: len(path.read_text(encoding="utf-8").splitlines())
        for room in ("server/twofold_server", "clients/python/twofold")
        for path in (ROOT / room).rglob("*.py")
        if "_pb2" not in path.name
    }

    assert {name: length for name, length in lengths.items() if length > 300} == {}
