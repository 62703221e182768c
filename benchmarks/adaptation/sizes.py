"""How much of each scenario a run of the benchmark takes."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.adaptation.scenarios import Caps

STANDARD = Caps(train_first=1500, dev_first=500, eval_first=1000)
WHOLE = Caps()
QUICK_SCENARIOS = ("snips_new_domains_ner", "small_snips_to_chatbot_ner", "conflict_hwu64_actions")
NAMES = ("standard", "full", "quick")


@dataclass(frozen=True, slots=True)
class Size:
    """Bound the lines that a base and a step take. *scenarios* are those that are run; None means all.

    *base_epochs* is None where the trainer chooses, as it does for every figure that is published.
    """

    name: str
    base: Caps
    step: Caps
    scenarios: tuple[str, ...] | None = None
    base_epochs: int | None = None


def choose_size(name: str, quick: Caps, *, first: int | None = None) -> Size:
    """Return a size by name; *quick* are the scenario file's own caps.

    With *first*, every list is cut to so many lines and a base trains for one epoch: a run that shows that the harness
    works, and nothing else.
    """
    if first is not None:
        caps = Caps(train_first=first, dev_first=first, eval_first=first)
        return Size(f"first-{first}", caps, caps, base_epochs=1)
    match name:
        case "standard":
            return Size(name, WHOLE, STANDARD)
        case "full":
            return Size(name, WHOLE, WHOLE)
        case "quick":
            return Size(name, quick, quick, QUICK_SCENARIOS)
        case _:
            raise ValueError(f"size {name!r} is not known; write one of {', '.join(NAMES)}")
