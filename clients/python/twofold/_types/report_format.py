"""The forms of a report."""

from enum import StrEnum


class ReportFormat(StrEnum):
    """The form of a report: a page for people, or the document that it shows."""

    HTML = "html"
    JSON = "json"
