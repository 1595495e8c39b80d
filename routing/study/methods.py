"""Methods of a study, one row each: what makes it, where its routes come from, what moves its number of layers.

A new method is a row here and, where something is trained for it, a row of `TRAINED` in stages.py. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        title: as tables and pictures call it.
        path: where its one path for all questions comes from: full, menu (the best of the menu), influence, cut (the
            best block of consecutive layers), healed (the path that its weights were trained along), random (another
            one for each question), hindsight (the shortest right one of the menu); "" where a router decides.
        made_by: the stages that make it, in their order; `{task}` stands for each task, `{skips}` for the number of
            layers that its budget leaves out.
        weights: the stage whose checkpoint answers; "" for the base, with the seed's adapters.
        skip_action: adapter or identity: what stands in for skipped layers.
        knob: config field that brings a router to a budget: cost, route_bias or pruned_layers.
        budgets: whether it has rows at the budgets of the plan.
        free: whether it has a row without a budget: the full path, or what a router does by itself.
        text: whether it is held against the others on text, by perplexity.
    """

    title: str
    path: str = ""
    made_by: tuple[str, ...] = ()
    weights: str = ""
    skip_action: str = "identity"
    knob: str = ""
    budgets: bool = True
    free: bool = False
    text: bool = False

    @property
    def is_static(self) -> bool:
        """Whether all questions take one path, so that it is a candidate for the best static path."""
        return self.path in ("menu", "influence", "cut", "healed")


_TABLES = ("adapters", "menu-{task}", "table-{task}")
_TEXT = {"budgets": True, "text": True}


def _searched(title: str, name: str, labels: str) -> Method:
    return Method(title, made_by=(f"{labels}-{{task}}", name), knob="route_bias", free=True, weights=name)


def _query(title: str, name: str) -> Method:
    made_by = ("adapters", "explored-{task}", name)
    return Method(title, made_by=made_by, skip_action="adapter", knob="pruned_layers", free=True, weights=name)


METHODS: dict[str, Method] = {
    "full": Method("full model", "full", budgets=False, free=True, text=True),
    "lora": Method("LoRA at full depth", "full", ("corpus", "lora"), "lora", budgets=False, free=True, text=True),
    "healed": Method(
        "static path, healed with LoRA", "healed", (*_TABLES, "weighed-{task}", "paths", "corpus", "healed-{skips}"),
        "healed-{skips}", text=True,
    ),
    "static": Method("static path, closed-form adapters", "menu", _TABLES, skip_action="adapter"),
    "influence": Method("block influence, closed-form adapters", "influence", ("adapters",), skip_action="adapter"),
    "shortgpt": Method("block influence, nothing in place (ShortGPT)", "influence"),
    "cut": Method("closed-form map at a cut of consecutive layers", "cut", ("adapters",), skip_action="adapter"),
    "random": Method("random layers, closed-form adapters", "random", ("adapters",), skip_action="adapter"),
    "dr_llm": _searched("Dr.LLM as published", "dr_llm", "searched"),
    "dr_llm_verified": _searched("Dr.LLM, verified labels", "dr_llm_verified", "verified"),
    "dr_llm_value": _searched("Dr.LLM, value labels", "dr_llm_value", "searched"),
    "value": Method(
        "menu router by value", made_by=(*_TABLES, "value"), weights="value", skip_action="adapter", knob="cost"
    ),
    "fbc": _query("query router, FBC", "fbc"),
    "dpo": _query("query router, DPO", "dpo"),
    "orpo": _query("query router, ORPO", "orpo"),
    "dlr_input": Method(
        "DLR by input", made_by=("corpus", "dlr_input"), weights="dlr_input", knob="route_bias", **_TEXT
    ),
    "dlr_token": Method(
        "DLR by token", made_by=("corpus", "dlr_token"), weights="dlr_token", knob="route_bias", **_TEXT
    ),
    "reinforce": Method(
        "REINFORCE", made_by=("corpus", "reinforce"), weights="reinforce", knob="route_bias", **_TEXT
    ),
    "stochastic_depth": Method(
        "stochastic depth", "menu", (*_TABLES, "corpus", "stochastic_depth"), "stochastic_depth", free=True, text=True
    ),
    "oracle": Method(
        "hindsight oracle (not a method)", "hindsight", _TABLES, skip_action="adapter", budgets=False, free=True
    ),
}  # fmt: skip
OWN_WEIGHTS = ("lora", "healed", "dlr_input", "dlr_token", "reinforce", "stochastic_depth")  # LoRA, merged
# Where validation chooses among trainings: those whose routes are asked of one set of weights, question by question.
GRIDS = tuple(name for name, method in METHODS.items() if method.knob and name != "dlr_token")
