"""Objectives by name, those that train end to end and those on preferences; a new one is one file and one row.

Their losses are imported when they are asked for, since arguments are read without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Objective:
    """One way to train end to end.

    Attributes:
        module: of this room, with `loss` and maybe `fields`.
        routers: kinds of routers it trains or uses; the first is the default.
        ce_weight: published alpha.
        layer_penalty: published lambda.
        trains_base: whether there is nothing to train without adapters.
    """

    module: str
    routers: tuple[str, ...]
    ce_weight: float = 1.0
    layer_penalty: float = 0.0
    trains_base: bool = False

    @property
    def loss(self) -> Callable:
        """Maps a TrainingStep to losses: `loss`, which has the gradient, parts of it for the log, and maybe
        `run_shares` [R], how often each routable layer would run without noise."""
        return import_module(f"routing.objectives.{self.module}").loss

    def fields(self, arguments, depth: int) -> dict:
        """Config fields of the model, from EndToEndArguments and the number of layers."""
        own = getattr(import_module(f"routing.objectives.{self.module}"), "fields", None)
        return own(arguments, depth) if own else {}


@dataclass(frozen=True)
class Preference:
    """One way to learn from explored layer sets.

    Attributes:
        name: of its loss in `routing.objectives.preference`.
        from_pairs: whether it learns from pairs, else from best sets.
    """

    name: str
    from_pairs: bool

    @property
    def loss(self) -> Callable:
        """Maps a PreferenceStep to a loss."""
        return import_module("routing.objectives.preference").LOSSES[self.name]


END_TO_END: dict[str, Objective] = {
    "dense": Objective("dense", routers=("none",), trains_base=True),
    # The control that tells what a router must beat, not in the published system: which layers all inputs skip is
    # decided before training, see routing.training.end_to_end.static.
    "static": Objective("dense", routers=("none",), trains_base=True),
    "stochastic_depth": Objective("stochastic_depth", routers=("none",), trains_base=True),
    "random": Objective("random_gates", routers=("random_token",), trains_base=True),
    "reinforce": Objective("reinforce", routers=("embedding",), layer_penalty=0.05),
    "gumbel": Objective("gumbel", routers=("prefix_token", "prefix"), ce_weight=0.5),
}

PREFERENCE: dict[str, Preference] = {
    "fbc": Preference("fbc", from_pairs=False),
    "dpo": Preference("dpo", from_pairs=True),
    "orpo": Preference("orpo", from_pairs=True),
}
TOP_K = ("conditional", "sinkhorn", "gumbel")  # probability of a layer set, see routing.objectives.set_probability
