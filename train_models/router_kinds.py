"""One row a kind of router: what the model, its config and the toolkit ask about it. Imports nothing.

A new kind is a row here, and one in routers_by_kind.py that says what makes it and how it decides.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RouterKind:
    """One row.

    Attributes:
        decides_for: input (one route a row), token (one a token), or nothing.
        by_layer: whether each layer has a router of its own; else one decides for all.
        learned: whether it has weights.
        keeps_layers: whether it always runs the first `kept_layers`.
        has_menu: whether it chooses among the paths of `config.menu`.
        budget: config field that moves how many layers run; None: nothing does.
    """

    decides_for: str
    by_layer: bool = False
    learned: bool = True
    keeps_layers: bool = False
    has_menu: bool = False
    budget: str | None = "route_bias"


KINDS: dict[str, RouterKind] = {
    "per_layer": RouterKind("input", by_layer=True),
    "embedding": RouterKind("input", keeps_layers=True),
    "prefix": RouterKind("input", keeps_layers=True),
    "prefix_token": RouterKind("token", keeps_layers=True),
    "random_token": RouterKind("token", learned=False, keeps_layers=True, budget=None),
    "query": RouterKind("input"),
    "menu": RouterKind("input", keeps_layers=True, has_menu=True, budget="cost"),
    "none": RouterKind("nothing", learned=False, budget=None),
}
# Routers with one decision for all layers, on states of the prompt or of a token.
GLOBAL = tuple(name for name, kind in KINDS.items() if kind.keeps_layers and not kind.has_menu)
LEARNED = tuple(name for name in GLOBAL if KINDS[name].learned)
TOKEN_ROUTERS = tuple(name for name, kind in KINDS.items() if kind.decides_for == "token")


def kind_of(config) -> RouterKind:
    """The row of a config, or of one as a dict. Without the field routers of layers are meant; models whose routers
    choose something else than layers (hybrids) have the row of none."""
    name = config.get("router", "per_layer") if isinstance(config, dict) else getattr(config, "router", "per_layer")
    return KINDS.get(name, KINDS["none"])
