"""From the normalised last states of a model to its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from train_models.offloading import weight_of


@dataclass(frozen=True)
class Head:
    """A linear map without bias, and what some families do with its outputs.

    Attributes:
        linear: from states [..., D] to [..., V].
        scaling: what its outputs are divided by (Granite).
        softcap: c of c tanh(x / c), which they then go through (Gemma); None: they do not.
    """

    linear: nn.Module
    scaling: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: nn.Module, linear: nn.Module | None = None) -> Head:
        """Of a ...ForCausalLM, or another linear map in its place."""
        config = model.config
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(linear or model.lm_head, getattr(config, "logits_scaling", 1.0), softcap)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Logits, in the operations of the stock models."""
        logits = self.linear(states)
        if self.scaling != 1:
            logits = logits / self.scaling
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def pulled_back(self, slopes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The gradient of states [N, D], of slopes [N, V] that are the gradient of logits."""
        if self.softcap is not None:
            slopes = slopes * (1 - (logits / self.softcap) ** 2)
        return (slopes / self.scaling).to(self.linear.weight.dtype) @ weight_of(self.linear)
