"""Where the job came from, what it did, and how long it took."""

from __future__ import annotations

from collections.abc import Iterator

from twofold_server.report.document import Ancestor, Document
from twofold_server.report.markup import Markup, tag
from twofold_server.report.numbers import duration, plural, score
from twofold_server.report.plot import box, chart, drawing


def notes_section(document: Document) -> Markup | None:
    """Show warnings, then what else was noted."""
    if not document.notes:
        return None
    ordered = sorted(document.notes, key=lambda note: not note.warning)
    return tag(
        "section",
        tag("h2", "Notes"),
        tag(
            "ul",
            (
                tag(
                    "li",
                    tag("span", "warning" if note.warning else note.phase or "job", class_="when"),
                    tag("span", note.message, dir="auto"),
                    class_="note warning" if note.warning else "note",
                )
                for note in ordered
            ),
            class_="notes",
        ),
    )


def plan_section(document: Document) -> Markup | None:
    """Show what was asked and what was made of it."""
    settings = document.hyperparameters
    request = document.request
    chosen: list[tuple[str, object]] = [
        ("head", request.head),
        ("freeze", request.freeze),
        ("protection", "exact" if request.margin is None else f"margin of {request.margin:g} points"),
        ("retained margin", f"{request.retained_margin:g} points"),
        ("new names", request.label_policy),
        ("promotion", request.promote),
        ("memory", request.memory or "as its base"),
        ("seed", str(request.seed)),
    ]
    if settings is not None:
        resolved = ((name, getattr(settings, name)) for name in settings.__struct_fields__)
        chosen += [(name.replace("_", " "), _setting(value)) for name, value in resolved if value is not None]
    return tag(
        "section",
        tag("h2", "The plan"),
        tag("p", document.plan, class_="lead") if document.plan else None,
        tag("p", "New names: ", _listed(document.added_labels)) if document.added_labels else None,
        tag("dl", (tag("div", tag("dt", name), tag("dd", value)) for name, value in chosen), class_="settings"),
    )


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _listed(names: tuple[str, ...]) -> Iterator[object]:
    for number, name in enumerate(names[:50]):
        yield ", " if number else None
        yield tag("bdi", name)
    if len(names) > 50:
        yield f" and {len(names) - 50} more"


def time_section(document: Document) -> Markup | None:
    """Show how long each phase took."""
    phases = document.phases
    whole = sum(phase.seconds for phase in phases)
    if not whole:
        return None
    shapes, left = [], 0.0
    for number, phase in enumerate(phases):
        right = left + 100 * phase.seconds / whole
        shapes.append(
            box(left, 0, right, 100, f"phase hue{number % 8}", title=f"{phase.name}: {duration(phase.seconds)}")
        )
        left = right
    waited = (document.started - document.created).total_seconds() if document.started else 0.0
    swap = f" The swap itself took {duration(document.swap_seconds)}." if document.swap_seconds else ""
    return tag(
        "section",
        tag("h2", "The time"),
        tag("p", f"{duration(whole)}, after {duration(waited)} in the queue.{swap}", class_="lead"),
        chart(drawing(shapes, label=f"phases over {duration(whole)}"), class_="phases"),
        tag(
            "ul",
            (
                tag("li", tag("i", class_=f"hue{number % 8}"), f"{phase.name} ", tag("b", duration(phase.seconds)))
                for number, phase in enumerate(phases)
            ),
            class_="legend",
        ),
    )


def lineage_section(document: Document) -> Markup | None:
    """Show the line of checkpoints, and what was proven of the newest one."""
    proofs = list(_proofs(document))
    if not document.lineage and not proofs:
        return None
    return tag(
        "section",
        tag("h2", "Where it comes from"),
        tag("ol", map(_ancestor, document.lineage), class_="lineage") if document.lineage else None,
        tag("ul", (tag("li", proof) for proof in proofs), class_="proofs") if proofs else None,
    )


def _ancestor(ancestor: Ancestor) -> Markup:
    scores = " · ".join(f"{score.head} {100 * score.value:.1f}" for score in ancestor.scores)
    own = f"{ancestor.branch.head} has {plural(ancestor.branch.blocks, 'block')} of its own" if ancestor.branch else ""
    return tag(
        "li",
        tag("span", ancestor.role, class_="when"),
        tag("span", tag("code", ancestor.id), (tag("span", alias, class_="chip even") for alias in ancestor.aliases)),
        tag("small", " · ".join(part for part in (ancestor.created[:16].replace("T", " "), scores, own) if part)),
        class_=ancestor.role,
    )


def _proofs(document: Document) -> Iterator[object]:
    proofs = document.proofs
    if document.branch is not None and not document.candidate:
        yield f"The refused model gave {plural(document.branch.blocks, 'block')} of its own to {document.branch.head}."
    if proofs.frozen_tensors and proofs.digest_before == proofs.digest_after:
        digest = (proofs.digest_before or "")[:12]
        yield f"{plural(proofs.frozen_tensors, 'frozen tensor')} unchanged, SHA-256 ", tag("code", digest), "…"
    if proofs.exact_texts is not None:
        within = f"{proofs.exact_max_error or 0.0:.1e}"
        yield f"The protected head answers all of {plural(proofs.exact_texts, 'text')} as before, within {within} in a logit."
    if proofs.parity_max_error is not None:
        yield f"The exported graph differs from the trained model by at most {proofs.parity_max_error:.1e} in a logit."
    for figure in document.figures:
        if figure.calibration_before is not None and figure.calibration_after is not None:
            yield (
                f"Calibration error of the {figure.figure} answers: "
                f"{score(figure.calibration_before)} → {score(figure.calibration_after)} points."
            )
