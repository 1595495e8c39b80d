"""The decisions of a global router found the slow way: stock layers one by one, no cache, no batch, no gathering."""

from __future__ import annotations

import torch

from routing.models.config_fields import attention_windows
from routing.search.routes import Route
from train_models.decoder_parts import of_type, rotary_embeddings, scaled
from train_models.router_kinds import TOKEN_ROUTERS


def stock_twin(base, routed):
    """A stock model with the weights of a checkpoint, into which adapters were merged: `base`, changed in place."""
    own = {name: tensor for name, tensor in routed.state_dict().items() if ".routers." not in name}
    base.load_state_dict(own)
    return base


@torch.inference_mode()
def plain_global_route(stock, routed, prompt: list[int], tolerance: float) -> tuple[Route, list[float]]:
    """The route of a prompt, of a router for tokens the share of them that ran each layer; and by how much each share
    may be off, for decisions that hang on a near tie.

    Args:
        stock: a stock model with the weights of the routed one.
        routed: the checkpoint, whose router is asked.
        prompt: token ids.
        tolerance: logits nearer to 0 than this are a near tie. All are decided behind the first K layers, so one tie
            does not move another decision.
    """
    config, routers = routed.config, routed.model.routers
    hidden = scaled(stock.model, stock.model.embed_tokens(torch.tensor([prompt], device=stock.device)))
    positions = torch.arange(len(prompt), device=stock.device)[None]
    rotary, kinds = rotary_embeddings(stock.model, hidden, positions), getattr(stock.config, "layer_types", None)
    distance = positions.T - positions
    lowest = torch.finfo(stock.dtype).min
    logits = routers(hidden.float().mean(1)) if config.router == "embedding" else None
    gates = None
    for number, (layer, window) in enumerate(zip(stock.model.layers, attention_windows(stock.config), strict=True)):
        if number == config.kept_layers:
            if logits is None:
                logits = routers(hidden if config.router in TOKEN_ROUTERS else hidden.float().mean(1))
            logits = logits + config.route_bias
            gates = (logits > 0).expand(1, len(prompt), -1) if logits.ndim == 3 else (logits > 0)[:, None]
            if logits.ndim == 3:
                gates = gates | (positions < config.sink_tokens)[..., None]
        hidden_from = distance < 0
        if window is not None:
            hidden_from = hidden_from | (distance >= window)
        mask = torch.zeros_like(distance, dtype=stock.dtype).masked_fill(hidden_from, lowest)[None, None]
        turns = of_type(rotary, kinds, number)
        ran = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=turns)
        if gates is not None:
            other = routed.model.stand_ins[number](hidden) if len(routed.model.stand_ins) else hidden
            ran = torch.where(gates[..., number - config.kept_layers, None], ran, other)
        hidden = ran
    shares = gates.float().mean(1)[0].tolist()
    ties = (logits.abs() < tolerance).float().reshape(-1, logits.shape[-1]).mean(0).tolist()
    first = config.kept_layers
    return (1.0,) * first + tuple(shares), [0.0] * first + ties
