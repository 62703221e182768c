import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client.metrics import MetricWrapperBase
from twofold_checkpoint import checkpoint, decoding, encoding, examples, golden, labels, manifest, memory, store
from twofold_server.api.wire import open_inference
from twofold_server.config.schema import SETTINGS
from twofold_server.observability.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"
STRUCTS = (
    manifest.Manifest,
    manifest.Score,
    manifest.Provenance,
    manifest.FileDigest,
    manifest.Branch,
    manifest.ReducedGraph,
    labels.LabelSet,
    encoding.EncoderSettings,
    store.Aliases,
    memory.Remembered,
    examples.Example,
    examples.Span,
    golden.GoldenAnswer,
    decoding.Prediction,
    decoding.LabelScore,
    decoding.Entity,
)


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables, without their headers."""
    lines = re.findall(r"^\| (?=`)(.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def read(name: str) -> str:
    """Return the text of a page."""
    return (DOCS / name).read_text(encoding="utf-8")


def test_metrics() -> None:
    """docs/metrics.md has every metric with its type and labels, and no other."""
    metrics = Metrics()
    labels_of = {var._name: var._labelnames for var in vars(metrics).values() if isinstance(var, MetricWrapperBase)}
    exported = {
        (family.name + "_total" * (family.type == "counter"), family.type, tuple(labels_of.get(family.name, ())))
        for family in metrics.registry.collect()
    }
    documented = {
        (name.strip("`"), kind, tuple(re.findall(r"(?:^|, |; )`(\w+)`(?=:|,|;|$)", re.sub(r":[^;]*", ":", names))))
        for name, kind, names, _ in rows(read("metrics.md"))
    }
    assert documented == exported


def test_configuration() -> None:
    """docs/configuration.md has every setting with its flag, variable, default, range and help, by group."""
    expected, titles = [], []
    for setting in SETTINGS.values():
        default = str(setting.default).lower() if setting.kind is bool else str(setting.default)
        shown = "none" if setting.default is None else f"`{default}`"
        if setting.name == "trainer_python":
            shown = "the server's own"
        expected.append([f"`{setting.flag}`", f"`{setting.variable}`", shown, str(setting.range), setting.help])
        titles += [setting.title] if setting.title not in titles else []
    assert rows(read("configuration.md")) == expected
    assert re.findall(r"^\*\*(.*)\*\*$", read("configuration.md"), re.MULTILINE) == titles


def test_settings_in_prose() -> None:
    """The prose of docs/configuration.md names only existing settings."""
    prose = re.sub(r"^\|.*\n", "", read("configuration.md"), flags=re.MULTILINE)
    named = {match.removeprefix("no-") for match in re.findall(r"`(?:--)?([a-z]+(?:-[a-z]+)+)`", prose)}
    assert named <= {setting.label for setting in SETTINGS.values()}


def chapters() -> dict[str, str]:
    """Return the chapters of docs/checkpoint-format.md by their headings."""
    parts = re.split(r"^###? (.*)\n", read("checkpoint-format.md"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_fields(struct: type[msgspec.Struct]) -> None:
    """docs/checkpoint-format.md has every written field, in order, and no other."""
    documented = [cells[0].strip("`") for cells in rows(chapters()[struct.__name__])]
    assert documented == list(struct.__struct_encode_fields__)


def test_no_other_struct() -> None:
    """Every chapter of docs/checkpoint-format.md describes a file or a written struct."""
    named = set(chapters()) - {"Files"} - {title for title in chapters() if title.startswith("`")}
    assert named == {struct.__name__ for struct in STRUCTS}


def test_files() -> None:
    """docs/checkpoint-format.md has every file of a checkpoint, and no other."""
    documented = {cells[0].strip("`") for cells in rows(chapters()["Files"])}
    assert documented == {checkpoint.MANIFEST, *checkpoint.FILES, *checkpoint.INT8_FILES, checkpoint.STATISTICS}


def test_format() -> None:
    """docs/checkpoint-format.md describes the current format version."""
    assert f"\nFormat {manifest.FORMAT}." in read("checkpoint-format.md")


def test_links() -> None:
    """Every link in the docs to another page or heading works."""
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:\s]*(?:#[^)]*)?)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            second = page.parent / path if path else page
            assert second.exists(), f"{page.name} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", second.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_tensors() -> None:
    """docs/open-inference.md has every tensor with its datatype, in order, and no other."""
    documented = [
        (re.match(r"`(\w+)`", name)[1], kind.strip("`")) for name, kind, _, _ in rows(read("open-inference.md"))
    ]
    assert documented == [(item.name, item.datatype) for item in (*open_inference.INPUTS, *open_inference.OUTPUTS)]
