"""The names of the methods, and the scenarios that each runs on. This module does not import torch."""

from __future__ import annotations

from importlib import import_module

CLASSIC_METHODS = ("unconstrained", "head_frozen", "lwf", "rehearsal", "derpp", "ewc", "agem")
TWOFOLD_METHODS = ("statistical", "exact", "auto")
ABLATIONS = (
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
"""STATISTICAL with one part switched on or off, or from a base without stored texts."""
METHODS = (*CLASSIC_METHODS, *TWOFOLD_METHODS, *ABLATIONS)
OVERVIEW_METHODS = tuple(method for method in (*CLASSIC_METHODS, *TWOFOLD_METHODS) if method != "head_frozen")
"""The methods of the short table, without the equivalent `head_frozen`."""
CEILING = "unconstrained"
"""The method whose new score is the reference for all others."""

EQUIVALENT_METHODS = {"head_frozen": "unconstrained"}
"""Methods whose results are bit-identical to those of another, and which are not run again. The new data has no labels for
the protected head, so freezing it changes nothing; a test compares both."""

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
"""One scenario of each kind for the costly methods, including all scenarios of a quick run."""
ABLATION_SCENARIOS = frozenset(
    {
        "hwu64_to_restaurant8k_ner",
        "hwu64_new_scenarios_cls",
        "small_snips_to_chatbot_ner",
        "small_hwu64_to_clinc_banking_cls",
    }
)
"""One scenario for each head with much data, and one with little."""


def runs_on(method: str, scenario: str, *, again: bool = False) -> bool:
    """Whether a method runs on a scenario, with the first seed or, if *again*, with further seeds."""
    if method in ABLATIONS:
        return scenario in ABLATION_SCENARIOS and not again
    return method not in COSTLY or scenario in COSTLY_SCENARIOS


def load_method(name: str):  # noqa: ANN201 -- a Method; naming the type would import torch.
    """Return a method by name."""
    kind = "classic" if name in CLASSIC_METHODS else "twofold"
    return import_module(f"benchmarks.adaptation.{kind}_methods").METHODS[name]
