"""The shape of the code, read from its syntax trees: names, packages and the composition root."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOTS = ("checkpoint/twofold_checkpoint", "server/twofold_server", "trainer/twofold_trainer", "clients/python/twofold")
SCRIPTS = ("benchmarks", "examples", "tests")
GENERATED = ("clients/python/twofold/v1", "clients/python/twofold/open_inference")
SUBPACKAGES = sorted(
    str(path.parent.relative_to(ROOT))
    for root in ("checkpoint/twofold_checkpoint", "server/twofold_server", "trainer/twofold_trainer")
    for path in (ROOT / root).glob("*/**/__init__.py")
)
BANNED = {"one", "other", "said", "found", "told", "place", "some", "begun", "asked"}
MAX_FILES = 25


def modules(*roots: str) -> Iterator[Path]:
    """Yield every hand-written module below some folders."""
    for root in roots:
        for path in sorted((ROOT / root).rglob("*.py")):
            if not str(path.relative_to(ROOT)).startswith(GENERATED):
                yield path


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each identifier that code defines or uses, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.keyword(arg=str(name)) | ast.alias(asname=str(name)):
                yield name, node.lineno
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name, node.lineno


def outside_assignments(tree: ast.AST) -> list[int]:
    """Return the lines that set an attribute of an object, by a statement or by setattr."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr")
    ]


def is_one_sentence(tree: ast.Module) -> bool:
    """Whether a module is a docstring of one sentence, and nothing else."""
    text = ast.get_docstring(tree) or ""
    return len(tree.body) == 1 and text.endswith(".") and ". " not in text and "\n" not in text


def test_banned_words_are_not_identifiers():
    """No name in the product, the benchmarks, the examples or the tests is a word that says nothing about the thing it names."""
    uses = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in modules(*ROOTS, *SCRIPTS)
        for name, line in identifiers(ast.parse(path.read_text(encoding="utf-8")))
        if name.strip("_") in BANNED
    ]

    assert uses == []


def test_tests_are_among_the_modules_that_are_read():
    """The test above would notice a banned word in this file and in every other test."""
    assert {Path(__file__), *Path(__file__).parent.rglob("test_*.py")} <= set(modules(*ROOTS, *SCRIPTS))


def test_every_kind_of_identifier_is_seen():
    """The test above would notice a banned word as a variable, parameter, attribute, keyword, function or alias."""
    source = "import json as one\ndef other(said, *, found=1):\n  for told in said.place:\n    some(begun=told)\nclass asked: ..."

    assert {name for name, _ in identifiers(ast.parse(source))} >= BANNED


@pytest.mark.parametrize("package", SUBPACKAGES)
def test_a_package_docstring_is_one_sentence(package):
    """The `__init__.py` of a package is one sentence, and re-exports nothing."""
    source = (ROOT / package / "__init__.py").read_text(encoding="utf-8")

    assert is_one_sentence(ast.parse(source)), source


@pytest.mark.parametrize("source", ["", '"""Two. Sentences."""', '"""One."""\nfrom json import loads'])
def test_other_package_docstrings_are_noticed(source):
    """The test above would notice an empty package, a second sentence and a re-export."""
    assert not is_one_sentence(ast.parse(source))


def test_the_composition_root_sets_no_attributes():
    """`app.py` passes collaborators to constructors, and changes no object afterwards."""
    tree = ast.parse((ROOT / "server/twofold_server/app.py").read_text(encoding="utf-8"))

    assert outside_assignments(tree) == []


@pytest.mark.parametrize("source", ["server.hook = print", "server.count += 1", "setattr(server, 'hook', print)"])
def test_an_attribute_that_is_set_from_outside_is_noticed(source):
    """The test above would notice an assignment, an augmented one, and setattr."""
    assert outside_assignments(ast.parse(source)) == [1]


def test_no_folder_has_too_many_modules():
    """A folder of modules has at most 25 files, so that its listing can be read at a glance."""
    counts = Counter(path.parent for path in modules(*ROOTS, *SCRIPTS))

    assert {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MAX_FILES} == {}
