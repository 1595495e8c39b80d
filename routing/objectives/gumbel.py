"""gumbel: gates from a hard Gumbel-softmax with a straight-through gradient, one route a row or a token.

Of the logits [0, z] the second wins with noise where z plus a logistic number is above 0; the gradient is that of
sigmoid((z + noise) / tau). Loss: alpha CE + (1 - alpha) KD + lambda sum_l mean(g_l) + gamma (skip - target)^2 - beta H.
Source: Jang et al., arXiv 1611.01144; DLR (alpha 0.5, tau from 1 by 0.95 an epoch to 0.5, target 0.4, beta 0.1).

Deviations: the target holds for the gates without noise, which are those of evaluation: with noise, logits that are all
just above 0 would skip a lot in training and nothing afterwards; that target may rise from 0, and noise may end before
training does (both off unless asked for). lambda is 0 unless given, since a one-sided penalty
pulls away from a target with two sides.
"""

from __future__ import annotations

import torch

from routing.objectives.end_to_end import TrainingStep
from routing.objectives.losses import gate_entropy, layer_penalty, mean_gates, skip_target


def straight_through(hard: torch.BoolTensor, soft: torch.Tensor) -> torch.Tensor:
    """Exactly 0 or 1 in the forward, the gradient of `soft` in the backward."""
    return hard.to(soft.dtype) + (soft - soft.detach())


def logistic_noise(like: torch.Tensor) -> torch.Tensor:
    """The difference of two Gumbel variables."""
    uniform = torch.rand_like(like).clamp(1e-6, 1 - 1e-6)
    return uniform.log() - torch.log1p(-uniform)


def gumbel_gates(logits: torch.Tensor, temperature: float, noise: torch.Tensor) -> torch.Tensor:
    """Gates in {0, 1} of the shape of the logits, with a gradient."""
    noisy = logits + noise
    return straight_through(noisy > 0, torch.sigmoid(noisy / temperature))


def warmed_up(step: TrainingStep) -> float:
    """Share of the target that holds in this step: it rises so that the router can find out first what it can skip."""
    steps = step.arguments.target_warmup_steps * step.arguments.gradient_accumulation
    return min(step.number / steps, 1.0) if steps else 1.0


def is_noisy(step: TrainingStep) -> bool:
    """Whether gates are still drawn: the last steps may be taken with the gates of evaluation."""
    steps = step.arguments.noise_steps
    return steps < 0 or step.number < steps * step.arguments.gradient_accumulation


def loss(step: TrainingStep) -> dict[str, torch.Tensor]:
    arguments, drawn = step.arguments, []

    def draw(logits: torch.Tensor) -> torch.Tensor:
        drawn.append(logits)
        noise = logistic_noise(logits) if is_noisy(step) else torch.zeros_like(logits)
        return gumbel_gates(logits, step.temperature, noise)

    losses = step.language_losses(step.logits(draw_gates=draw))
    z = drawn[0].to(step.batch.ids.device)  # The router of a model on several devices may have another.
    real = step.batch.mask.bool() if z.ndim == 3 else None
    quiet = mean_gates(straight_through(z > 0, torch.sigmoid(z / step.temperature)), real)
    target = arguments.target_weight * skip_target(quiet, arguments.target_skip * warmed_up(step))
    entropy = gate_entropy(mean_gates(torch.sigmoid(z), real))
    gates = arguments.layer_penalty * layer_penalty(quiet) - arguments.entropy_weight * entropy
    return losses | {
        "target_loss": target,
        "gate_loss": gates,
        "gate_entropy": entropy.detach(),
        "run_shares": quiet.detach(),
        "loss": losses["quality"] + gates + target,
    }
