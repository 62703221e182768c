"""The rows of the table by name, and which scenarios each is run on. Nothing here imports torch."""

from __future__ import annotations

from importlib import import_module

CLASSICS = ("unconstrained", "head_frozen", "lwf", "rehearsal", "derpp", "ewc", "agem")
OURS = ("statistical", "exact", "auto")
PARTS = (
    "without_distillation",
    "without_retention",
    "without_rehearsal",
    "without_guard",
    "without_norms",
    "with_projection",
    "with_repair",
    "memory_statistics",
    "memory_none",
)
"""STATISTICAL with one of its parts switched off or on, and from a base that carries no text."""
ROWS = (*CLASSICS, *OURS, *PARTS)
OVERVIEW = tuple(row for row in (*CLASSICS, *OURS) if row != "head_frozen")
"""The rows of the short table; plain head-freezing is there as its twin."""
CEILING = "unconstrained"
"""The row that every new score is compared with."""

TWINS = {"head_frozen": "unconstrained"}
"""Rows that end in the very bytes of others, and are not run again: new data says nothing to the protected head, so that
it stays as it is, frozen or not. A test holds them side by side."""

COSTLY = frozenset({"ewc", "agem"})
COSTLY_SCENARIOS = frozenset(
    {
        "snips_new_domains_ner",
        "hwu64_to_restaurant8k_ner",
        "snips_to_clinc150_cls",
        "conflict_hwu64_actions",
        "small_snips_to_chatbot_ner",
    }
)
"""One of each kind in which the costly methods could show what they are worth; all of a quick run are among them."""
PARTS_SCENARIOS = frozenset(
    {
        "hwu64_to_restaurant8k_ner",
        "hwu64_new_scenarios_cls",
        "small_snips_to_chatbot_ner",
        "small_hwu64_to_clinc_banking_cls",
    }
)
"""One of each head, with much data and with little."""


def is_run(row: str, scenario: str, *, again: bool = False) -> bool:
    """Tell whether a row is run on a scenario, and with more seeds than the first one."""
    if row in PARTS:
        return scenario in PARTS_SCENARIOS and not again
    return row not in COSTLY or scenario in COSTLY_SCENARIOS


def find_row(name: str):  # noqa: ANN201 -- a Row; naming the type would import torch.
    """Return a row's function."""
    module = import_module(f"benchmarks.adaptation.{'classic' if name in CLASSICS else 'twofold'}_methods")
    return module.ROWS[name]
