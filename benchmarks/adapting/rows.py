"""The rows of the table by name, and which scenarios each is run on. Nothing here imports torch."""

from __future__ import annotations

from importlib import import_module

CLASSICS = ("unconstrained", "head_frozen", "lwf", "rehearsal", "derpp", "ewc", "agem")
OURS = ("statistical", "exact", "auto")
ROWS = (*CLASSICS, *OURS)
CEILING = "unconstrained"
"""The row that every new score is compared with."""

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


def is_run(row: str, scenario: str) -> bool:
    """Tell whether a row is run on a scenario."""
    return row not in COSTLY or scenario in COSTLY_SCENARIOS


def find_row(name: str):  # noqa: ANN201 -- a Row; naming the type would import torch.
    """Return a row's function."""
    module = import_module("adapting.ours" if name in OURS else "adapting.classics")
    return module.ROWS[name]
