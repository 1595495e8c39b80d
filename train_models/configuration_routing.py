"""Config fields that every routed family shares.

Each family has its own `model_type` (routed_llama, ...): under the stock one, a user who forgets
trust_remote_code would silently load and score the dense model.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import transformers

from .router_kinds import KINDS

ROUTERS = tuple(KINDS)
SKIP_ACTIONS = ("identity", "adapter")
MADE_FOR = "5.23"  # of transformers, whose forward this code mirrors


def check_transformers(found: str) -> None:
    """Warn where the installed transformers is another version than the code was made for."""
    if not f"{found}.".startswith(f"{MADE_FOR}."):
        warnings.warn(
            f"the code of this routed model was made for transformers {MADE_FOR}, and {found} is installed: it may "
            f"fail to load, or compute something else. Install transformers=={MADE_FOR}.0.",
            stacklevel=2,
        )


check_transformers(transformers.__version__)  # Here, as this file is imported before those that may fail.


def _whole(value, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_route(route, depth: int) -> bool:
    return isinstance(route, (list, tuple)) and len(route) == depth and all(count in (0, 1, 2) for count in route)


@dataclass(kw_only=True, repr=False)
class RoutingFields:
    """Mixin for config classes.

    Attributes:
        num_windows: windows W of prompt tokens that are pooled for the routers.
        router_hidden_size: width of each router's hidden layer.
        route_bias: added to a router's logits once for each time that the layer would run: above 0 more layers run,
            below 0 fewer. A global router's threshold: it runs a layer where the logit is above -route_bias. A query
            router takes it from the logit of the share to prune, a menu router from `cost`. Set by `dlr calibrate`.
        is_static_routing: run every layer once and no router (checks that the base loads right).
        skip_action: what a skipped layer does to the state: identity, or adapter (see layer_adapters.py).
        adapter_size: bottleneck of the adapters.
        router: per_layer (Dr.LLM), embedding, prefix, prefix_token, random_token (see global_routers.py), query (see
            query_router.py), menu (see menu_router.py), or none.
        kept_layers: K, how many first layers a global or menu router always runs.
        router_sizes: widths of the hidden layers of a global router (None: as published) or a menu router (None: none).
        menu: of a menu router, its paths as counts of each layer; the first is the full one.
        router_reads: of a menu router, behind how many first layers it reads states, 0 (embeddings) to `kept_layers`.
        cost: what a layer costs, taken once for each time that it would run: by a menu router from the estimated
            reward of each path, by routers of layers from their logits. Above 0 fewer layers run.
        caution: how many standard errors a menu router's path must be better by than the full one.
        router_bias_init: what the last biases of a global router start from; above 0 it starts by running layers.
        sink_tokens: of routers that decide for each token, how many first tokens of each row run every layer. Others
            attend to them whatever they say (attention sinks, Xiao et al., arXiv 2309.17453), so much hangs on them.
        run_probability, random_seed: of `random_token`; the seed also of a query router's `sample_ratio`.
        query_encoder: of a query router, fields of its encoder's BertConfig.
        query_max_tokens: how many tokens of a query the encoder reads, from its end.
        pruned_layers: how many layers a query router prunes for every query, the ones of highest score; None: as many
            as it says itself.
        sample_ratio: draw the share to prune from the query router's normal distribution instead of taking its mean.
        fixed_route: counts of each layer to run for every input; None: the router decides, and without any all run.
        residual_scale: what the change of each layer to the state is multiplied by, as the expectation of layers that
            were dropped in training; None: by 1.
        trained_num_windows: the W that the saved routers were trained with, set in every trained checkpoint; None
            before training.
        base_model: for checkpoints without base weights: hub id or folder of the base.
        base_revision: its commit on the hub.
        base_sha256: for a base in a folder: SHA-256 of each of its weight files.
    """

    num_windows: int = 8
    router_hidden_size: int = 128
    route_bias: float = 0.0
    is_static_routing: bool = False
    skip_action: str = "identity"
    adapter_size: int = 64
    router: str = "per_layer"
    kept_layers: int = 4
    router_sizes: list | None = None
    router_bias_init: float = 0.0
    sink_tokens: int = 0
    run_probability: float = 0.6
    random_seed: int = 0
    query_encoder: dict | None = None
    query_max_tokens: int = 256
    pruned_layers: int | None = None
    sample_ratio: bool = False
    menu: list | None = None
    router_reads: list | None = None
    cost: float = 0.0
    caution: float = 0.0
    fixed_route: list | None = None
    residual_scale: list | None = None
    trained_num_windows: int | None = None
    base_model: str | None = None
    base_revision: str | None = None
    base_sha256: dict | None = None

    def check_routing(self) -> None:
        """Raise a ValueError that names every wrong routing field."""
        problems = []
        for name in ("num_windows", "router_hidden_size", "adapter_size", "query_max_tokens"):
            if not _whole(getattr(self, name), 1):
                problems.append(f"{name} must be a whole number >= 1, got {getattr(self, name)!r}")
        for name in ("route_bias", "router_bias_init", "cost"):
            if not _finite(getattr(self, name)):
                problems.append(f"{name} must be a finite number, got {getattr(self, name)!r}")
        for name in ("is_static_routing", "sample_ratio"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.skip_action not in SKIP_ACTIONS:
            problems.append(f"skip_action must be one of {', '.join(SKIP_ACTIONS)}, got {self.skip_action!r}")
        if self.trained_num_windows not in (None, self.num_windows):
            problems.append(
                f"num_windows={self.num_windows!r} contradicts the checkpoint, whose routers were trained with "
                f"num_windows={self.trained_num_windows}; leave the argument out or give {self.trained_num_windows}"
            )
        problems += self._global_problems() + self._query_problems() + self._menu_problems()
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def _menu_problems(self) -> list[str]:
        if not (_finite(self.caution) and self.caution >= 0):
            return [f"caution must be a number >= 0, got {self.caution!r}"]
        if self.router not in KINDS or not KINDS[self.router].has_menu:
            return []
        depth, kept, found = self.num_hidden_layers, self.kept_layers, []
        if not (_whole(kept, 0) and kept < depth):
            found.append(f"kept_layers must be a whole number from 0 to {depth - 1}, got {kept!r}")
        elif not self.router_reads or not all(_whole(read, 0) and read <= kept for read in self.router_reads):
            found.append(
                f"router_reads must be numbers of layers from 0 to {kept}, kept_layers, got {self.router_reads!r}"
            )
        elif len(set(self.router_reads)) < len(self.router_reads):
            found.append(f"router_reads must name each depth once, got {self.router_reads!r}")
        if not self.menu or not all(_is_route(route, depth) for route in self.menu):
            return [*found, f"menu must hold routes of {depth} counts in 0, 1, 2, got {self.menu!r}"]
        if list(self.menu[0]) != [1] * depth:
            found.append(f"menu must begin with the full path, every layer once, got {self.menu[0]!r}")
        if len(set(map(tuple, self.menu))) < len(self.menu):
            found.append("menu holds a path twice; leave one out")
        if _whole(kept, 0) and any(count != 1 for route in self.menu for count in route[:kept]):
            found.append(f"kept_layers={kept}: a path of the menu does not run each of the first {kept} layers once")
        return found

    def _query_problems(self) -> list[str]:
        depth, found = self.num_hidden_layers, []
        if self.pruned_layers is not None and not (_whole(self.pruned_layers, 0) and self.pruned_layers <= depth):
            found.append(f"pruned_layers must be a whole number from 0 to {depth}, got {self.pruned_layers!r}")
        if self.router == "query" and not isinstance(self.query_encoder, dict):
            found.append(f"query_encoder must hold the fields of the encoder's config, got {self.query_encoder!r}")
        elif self.router == "query":
            most = self.query_encoder.get("max_position_embeddings", 512)
            if not (_whole(self.query_max_tokens, 3) and self.query_max_tokens <= most):
                found.append(f"query_max_tokens must be a whole number from 3 to {most}, got {self.query_max_tokens!r}")
        return found

    def _global_problems(self) -> list[str]:
        depth, found = self.num_hidden_layers, []
        if self.router not in ROUTERS:
            found.append(f"router must be one of {', '.join(ROUTERS)}, got {self.router!r}")
        kind = KINDS.get(self.router)
        if (
            kind
            and kind.keeps_layers
            and not kind.has_menu
            and not (_whole(self.kept_layers, 1) and self.kept_layers < depth)
        ):
            found.append(
                f"kept_layers must be a whole number from 1 to {depth - 1}, one less than the model has layers, got "
                f"{self.kept_layers!r}"
            )
        if self.router_sizes is not None and not all(_whole(size, 1) for size in self.router_sizes):
            found.append(f"router_sizes must be whole numbers >= 1, got {self.router_sizes!r}")
        if not (_finite(self.run_probability) and 0 <= self.run_probability <= 1):
            found.append(f"run_probability must lie between 0 and 1, got {self.run_probability!r}")
        for name in ("random_seed", "sink_tokens"):
            if not _whole(getattr(self, name), 0):
                found.append(f"{name} must be a whole number >= 0, got {getattr(self, name)!r}")
        if self.fixed_route is not None and not _is_route(self.fixed_route, depth):
            found.append(f"fixed_route must be {depth} counts in 0, 1, 2, got {self.fixed_route!r}")
        if self.residual_scale is not None and kind and kind.decides_for == "token":
            found.append(f"residual_scale does not go with router={self.router!r}, which runs a layer for some tokens")
        if self.residual_scale is not None and not (
            len(self.residual_scale) == depth and all(map(_finite, self.residual_scale))
        ):
            found.append(f"residual_scale must be {depth} finite numbers, got {self.residual_scale!r}")
        return found

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Accepts the config of a base model of the family as well; refuses other families by name."""
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        family = cls.model_type.removeprefix("routed_")
        found = config.get("model_type", family)
        if found not in (family, cls.model_type):
            raise ValueError(
                f"{pretrained_model_name_or_path} is a model of type {found!r}; {cls.__name__} takes "
                f"{family!r} or {cls.model_type!r}. Use the class of its own family."
            )
        return config | {"model_type": cls.model_type}, kwargs
