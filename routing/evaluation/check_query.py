"""The decision of a query router found the slow way: one text alone, no padding, layers ranked by hand."""

from __future__ import annotations

import math

import torch

from routing.search.routes import Route


@torch.inference_mode()
def plain_query_route(routed, prompt: list[int]) -> tuple[Route, float]:
    """The route of a prompt, and how near a tie it came: the least of the gap between the scores around the last
    pruned layer, and of the distance of the share to prune from where it would be rounded otherwise.

    Args:
        routed: a checkpoint with a query router.
        prompt: token ids.
    """
    config, router = routed.config, routed.model.routers
    own, inner = router.tokenizers
    text = own.decode(prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    ids = inner(text)["input_ids"]
    # Of a long text the last tokens count, between the two that a BERT puts around each text.
    ids = [ids[0], *ids[1:-1][-(config.query_max_tokens - 2) :], ids[-1]]
    states = router.encoder(torch.tensor([ids], device=routed.device)).last_hidden_state[0]
    scores = router.heads(states.mean(0, keepdim=True))
    depth = config.num_hidden_layers
    share = torch.sigmoid(scores.ratio[0] - config.route_bias).item() * depth
    count = min(max(round(share), 0), depth) if config.pruned_layers is None else config.pruned_layers
    order = sorted(range(depth), key=lambda layer: -scores.layers[0, layer].item())
    ranked = [scores.layers[0, layer].item() for layer in order]
    gap = ranked[count - 1] - ranked[count] if 0 < count < depth else math.inf
    rounding = abs(share - math.floor(share) - 0.5) if config.pruned_layers is None else math.inf
    pruned = set(order[:count])
    return tuple(int(layer not in pruned) for layer in range(depth)), min(gap, rounding)
