"""Losses of routers that are trained end to end, as pure functions of tensors.

Source: DLR. Deviations: cross-entropy and distillation are means over the real tokens that are to be predicted, where
published code counts padding and sums over the sequence; the entropy is of mean probabilities, so that it has a
gradient.
"""

from __future__ import annotations

import torch
from torch import nn


def cross_entropy(logits: torch.Tensor, targets: torch.LongTensor, counted: torch.BoolTensor) -> torch.Tensor:
    """Mean over the counted tokens, in nats.

    Args:
        logits: [B, T, V].
        targets: [B, T].
        counted: [B, T].
    """
    return nn.functional.cross_entropy(logits[counted].float(), targets[counted])


def distillation(
    student: torch.Tensor, teacher: torch.Tensor, counted: torch.BoolTensor, temperature: float
) -> torch.Tensor:
    """T^2 KL(teacher || student) at temperature T, mean over the counted tokens, of logits [B, T, V]."""
    log_p = torch.log_softmax(student[counted].float() / temperature, -1)
    log_q = torch.log_softmax(teacher[counted].float() / temperature, -1)
    return temperature**2 * nn.functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def mean_gates(gates: torch.Tensor, real: torch.BoolTensor | None) -> torch.Tensor:
    """[R], the mean gate of each layer over rows [B, R], or over the real tokens [B, T] of [B, T, R]."""
    return gates.mean(0) if real is None else gates[real].mean(0)


def layer_penalty(shares: torch.Tensor) -> torch.Tensor:
    """Sum over layers of their mean gates [R]: how many routable layers run."""
    return shares.sum()


def skip_target(shares: torch.Tensor, target: float) -> torch.Tensor:
    """(skip - target)^2, for the share of gates [R] that is closed: wrong on either side."""
    return (1 - shares.mean() - target) ** 2


def gate_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Mean over layers of the entropy in nats of running, for mean probabilities [R]."""
    p = probabilities.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def policy_gradient(log_probability: torch.Tensor, cost: torch.Tensor, baseline: torch.Tensor | float) -> torch.Tensor:
    """REINFORCE: -(baseline - cost) log pi(a). An action that cost less than expected becomes likelier."""
    return (cost - baseline).detach() * log_probability


def bernoulli_log_probability(logits: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Sum over layers of log pi(a) for actions in {0, 1} [R] with logits [R]."""
    return -nn.functional.binary_cross_entropy_with_logits(logits, actions.to(logits.dtype), reduction="sum")
