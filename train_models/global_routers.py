"""Global routers: one decision for all routable layers at once, run or skip, where Dr.LLM decides layer by layer.

Source: DLR (see routing/objectives). The first K layers always run. Kinds:
- embedding: reads the mean raw embedding of the prompt, before any layer; Linear(D, D/2) - ReLU - Linear(D/2, R).
- prefix: reads the mean state behind the first K layers; Linear(D, D/2) - GELU - Linear(D/2, D/4) - GELU -
  Linear(D/4, R). One route a row.
- prefix_token: the same network on the state of each token. A route for each token.
- random_token: a control, no weights: each token runs each layer with a fixed probability.

Deviations: inputs are divided by their root mean square, since some states are hundreds of times larger than others;
at inference an `embedding` router reads one row where training reads the whole batch, so that a row's route does not
depend on its neighbours.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from .routers import RouterLinear


def hidden_sizes(kind: str, hidden_size: int) -> list[int]:
    """Published widths of a router's hidden layers."""
    return [hidden_size // 2] if kind == "embedding" else [hidden_size // 2, hidden_size // 4]


class GlobalRouter(nn.Module):
    """Logits z [..., R] of states [..., D]: a layer runs where z plus the route bias is above 0."""

    def __init__(self, kind: str, hidden_size: int, sizes: list[int], routable: int, bias_init: float):
        super().__init__()
        widths = [hidden_size, *sizes, routable]
        self.linears = nn.ModuleList(RouterLinear(*pair) for pair in zip(widths, widths[1:]))
        self.activation = nn.functional.relu if kind == "embedding" else nn.functional.gelu
        self.bias_init = bias_init

    @classmethod
    def of(cls, config) -> GlobalRouter:
        """The router that a config asks for."""
        sizes = config.router_sizes or hidden_sizes(config.router, config.hidden_size)
        routable = config.num_hidden_layers - config.kept_layers
        return cls(config.router, config.hidden_size, sizes, routable, config.router_bias_init)

    def reset_parameters(self) -> None:
        """Xavier-uniform weights; biases zero, the last ones `bias_init`."""
        for linear in self.linears:
            linear.reset_parameters()
        self.reset_bias()

    def reset_bias(self) -> None:
        init.constant_(self.linears[-1].bias, self.bias_init)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states.detach().to(self.linears[0].weight)
        states = nn.functional.rms_norm(states, states.shape[-1:])
        for linear in self.linears[:-1]:
            states = self.activation(linear(states))
        return self.linears[-1](states)


def masked_mean(states: torch.Tensor, mask: torch.BoolTensor) -> torch.Tensor:
    """Mean [B, D] in fp32 of states [B, T, D] over the tokens of a mask [B, T]; 0 for a row without any."""
    mask = mask.to(states.device)
    states = torch.where(mask[..., None], states.float(), 0.0)
    return states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _mixed(numbers: torch.LongTensor) -> torch.LongTensor:
    """A hash of whole numbers: multiplications that wrap around, and shifted bits."""
    for factor in (0x2545F4914F6CDD1D, 0x27BB2EE687B0B0FD):
        numbers = numbers * factor
        numbers = numbers ^ ((numbers >> 29) & 0x7FFFFFFFF)
    return numbers


def random_gates(
    input_ids: torch.LongTensor | None,
    position_ids: torch.LongTensor,
    shape: tuple[int, int],
    routable: int,
    probability: float | torch.Tensor,
    seed: int,
) -> torch.BoolTensor:
    """Gates [B, T, R] that are True with a probability, drawn by hashing token, position, layer and seed.

    So they are the same in every evaluation, with or without a cache, whatever the batch (where rows are padded on the
    left, give position_ids).

    Args:
        input_ids: [B, T], or None when embeddings were given.
        position_ids: [1 or B, T].
        shape: (B, T).
        probability: one, or a tensor of one for each layer [R].
    """
    place = position_ids.expand(shape) + 1
    token = torch.zeros_like(place) if input_ids is None else input_ids
    number = _mixed(_mixed(place + 1_000_003 * (seed + 1)) + token)[..., None]
    drawn = _mixed(number + torch.arange(1, routable + 1, device=place.device))
    return ((drawn >> 16) & 0xFFFFFF).double() / 2**24 < probability
