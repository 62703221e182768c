"""Job specifications from flat settings."""

from __future__ import annotations

from typing import Any

from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.protocol.job import TrainingRequest
from twofold_server.jobs.model import JobSpec


def job_spec(head: HeadName, **settings: Any) -> JobSpec:
    """Return a specification; settings are fields of TrainingRequest or of JobSpec."""
    request = {name: settings.pop(name) for name in TrainingRequest.__struct_fields__ if name in settings}
    return JobSpec(request=TrainingRequest(head=head, **request), **settings)
