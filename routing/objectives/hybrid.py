"""lm: training of a hybrid whose blocks choose a mechanism for each token, as pure functions of tensors.

Gates are a hard Gumbel-softmax over the E mechanisms of a block with a straight-through gradient (Jang et al., arXiv
1611.01144), the temperature falling from 1 to 0.5 over the run. The balance loss is that of mixtures of experts (Fedus
et al., arXiv 2101.03961, equation 4): mean over routed blocks of E sum_e f_e P_e, with f the share of tokens that
choose mechanism e and P its mean probability: 1 where all take equal parts, up to E where one takes all.

Deviations: f counts the choices without noise, those that the model makes when it is used; padding is in no mean; and
the balance loss stays apart from the language-model loss everywhere, that of validation above all.
"""

from __future__ import annotations

import torch
from torch import nn

from routing.objectives.gumbel import straight_through


def gumbel_noise(like: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel variables of the shape of a tensor, from torch's global generator."""
    uniform = torch.rand_like(like).clamp(1e-6, 1 - 1e-6)
    return -torch.log(-uniform.log())


def mechanism_gates(router_logits: torch.Tensor, temperature: float, noise: torch.Tensor) -> torch.Tensor:
    """Gates of mechanisms, one-hot, with the gradient of softmax((logits + noise) / temperature).

    Args:
        router_logits: [B, T, R, E].
        noise: of the same shape; zeros for the gates of evaluation.
    """
    noisy = router_logits + noise
    hard = nn.functional.one_hot(noisy.argmax(-1), noisy.shape[-1])
    return straight_through(hard, torch.softmax(noisy / temperature, -1))


def temperature_at(progress: float, first: float, last: float) -> float:
    """Linear from `first` to `last` as the progress of the run goes from 0 to 1."""
    return first + (last - first) * min(max(progress, 0.0), 1.0)


def balance_loss(router_logits: torch.Tensor, real: torch.BoolTensor | None = None) -> torch.Tensor:
    """Mean over R blocks of E sum_e f_e P_e; f without gradient.

    Args:
        router_logits: [B, T, R, E].
        real: [B, T], False for padding; None: all tokens are real.
    """
    logits = _real(router_logits, real)
    chosen = nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    return logits.shape[-1] * (chosen.mean(0) * torch.softmax(logits, -1).mean(0)).sum(-1).mean()


def routing_entropy(router_logits: torch.Tensor, real: torch.BoolTensor | None = None) -> torch.Tensor:
    """Mean over real tokens and blocks of the entropy of a token's probabilities, in nats; arguments as above."""
    log_p = torch.log_softmax(_real(router_logits, real), -1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def _real(router_logits: torch.Tensor, real: torch.BoolTensor | None) -> torch.Tensor:
    """[N, R, E] of the real tokens, in float32."""
    logits = router_logits.flatten(0, 1) if real is None else router_logits[real]
    return logits.float()
