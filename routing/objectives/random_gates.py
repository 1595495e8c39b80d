"""random: each token runs each routable layer with a fixed probability, in training and in evaluation (a control)."""

from __future__ import annotations

import torch

from routing.models.config_fields import config_with
from routing.objectives.end_to_end import TrainingStep


def loss(step: TrainingStep) -> dict[str, torch.Tensor]:
    # The gates hash the seed, so other ones are drawn in each step, and the same ones by a resumed run.
    with config_with(step.model, random_seed=step.number + 1):
        losses = step.language_losses(step.logits())
    return losses | {"loss": losses["quality"]}


def fields(arguments, depth: int) -> dict:
    return {"run_probability": arguments.run_probability}
