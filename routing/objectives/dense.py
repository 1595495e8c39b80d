"""dense: the adapters alone, at full depth. The control that tells what training on the corpus does by itself."""

from __future__ import annotations

import torch

from routing.objectives.end_to_end import TrainingStep


def loss(step: TrainingStep) -> dict[str, torch.Tensor]:
    losses = step.language_losses(step.logits())
    return losses | {"loss": losses["quality"]}
