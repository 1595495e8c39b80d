"""The knob of a routed checkpoint: the one config field that moves how many layers its router runs, and its range."""

from __future__ import annotations

import math
from dataclasses import dataclass

from train_models.router_kinds import kind_of

BIASES = (-10.0, 10.0)  # Logits of routers are of order 1 to 10.
# Rewards a layer, the range in which `routing.evaluation.calibration` looks for a promise.
COSTS = (-0.05, 0.1)
AS_ROUTER_SAYS = -1  # of pruned layers


@dataclass(frozen=True)
class Knob:
    """A setting that a person may turn.

    Attributes:
        field: of the config.
        words: what it is, and where it turns to.
        low, high, step: its range, for a slider.
        value: what the checkpoint has now.
    """

    field: str
    words: str
    low: float
    high: float
    step: float
    value: float


def knob_of(config) -> Knob | None:
    """The knob of a config, or of one as a dict; None where no number moves how many layers run.

    A checkpoint with a route of its own for all inputs has none, nor have a random router and a hybrid.
    """
    config = config if isinstance(config, dict) else config.to_dict()
    kind = kind_of(config)
    if config.get("fixed_route") or not kind.learned or kind.budget is None:
        return None
    bias = config.get("route_bias", 0.0)
    if config.get("router") == "query":
        own = config.get("pruned_layers")
        words = f"layers to prune for every prompt; {AS_ROUTER_SAYS}: as many as the router says"
        depth = config["num_hidden_layers"]
        return Knob("pruned_layers", words, AS_ROUTER_SAYS, depth, 1, AS_ROUTER_SAYS if own is None else own)
    if kind.budget == "cost":
        words = "the reward that a layer must bring to be run: above 0 fewer layers run"
        return _wide_enough("cost", words, *COSTS, 0.001, config.get("cost", 0.0) - bias)
    words = "added to the router's logits for each run of a layer: above 0 more layers run"
    return _wide_enough("route_bias", words, *BIASES, 0.1, bias)


def _wide_enough(field: str, words: str, low: float, high: float, step: float, value: float) -> Knob:
    """A knob whose range holds its value."""
    return Knob(field, words, min(low, value), max(high, value), step, value)


def fields_at(knob: Knob, value: float) -> dict:
    """Config fields of a setting; those that count together with it are set along."""
    if knob.field == "pruned_layers":
        return {"pruned_layers": None if value == AS_ROUTER_SAYS else int(value)}
    return {"cost": value, "route_bias": 0.0} if knob.field == "cost" else {"route_bias": value}


def knob_problems(knob: Knob | None, router: str, value: float) -> list[str]:
    """What is wrong with `--budget VALUE` for a router."""
    if knob is None:
        return [f"--budget {value:g}: the router {router!r} has no number that moves how many layers run; leave it out"]
    if not math.isfinite(value):
        return [f"--budget {value:g} must be a finite number"]
    whole = knob.field == "pruned_layers"
    if whole and not (value == int(value) and knob.low <= value <= knob.high):
        return [f"--budget {value:g}: {knob.words}; give a whole number from {knob.low:g} to {knob.high:g}"]
    return []
