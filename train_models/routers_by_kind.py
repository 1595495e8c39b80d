"""`config.router` -> what makes its routers and how they decide."""

from __future__ import annotations

from torch import nn

from .global_routers import GlobalRouter
from .global_routing import GateDecision
from .layer_decision import decide_by_layer
from .menu_router import MenuRouter, decide_by_value
from .query_router import QueryRouter, decide_by_text
from .router_kinds import LEARNED
from .routers import RouterBlock


def _one_a_layer(config) -> nn.ModuleList:
    blocks = (RouterBlock(config.hidden_size, config.router_hidden_size) for _ in range(config.num_hidden_layers))
    return nn.ModuleList(blocks)


def _no_weights(config) -> nn.ModuleList:
    return nn.ModuleList()


# name -> (function of the config that makes the module, decider: see decisions.py; None: there is nothing to decide)
ROUTERS = {
    "per_layer": (_one_a_layer, decide_by_layer),
    **dict.fromkeys(LEARNED, (GlobalRouter.of, GateDecision)),
    "random_token": (_no_weights, GateDecision),
    "query": (QueryRouter, decide_by_text),
    "menu": (MenuRouter.of, decide_by_value),
    "none": (_no_weights, None),
}


def make_routers(config) -> nn.Module:
    """The routers that a config asks for."""
    return ROUTERS[config.router][0](config)


def decider(config):
    """Function (routers, prompt, config) -> decision."""
    return ROUTERS[config.router][1]
