"""The HTML page of a report is safe, self-contained and complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from msgspec.structs import replace
from support.sample_report import DOCUMENT, FIXED, FLIP, PROTECTED, document
from twofold_checkpoint.examples import Span
from twofold_checkpoint.protocol.findings import Answer, Interval
from twofold_checkpoint.protocol.job import Statistical
from twofold_server.jobs.model import JobState
from twofold_server.report.document import Document, Note
from twofold_server.report.formatting import MINUS
from twofold_server.report.page import render
from twofold_server.report.rendering import render_template
from twofold_server.report.reporter import MAX_BYTES, fit, to_json

VOID = {"meta", "br"}
KNOWN = {
    *[
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "footer",
        "section",
        "div",
        "article",
        "figure",
        "figcaption",
        "details",
        "summary",
    ],
    *[
        "h1",
        "h2",
        "h3",
        "p",
        "span",
        "small",
        "strong",
        "b",
        "i",
        "bdi",
        "code",
        "mark",
        "ul",
        "ol",
        "li",
        "dl",
        "dt",
        "dd",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    ],
    *["svg", "line", "rect", "polyline"],
}
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "'\"><svg onload=alert(1)>",
    "</style><style>*{display:none}</style>",
    "javascript:alert(1)//&amp;&lt;",
    "<!-- -->]]><?php ?>",
    "\u202egnp.exe\u202c \u2066\u2067\u2069",
    "a\u0000b\u0007\u001b[31m\u2028\u2029\ufeff",
    "{{7*7}} ${7*7} %s {0}",
)


class Page(HTMLParser):
    """Read a page: its elements, its attributes and its visible text. A mismatched closing tag is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Handle the start of an element."""
        self.seen.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Handle the end of an element."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Handle the text of an element."""
        if self.open[-1:] != ["style"]:
            self.text += data

    def handle_comment(self, data: str) -> None:
        """Fail, because no page has a comment."""
        raise AssertionError(f"a comment: {data}")


def with_text(text: str) -> Document:
    """Return the report with a text in every field that a user can fill."""
    flip = replace(FLIP, text=text, label=text, before=Answer(label=text), after=Answer(label=text))
    span = Span(start=0, end=max(1, len(text) // 2), type=text)
    fixed = replace(FIXED, text=text, entities=(span,), after=Answer(entities=()))
    return document(
        reason=text,
        changes=(flip, fixed),
        names=tuple(replace(count, name=text) for count in DOCUMENT.names),
        confusions=tuple(replace(confusion, expected=text, answered=text + "!") for confusion in DOCUMENT.confusions),
        notes=(Note(phase=text, message=text, warning=True),),
        added_labels=(text,),
        plan=text,
        dataset=replace(DOCUMENT.dataset, label_counts={text: 3}),
        job_id=text,
        base=text,
        candidate=text,
        lineage=tuple(replace(ancestor, id=text, created=text) for ancestor in DOCUMENT.lineage),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text(text: str) -> None:
    """Markup, scripts, control characters and direction marks in user input are shown as plain text."""
    page = Page(render(with_text(text)))

    assert page.seen <= KNOWN
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    shown = re.sub(r"⟦U\+[0-9A-F]{4}⟧", "", page.text)
    printable = "".join(letter for letter in text if letter.isprintable())
    assert shown.count(printable) > 10
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b\u2028\u2029\ufeff]", page.text)


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_any_text_leaves_the_page_whole(text: str) -> None:
    """For any text the page has only known elements and encodes as UTF-8."""
    page = render(with_text(text))

    assert Page(page).seen <= KNOWN
    page.encode()


def test_nothing_is_loaded() -> None:
    """The page has no script, no external reference, and a policy that forbids loading."""
    text = render(DOCUMENT)
    page = Page(text)

    assert page.seen <= KNOWN
    assert not {name for _, name, _ in page.attributes} & {"src", "href", "srcset", "action", "data"}
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def leaves(value: Any) -> Iterator[Any]:
    """Yield the strings of a document."""
    if isinstance(value, dict):
        for entry in value.values():
            yield from leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from leaves(entry)
    elif isinstance(value, str):
        yield value


def test_everything_is_shown() -> None:
    """Each sentence, name, text and number of examples of the document is on the page."""
    page = Page(render(DOCUMENT)).text
    hidden = {"pass", "succeeded", "restore", "f1"}  # Shown in other words or by colour.
    expected = {
        leaf for leaf in leaves(msgspec.to_builtins(DOCUMENT)) if not re.match(r"\d{4}-|[0-9a-f]{64}$", leaf)
    } - hidden

    assert [leaf for leaf in expected if leaf not in page and leaf.capitalize() not in page] == []
    for number in ("92.0", "91.5", f"{MINUS}0.5", f"{MINUS}1.2", "1,234", "1 min 20 s", "Calibration error"):
        assert number in page, number


HEADLINES = [
    ({}, "PASS", "the new checkpoint is live"),
    ({"swap_seconds": 0.0}, "PASS", "candidate is not live"),
    ({"state": JobState.REJECTED, "verdict": "fail"}, "REJECTED", "did not pass the gate"),
    ({"state": JobState.REJECTED, "verdict": "inconclusive"}, "INCONCLUSIVE", "too few held-out examples to decide"),
    ({"state": JobState.REJECTED, "verdict": None}, "REJECTED", "stays live"),
    ({"state": JobState.FAILED, "verdict": None}, "FAILED", "failed with an error"),
    ({"state": JobState.FAILED, "verdict": "pass"}, "FAILED", "could not be made live"),
    ({"state": JobState.CANCELLED, "verdict": None}, "CANCELLED", "stopped"),
    ({"verdict": None}, "MEASURED", "Nothing was trained"),
    ({"verdict": None, "request": replace(DOCUMENT.request, validate_only=True)}, "VALID", "planned"),
]


@pytest.mark.parametrize(("changes", "word", "title"), HEADLINES)
def test_headlines(changes: dict[str, Any], word: str, title: str) -> None:
    """The page begins with the result in one word and one line, then the reason."""
    changed = document(**changes)
    page = Page(render(changed)).text

    assert f">{word}</span>" in render(changed)
    assert page.index(word) < page.index(title) < page.index(DOCUMENT.reason)


BARE = {
    "verdict": None,
    "figures": (),
    "gate": (),
    "stages": (),
    "names": (),
    "confusions": (),
    "changes": (),
    "dataset": None,
    "notes": (),
    "plan": "",
    "hyperparameters": None,
    "added_labels": (),
    "branch": None,
    "phases": (),
    "candidate": "",
    "lineage": (),
    "started": None,
    "ended": None,
}


@pytest.mark.parametrize("name", [*BARE, "all"])
def test_missing_parts_are_not_shown(name: str) -> None:
    """Any part of a report may be missing; the page always shows the reason."""
    changed = document(**(BARE if name == "all" else {name: BARE[name]}))

    assert DOCUMENT.reason in Page(render(changed)).text


def test_a_figure_without_after() -> None:
    """If nothing was trained, scores and names have one value."""
    figures = (replace(PROTECTED, after=None, difference=None, calibration_after=None),)
    names = tuple(replace(count, answered_after=None, right_after=None) for count in DOCUMENT.names)
    confusions = tuple(replace(confusion, after=None) for confusion in DOCUMENT.confusions)
    page = Page(render(document(figures=figures, names=names, confusions=confusions, changes=()))).text

    assert "92.0" in page
    assert "91.5" not in page.split("What the gate could prove", maxsplit=1)[0]


MARGINS = {"protection": Statistical(margin=2.0), "retained_margin": 3.0}
CHIPS = [
    # figure, difference, its bounds, exact, the chip's text and tone
    ("retained", -0.005, (-0.02, 0.01), False, f"{MINUS}0.5 of 3 allowed", "even"),
    ("retained", -0.03, (-0.05, 0.0), False, f"{MINUS}3.0 of 3 allowed", "even"),
    ("retained", -0.031, (-0.05, 0.0), False, f"{MINUS}3.1 of 3 allowed", "bad"),
    ("retained", 0.0, (-0.01, 0.01), False, "±0.0", "even"),
    ("retained", 0.01, (-0.01, 0.02), False, "+1.0", "good"),
    ("new", -0.001, (-0.01, 0.01), False, f"{MINUS}0.1", "bad"),
    ("new", 0.3, (0.2, 0.4), False, "+30.0", "good"),
    ("protected", -0.005, (-0.012, 0.0), False, f"{MINUS}0.5 of 2 allowed", "good"),
    ("protected", -0.005, (-0.04, 0.01), False, f"{MINUS}0.5 of 2 allowed", "unsure"),
    ("protected", -0.02, (-0.04, 0.0), False, f"{MINUS}2.0 of 2 allowed", "bad"),
    ("protected", 0.0, (-0.03, 0.03), False, "±0.0", "even"),
    ("protected", 0.0, (-0.03, 0.03), True, "±0.0", "good"),
]


@pytest.mark.parametrize(("figure", "value", "bounds", "exact", "text", "tone"), CHIPS)
def test_a_drop_is_red_only_beyond_its_margin(
    *, figure: str, value: float, bounds: tuple[float, float], exact: bool, text: str, tone: str
) -> None:
    """A difference has the tone of the gate's judgement, and a drop shows what was allowed."""
    difference = Interval(value=value, low=bounds[0], high=bounds[1])
    proofs = replace(DOCUMENT.proofs, exact_texts=90 if exact else None)
    request = replace(DOCUMENT.request, **MARGINS)
    figures = (replace(PROTECTED, figure=figure, difference=difference),)
    page = render(document(figures=figures, request=request, proofs=proofs, gate=(), changes=(), lineage=()))

    (chip,) = re.findall(r'<span class="(chip \w+)">(.*?)</span>', page)
    assert (chip[0], re.sub("<.*?>", "", chip[1])) == (f"chip {tone}", text)


def test_where_the_bytes_are_the_same_no_interval_decides() -> None:
    """A candidate with an unchanged protected path says so and shows no interval against its base."""
    proofs = replace(DOCUMENT.proofs, exact_texts=1090, exact_max_error=1e-7)
    (base,) = DOCUMENT.gate
    same = replace(base, after=base.before, lower_bound=-0.007, upper_bound=0.007, gained=0, lost=0)
    approved = replace(base, against="approved")
    cards, section = render(document(proofs=proofs, gate=(same, approved))).split("What the gate could prove")[:2]
    section = section.split("</section>")[0]
    text = Page(f"<section><h2>{section}</section>").text

    protected = cards.split('class="card protected"')[1].split("</article>")[0]
    assert "no answer can differ" in protected
    assert "difference" not in protected
    assert "the gate was exact" in text
    assert "1,090 texts as before" in text
    assert "no interval is needed" in text
    assert "400 examples, all answered as before" in text
    for word in ("margin", "excluded", "enough to decide", "0.70"):
        assert word not in text
    against_base, against_approved = section.split("<figure>")[1:]
    assert "<svg" not in against_base
    assert "<svg" in against_approved
    assert 'class="edge"' not in against_approved


def test_changes_without_texts_are_counted() -> None:
    """A report without texts says how many examples changed."""
    page = Page(render(document(texts=False, changes=()))).text

    assert "5 held-out examples answered worse and 71 better" in page
    assert "keeps no texts" in page


def test_a_report_fits() -> None:
    """Both forms stay within the limit for many long texts; a report that fits loses nothing."""
    many = tuple(replace(FLIP, text=f"{number}{'<&漢' * 2000}") for number in range(200))
    for form in fit(document(changes=many)).values():
        assert 1000 < len(form) <= MAX_BYTES
    assert fit(DOCUMENT) == {"json": to_json(DOCUMENT), "html": render(DOCUMENT).encode()}


def test_the_document_reads_back() -> None:
    """report.json decodes to the document, and the page is rendered from the document alone."""
    read = msgspec.json.decode(to_json(DOCUMENT), type=Document)

    assert read == DOCUMENT
    assert render(read) == render(DOCUMENT)


def test_spans_are_marked_where_they_are() -> None:
    """A span marks its characters, also after characters outside the basic plane; a wrong span is marked as wrong."""
    text = "🙂🙂 to Rome"
    change = replace(FIXED, better=False, text=text, entities=(Span(start=6, end=10, type="city"),))
    page = render(document(changes=(change,)))

    assert '<mark class="hue0">Rome<small><bdi>city</bdi></small></mark>' in page
    assert ' wrong">' in page
    assert page.count("🙂🙂 ") == 3


def test_no_template_switches_escaping_off() -> None:
    """No template marks a value as markup, and a misspelt name is an error."""
    templates = files("twofold_server.report") / "templates"
    for template in templates.iterdir():
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", template.read_text(encoding="utf-8")), template.name
    with pytest.raises(UndefinedError):
        render_template("headline.html.j2", outcome=None)
