"""The sizes of the benchmark: how many examples of each scenario are used."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.adaptation.scenarios import Caps

STANDARD = Caps(train_first=1500, dev_first=500, eval_first=1000)
UNLIMITED = Caps()
QUICK_SCENARIOS = ("snips_new_domains_ner", "small_snips_to_chatbot_ner", "conflict_hwu64_actions")
NAMES = ("standard", "full", "quick")


@dataclass(frozen=True, slots=True)
class Size:
    """Limit the examples of a base and of a step. *scenarios* are the scenarios to run; None means all.

    *base_epochs* None leaves the number of epochs to the trainer, as for every published figure.
    """

    name: str
    base: Caps
    step: Caps
    scenarios: tuple[str, ...] | None = None
    base_epochs: int | None = None


def choose_size(name: str, quick: Caps, *, first: int | None = None) -> Size:
    """Return a size by name; *quick* are the limits of the scenario file.

    With *first*, every list is cut to its first examples and a base trains for one epoch. Such a run only shows that the
    benchmark works.
    """
    if first is not None:
        caps = Caps(train_first=first, dev_first=first, eval_first=first)
        return Size(f"first-{first}", caps, caps, base_epochs=1)
    match name:
        case "standard":
            return Size(name, UNLIMITED, STANDARD)
        case "full":
            return Size(name, UNLIMITED, UNLIMITED)
        case "quick":
            return Size(name, quick, quick, QUICK_SCENARIOS)
        case _:
            raise ValueError(f"unknown size {name!r}; use one of {', '.join(NAMES)}")
