"""The report as one HTML page without scripts, fonts or external resources."""

from __future__ import annotations

from twofold_checkpoint.manifest import other_head

from twofold_server.report.changes import SpanMarker, change_groups
from twofold_server.report.document import Document
from twofold_server.report.outcome import outcome
from twofold_server.report.rendering import render_template
from twofold_server.report.scores import gate_charts, score_cards
from twofold_server.report.tables import name_tables
from twofold_server.report.training_curves import TrainingCurves


def render(document: Document) -> str:
    """Render a report as HTML, as a pure function of the document."""
    request = document.request
    return render_template(
        "report.html.j2",
        document=document,
        outcome=outcome(document.state, document.verdict, validate_only=request.validate_only),
        protected_head=other_head(request.head),
        cards=score_cards(document),
        gate_charts=gate_charts(document),
        change_groups=list(change_groups(document)),
        span_marker=SpanMarker(document.changes),
        tables=name_tables(document),
        training=TrainingCurves(document.stages),
    )
