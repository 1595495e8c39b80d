"""What an objective that trains end to end gets in each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from routing.objectives.losses import cross_entropy, distillation
from routing.tasks.sequences import TextBatch


@dataclass
class TrainingStep:
    """A batch and what is needed for its loss.

    Attributes:
        model: a routed ...ForCausalLM, adapters on.
        batch: rows of tokens.
        arguments: EndToEndArguments.
        temperature: tau of the relaxation.
        number: of the step, for random numbers that a resumed run draws alike.
        teacher: function without arguments: logits [B, T, V] of the base at full depth, without gradient.
        memory: tensors that an objective keeps from step to step; saved with the training state.
    """

    model: torch.nn.Module
    batch: TextBatch
    arguments: object
    temperature: float
    number: int
    teacher: Callable[[], torch.Tensor]
    memory: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def routable(self) -> int:
        config = self.model.config
        return config.num_hidden_layers - config.kept_layers

    def logits(self, **kwargs) -> torch.Tensor:
        """[B, T, V] of the batch; keywords as in `RoutedModel.forward`."""
        batch = self.batch
        return self.model(
            batch.ids, attention_mask=batch.mask, prompt_lengths=batch.prompt_lengths, use_cache=False, **kwargs
        ).logits

    def same_route(self, gates: torch.Tensor) -> torch.LongTensor:
        """Routes [B, L] that run the first K layers, and of the others those of gates [R], in all rows."""
        kept = torch.ones(self.model.config.kept_layers, dtype=torch.long)
        return torch.cat([kept, gates.long().cpu()]).expand(len(self.batch.ids), -1)

    def language_losses(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """alpha CE + (1 - alpha) KD under `quality`, and both alone; without a teacher pass where alpha is 1."""
        arguments, batch = self.arguments, self.batch
        losses = {"ce_loss": cross_entropy(logits, batch.targets, batch.counted)}
        losses["quality"] = arguments.ce_weight * losses["ce_loss"]
        if arguments.ce_weight < 1:
            heat = arguments.kd_temperature
            losses["kd_loss"] = distillation(logits, self.teacher(), batch.counted, heat)
            losses["quality"] = losses["quality"] + (1 - arguments.ce_weight) * losses["kd_loss"]
        return losses
