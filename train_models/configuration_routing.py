"""Config fields that every routed family shares.

Each family has its own `model_type` (routed_llama, ...): under the stock one, a user who forgets
trust_remote_code would silently load and score the dense model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(kw_only=True, repr=False)
class RoutingFields:
    """Mixin for config classes.

    Attributes:
        num_windows: windows W of prompt tokens that are pooled for the routers.
        router_hidden_size: width of each router's hidden layer.
        route_bias: added to a router's logits once for each time that the layer would run: above 0 more layers run,
            below 0 fewer. Set by `python -m routing.calibrate`.
        is_static_routing: run every layer once and no router (checks that the base loads right).
        trained_num_windows: the W that the saved routers were trained with; None before training.
        base_model: for checkpoints without base weights: hub id or folder of the base.
        base_revision: its commit on the hub.
        base_sha256: for a base in a folder: SHA-256 of each of its weight files.
    """

    num_windows: int = 8
    router_hidden_size: int = 128
    route_bias: float = 0.0
    is_static_routing: bool = False
    trained_num_windows: int | None = None
    base_model: str | None = None
    base_revision: str | None = None
    base_sha256: dict | None = None

    def check_routing(self) -> None:
        """Raise a ValueError that names every wrong routing field."""
        problems = []
        for name in ("num_windows", "router_hidden_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                problems.append(f"{name} must be a whole number >= 1, got {value!r}")
        number = isinstance(self.route_bias, (int, float)) and not isinstance(self.route_bias, bool)
        if not (number and math.isfinite(self.route_bias)):
            problems.append(f"route_bias must be a finite number, got {self.route_bias!r}")
        if not isinstance(self.is_static_routing, bool):
            problems.append(f"is_static_routing must be True or False, got {self.is_static_routing!r}")
        if self.trained_num_windows not in (None, self.num_windows):
            problems.append(
                f"num_windows={self.num_windows!r} contradicts the checkpoint, whose routers were trained with "
                f"num_windows={self.trained_num_windows}; leave the argument out or give {self.trained_num_windows}"
            )
        if problems:
            raise ValueError("; ".join(problems) + ".")

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
