"""Tiny models with a router of every kind, and a hybrid, for tests of what shows their routes."""

from __future__ import annotations

import torch
from transformers import BertConfig

from routing.models.families import routed_class
from train_models.configuration_gdn_hybrid import GdnHybridConfig
from train_models.modeling_gdn_hybrid import GdnHybridForCausalLM

LAYERS = 5
MENU = [[1] * 5, [1, 1, 0, 1, 1], [1, 1, 2, 0, 0]]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
ENCODER = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "initializer_range": 0.5,
}  # fmt: skip
# kind of router -> config fields beside it.
FIELDS = {
    "per_layer": {},
    "embedding": {"kept_layers": 2, "router_sizes": [8]},
    "prefix": {"kept_layers": 2, "router_sizes": [8]},
    "prefix_token": {"kept_layers": 2, "router_sizes": [8], "skip_action": "adapter", "adapter_size": 4},
    "random_token": {"kept_layers": 2, "run_probability": 0.5},
    "query": {},
    "menu": {"kept_layers": 2, "menu": MENU, "router_reads": [1, 2], "cost": 0.01, "caution": 0.5},
    "none": {"fixed_route": [1, 2, 0, 1, 1]},
}


def routed(base, tokenizer, kind: str, **fields):
    """A model of the family of a base with random routers of a kind, in eval mode."""
    own = FIELDS[kind] | fields
    if kind == "query":
        own = own | {"query_encoder": BertConfig(vocab_size=len(tokenizer), **ENCODER).to_diff_dict()}
    model = routed_class("llama").from_pretrained(base, router=kind, **own).eval()
    model.model.untold = False
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in [*model.model.routers.parameters(), *model.model.adapters.parameters()]:
            parameter.normal_(0.0, 0.5)
        if kind == "menu":
            model.model.routers.errors.copy_(torch.tensor([0.0, 0.01, 0.02]))
            model.model.routers.scale.fill_(1.0)
            model.model.routers.linears[0].weight.mul_(0.00002)  # So that costs decide too.
            model.model.routers.linears[0].bias.copy_(torch.tensor([0.5, 0.48, 0.4]))
    if kind == "query":
        model.model.routers.tokenizers = tokenizer, tokenizer
    return model


def hybrid(tokenizer, **fields):
    """A tiny hybrid: blocks gdn, routed, routed, softmax unless told otherwise."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.5}
    return GdnHybridForCausalLM(GdnHybridConfig(vocab_size=len(tokenizer), **small, **fields)).eval()
