"""How much arithmetic a request takes along a route: an estimate from shapes, so that it can be stated beside times.

Counted, at 2 operations a multiplication and addition: matrices of the layers that run, products of queries, keys and
values, logits, routers, adapters of skipped layers. Left out: norms, rotary embeddings, softmax, activations, padding.
"""

from __future__ import annotations

from torch import nn

from routing.evaluation.lm import Row
from train_models.router_kinds import kind_of


class Flops:
    """Estimates for one model.

    Args:
        model: a `...ForCausalLM` of transformers, routed or not.
        all_logits: whether logits are computed for all tokens, as lm-eval does to score a continuation, or for the
            last token of the prompt and the generated ones.
    """

    def __init__(self, model, all_logits: bool):
        config = model.config
        self.layers = [_of_layer(layer) for layer in model.model.layers]  # a token
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.attention = 4 * config.num_attention_heads * head_size  # a query and key
        self.logits = 2 * config.hidden_size * config.vocab_size  # a token
        attention = model.model.layers[0].self_attn
        fused = getattr(attention, "qkv_proj", None)
        key_value = _of_linears(nn.ModuleList([attention.k_proj, attention.v_proj] if fused is None else [fused]))
        kind = kind_of(config)
        # A token that skips a layer gives keys and values there all the same.
        self.skipped = key_value if kind.decides_for == "token" else 0
        self.by_token = kind.decides_for == "token"
        linears = getattr(getattr(model.model, "routers", None), "linears", None)
        self.per_layer = kind.by_layer
        self.router = 2 * sum(part.weight.numel() for part in linears or ())
        # The encoder reads about as many tokens as the prompt has.
        self.encoder = _of_linears(getattr(getattr(model.model, "routers", None), "encoder", None))
        self.stand_in = _of_linears(next(iter(getattr(model.model, "stand_ins", ())), None))
        self.depth, self.hidden_size, self.all_logits = config.num_hidden_layers, config.hidden_size, all_logits
        self.windows, self.width = getattr(config, "num_windows", 0), getattr(config, "router_hidden_size", 0)

    def of(self, row: Row, decided: bool) -> float:
        """Operations of a request.

        Args:
            decided: whether routers decided its route.
        """
        # The last generated token is not read any more.
        tokens = row.prompt_tokens + (row.other_tokens if self.all_logits else max(row.other_tokens - 1, 0))
        route = (1,) * self.depth if row.route is None else row.route
        executed = sum(route)
        layers = tokens * sum(count * own for count, own in zip(route, self.layers, strict=True))
        layers += executed * tokens * (tokens + 1) / 2 * self.attention
        skipped = self.depth - executed if row.route is None else sum(max(1 - count, 0) for count in row.route)
        layers += skipped * tokens * (self.stand_in + (self.skipped if decided else 0))
        logits = self.logits * (tokens if self.all_logits else max(row.other_tokens, 1))
        pooled = 2 * row.prompt_tokens * self.windows * self.hidden_size
        mlp = 2 * self.windows * self.hidden_size * self.width
        routers = self.depth * (pooled + mlp) if self.per_layer else self.router * (tokens if self.by_token else 1)
        routers += row.prompt_tokens * self.encoder
        return layers + logits + (routers if decided else 0)


def _of_layer(layer: nn.Module) -> int:
    """Operations a token of a decoder layer's matrices; of experts, those that a token is sent to."""
    experts = getattr(layer.mlp, "experts", None)
    if experts is None:
        return _of_linears(layer)
    gate = layer.mlp.gate
    each = experts.gate_up_proj[0].numel() + experts.down_proj[0].numel()
    return _of_linears(layer) + 2 * (gate.weight.numel() + gate.top_k * each)


def _of_linears(module: nn.Module | None) -> int:
    """Operations a token of all linear maps of a module; 0 without one."""
    parts = () if module is None else module.modules()
    return 2 * sum(part.weight.numel() for part in parts if isinstance(part, nn.Linear))
