"""stochastic_depth: in each step, each routable layer is left out of the whole batch with a probability.

Layers are really skipped in training. Evaluation runs them all, with --residual_scaling each at the share of its steps:
x + (1 - p)(F(x) - x). Source: Huang et al., arXiv 1603.09382; DLR uses p = 0.5, or p that rises linearly to it.
"""

from __future__ import annotations

import torch

from routing.objectives.end_to_end import TrainingStep


def drop_probabilities(routable: int, probability: float, schedule: str) -> list[float]:
    """Probability of each routable layer to be dropped; linear: rising with depth to `probability`."""
    if schedule == "uniform":
        return [probability] * routable
    return [probability * (layer + 1) / routable for layer in range(routable)]


def loss(step: TrainingStep) -> dict[str, torch.Tensor]:
    chances = drop_probabilities(step.routable, step.arguments.drop_probability, step.arguments.drop_schedule)
    gates = torch.rand(step.routable) >= torch.tensor(chances)
    losses = step.language_losses(step.logits(routes=step.same_route(gates)))
    return losses | {"loss": losses["quality"]}


def fields(arguments, depth: int) -> dict:
    if not arguments.residual_scaling:
        return {}
    chances = drop_probabilities(depth - arguments.kept_layers, arguments.drop_probability, arguments.drop_schedule)
    return {"residual_scale": [1.0] * arguments.kept_layers + [1 - chance for chance in chances]}
