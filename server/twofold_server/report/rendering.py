"""The Jinja2 environment of the pages. Templates escape every value, and a misspelt name is an error."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined

from twofold_server.report import formatting

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Content Security Policy of the pages: they load nothing, and their styles are inline."""
# Characters that could reorder or break the surrounding text: controls, bidirectional marks, line separators.
_UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ufeff\\ufffe\\uffff\\ud800-\\udfff]"
)
_ENVIRONMENT = Environment(
    loader=PackageLoader("twofold_server.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= {
    "score": formatting.score,
    "signed": formatting.signed,
    "plural": formatting.plural,
    "duration": formatting.duration,
}
_ENVIRONMENT.globals |= {"POLICY": POLICY, "MINUS": formatting.MINUS}


def render_template(name: str, **context: object) -> str:
    """Render a template, with unsafe characters shown by their numbers, such as ⟦U+202E⟧."""
    page = _ENVIRONMENT.get_template(name).render(context)
    return _UNSAFE.sub(lambda match: f"⟦U+{ord(match[0]):04X}⟧", page)
