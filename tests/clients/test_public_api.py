import inspect
import subprocess
import sys
import types

import pytest
import twofold
from twofold import AsyncClient, Client, errors, status, testing

METHODS = sorted(name for name, value in vars(Client).items() if inspect.isfunction(value) and not name.startswith("_"))


def test_all_is_exact():
    """The public names of the package are those in __all__."""
    importable = {
        name
        for name, value in vars(twofold).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }

    assert sorted(importable) == sorted(twofold.__all__)
    assert len(twofold.__all__) == len(set(twofold.__all__))


@pytest.mark.parametrize("module", [errors, status, testing], ids=lambda module: module.__name__)
def test_public_modules(module):
    """Every public name of a public module exists and has a docstring."""
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name))


def test_import_is_light():
    """Importing the client imports neither the libraries of the command nor those of the server."""
    heavy = "click rich numpy msgspec tokenizers twofold_checkpoint twofold_server twofold_trainer"
    code = (
        f"import sys, twofold, twofold.testing; sys.exit(' '.join(set({heavy!r}.split()) & set(sys.modules)) or None)"
    )

    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("method", METHODS)
def test_both_clients_have_the_same_methods(method):
    """The methods of both clients have the same names, parameters and docstrings."""
    blocking, asynchronous = getattr(Client, method), getattr(AsyncClient, method)

    assert inspect.signature(blocking) == inspect.signature(asynchronous)
    assert blocking.__doc__ == asynchronous.__doc__
    assert blocking.__doc__


def test_all_methods_are_there():
    """The list of methods does not change by accident."""
    assert (
        sorted(
            [
                "predict",
                "predict_stream",
                "embed",
                "model",
                "health",
                "adapt",
                "upload_dataset",
                "job",
                "jobs",
                "watch",
                "wait",
                "cancel",
                "report",
                "checkpoint",
                "checkpoints",
                "alias_changes",
                "promote",
                "roll_back",
                "delete_checkpoint",
                "close",
            ]
        )
        == METHODS
    )
