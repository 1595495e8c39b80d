"""Losses of query routers that learn which layers to prune, as pure functions of tensors.

fbc (filtered behaviour cloning) imitates the best sets that exploration found; dpo and orpo raise the probability of
the better of two sets above that of the worse. Sources: Rafailov et al., arXiv 2305.18290, equation 7 (DPO); Hong et
al., arXiv 2403.07691, equation 7 (ORPO). Deviations: dpo has no reference model, the router starts from nothing that it
should stay near; orpo takes fbc of the better set in place of the negative log-likelihood, and weighs that, not the
odds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from train_models.query_router import QueryScores


def fbc_loss(scores: QueryScores, mask: torch.BoolTensor) -> torch.Tensor:
    """Mean over the batch of (mu - k / L)^2, and over layers of the binary cross-entropy of their logits.

    Args:
        scores: of the router.
        mask: layers that are to be pruned, [B, L].
    """
    wanted = mask.to(scores.layers.dtype)
    ratio = (torch.sigmoid(scores.ratio) - wanted.mean(1)) ** 2
    return ratio.mean() + nn.functional.binary_cross_entropy_with_logits(scores.layers, wanted)


def dpo_loss(better: torch.Tensor, worse: torch.Tensor, beta: float) -> torch.Tensor:
    """Mean of -log sigmoid(beta (log pi_w - log pi_l)), for log probabilities [B]."""
    return -nn.functional.logsigmoid(beta * (better - worse)).mean()


def log_odds(log_probability: torch.Tensor) -> torch.Tensor:
    """log p - log(1 - p) of log probabilities, finite with a finite gradient for p from 0 to 1.

    A p that rounds to 1 counts as the number before it, and keeps its gradient.
    """
    below = log_probability.detach().clamp_max(-torch.finfo(log_probability.dtype).eps)
    x = log_probability + (below - log_probability).detach()
    # log(1 - exp(x)): each form keeps its digits on its own side. The other one must not see what it cannot do.
    near = x > -0.5
    rest = torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -0.5))),
        torch.log1p(-torch.exp(torch.where(near, -0.5, x))),
    )
    return x - rest


def orpo_loss(better: torch.Tensor, worse: torch.Tensor, fbc: torch.Tensor, weight: float) -> torch.Tensor:
    """Mean of -log sigmoid(log odds_w - log odds_l), and a share of fbc.

    Args:
        better, worse: log probabilities, [B].
        fbc: `fbc_loss` of the better sets.
        weight: of it.
    """
    return -nn.functional.logsigmoid(log_odds(better) - log_odds(worse)).mean() + weight * fbc


class PreferenceStep(NamedTuple):
    """A batch and what is needed for its loss.

    Attributes:
        scores: of the router for B queries.
        winners: layers that the better sets prune, [B, L].
        losers: likewise of the worse sets; None for an objective that learns from best sets.
        log_policy: function of a mask [B, L]: log pi [B].
        arguments: PreferenceArguments.
    """

    scores: QueryScores
    winners: torch.BoolTensor
    losers: torch.BoolTensor | None
    log_policy: Callable[[torch.BoolTensor], torch.Tensor]
    arguments: object


def _fbc(step: PreferenceStep) -> torch.Tensor:
    return fbc_loss(step.scores, step.winners)


def _dpo(step: PreferenceStep) -> torch.Tensor:
    return dpo_loss(step.log_policy(step.winners), step.log_policy(step.losers), step.arguments.beta)


def _orpo(step: PreferenceStep) -> torch.Tensor:
    better, worse = step.log_policy(step.winners), step.log_policy(step.losers)
    return orpo_loss(better, worse, fbc_loss(step.scores, step.winners), step.arguments.orpo_weight)


LOSSES: dict[str, Callable[[PreferenceStep], torch.Tensor]] = {"fbc": _fbc, "dpo": _dpo, "orpo": _orpo}
