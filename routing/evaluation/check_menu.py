"""The decision of a menu router found the slow way: one prompt alone, stock layers, paths compared one by one."""

from __future__ import annotations

import torch

from routing.search.routes import Route


@torch.inference_mode()
def plain_menu_route(base, routed, prompt: list[int]) -> tuple[Route, float]:
    """The route of a prompt, and by how much it is worth more than the next one.

    Args:
        base: a stock model with the weights of the routed one.
        routed: a checkpoint with a menu router.
        prompt: token ids.
    """
    config, router = routed.config, routed.model.routers
    states = base.model(torch.tensor([prompt], device=base.device), output_hidden_states=True).hidden_states
    read = [states[depth][0].float() for depth in config.router_reads]
    features = torch.cat([part for state in read for part in (state.mean(0), state[-1])])
    hidden = (features.to(router.mean) - router.mean) / router.scale
    for number, linear in enumerate(router.linears):
        hidden = linear.weight @ (torch.nn.functional.gelu(hidden) if number else hidden) + linear.bias
    estimates = hidden.tolist() if len(router.linears) == 1 else hidden.sigmoid().tolist()
    errors, price = router.errors.tolist(), config.cost - config.route_bias
    worth = [
        estimate - price * sum(route) - (config.caution * error if error < float("inf") else error)
        for estimate, route, error in zip(estimates, config.menu, errors, strict=True)
    ]
    order = sorted(range(len(worth)), key=lambda path: (-worth[path], path))
    margin = worth[order[0]] - worth[order[1]] if len(order) > 1 else float("inf")
    return tuple(config.menu[order[0]]), margin
