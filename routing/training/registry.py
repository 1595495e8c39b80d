"""Training objectives by name: where their arguments and their run are, and what they make. Imports no torch.

A new objective is a room with `arguments.py` and `run.py`, and a row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Objective:
    """One row.

    Attributes:
        room: package with `arguments` and `run`, a function that returns the folder of the checkpoint.
        kind: name of the dataclass of its arguments.
        what: what comes out, in one line.
    """

    room: str
    kind: str
    what: str

    def arguments(self) -> type:
        return getattr(import_module(f"{self.room}.arguments"), self.kind)

    def run(self, arguments):
        return import_module(f"{self.room}.run").run(arguments)


def _of(room: str, kind: str, **objectives: str) -> dict[str, Objective]:
    return {name: Objective(f"routing.training.{room}", kind, what) for name, what in objectives.items()}


OBJECTIVES: dict[str, Objective] = {
    **_of("routers", "TrainArguments", supervised="Dr.LLM: routers of layers, from labelled paths (the default)"),
    **_of("value", "ValueArguments", value="routers that estimate what each path is worth, from all verdicts"),
    **_of("adapters", "AdapterArguments", adapters="adapters in the place of skipped layers"),
    **_of(
        "preferences",
        "PreferenceArguments",
        fbc="query router, from the best layer set of each question",
        dpo="query router, from pairs of layer sets (DPO)",
        orpo="query router, from pairs of layer sets (ORPO)",
    ),
    **_of(
        "end_to_end",
        "EndToEndArguments",
        gumbel="router of inputs or tokens, end to end on text (DLR)",
        reinforce="policy over layers, end to end on text",
        stochastic_depth="LoRA under layers left out at random",
        static="LoRA at a fixed smaller depth (a control)",
        dense="LoRA at full depth (a control)",
        random="each token runs each layer by chance (a control)",
    ),
    **_of("language_model", "LanguageModelArguments", lm="small language model whose blocks choose attention by token"),
}


def overview() -> str:
    """The objectives as lines of text."""
    width = max(map(len, OBJECTIVES))
    return "\n".join(f"  {name:<{width}}  {row.what}" for name, row in OBJECTIVES.items())
