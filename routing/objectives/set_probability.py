"""The probability that a query router prunes a given set of layers, as pure functions of tensors.

A policy draws a ratio r ~ N(mu, sigma), prunes k = round(r L) layers, clamped to 0..L, and then chooses which. So
log pi(S) = log P(|S|) + log P(S given its size): the first term is a probability mass, not a density, which would be
above 1 for a narrow sigma; the second one has three forms:

- conditional: independent Bernoullis under the condition that k of them are 1, exact. Source: Chen, Dempster, Liu,
  Weighted finite population sampling to maximize entropy, Biometrika 81 (1994).
- sinkhorn: independent Bernoullis whose marginals are a differentiable top-k. Source: Xie et al., arXiv 2002.06504.
- gumbel: the same with sampled marginals and a straight-through gradient. Source: Xie and Ermon, arXiv 1901.10517.

Deviations: the transport of the second form has two targets, so all that Sinkhorn's iterations look for is one number a
row, which is bisected instead; its gradient is that of the solution, not of the way to it. Independent Bernoullis are
a distribution over all subsets, not over those of size k, so in these two forms the probabilities of all sets of one
size sum to less than 1; of the sets with 0 and L layers there is one each, which gets probability 1 in all forms.
"""

from __future__ import annotations

import torch
from torch import nn

from train_models.query_router import QueryScores


def log_count_mass(mean: torch.Tensor, log_std: torch.Tensor, counts: torch.LongTensor, depth: int) -> torch.Tensor:
    """Log of the probability that k = round(r depth), clamped to 0..depth, for r ~ N(mean, exp(log_std)).

    Computed in double precision: 1000 sigmas away the result is -5e5, where float32 has steps of 0.03.

    Args:
        mean: [B].
        log_std: [B].
        counts: k, [B].
        depth: number of layers L.

    Returns:
        [B], at most 0; its exponentials sum to 1 over k.

    Raises:
        ValueError: for tensors of other shapes: [B, 1] against [B] would silently become [B, B].
    """
    if mean.ndim != 1 or not mean.shape == log_std.shape == counts.shape:
        raise ValueError(
            f"mean, log_std and counts must all be [B], got {list(mean.shape)}, {list(log_std.shape)} and "
            f"{list(counts.shape)}"
        )
    middle, std = mean.double(), log_std.double().exp()
    low, high = (((counts.double() + half) / depth - middle) / std for half in (-0.5, 0.5))
    tail = (counts == 0) | (counts == depth)
    # The normal distribution is symmetric: an interval above the mean is turned over, where logarithms keep digits.
    turned = (counts == depth) | ((counts > 0) & (low + high > 0))
    near, far = torch.where(turned, -low, high), torch.where(turned, -high, low)
    log_near = torch.special.log_ndtr(near)
    difference = torch.where(tail, -1.0, torch.special.log_ndtr(far) - log_near)
    inside = log_near + torch.log(-torch.expm1(difference))
    return torch.where(tail, log_near, inside).to(mean.dtype)


def log_set_probability(logits: torch.Tensor, mask: torch.BoolTensor) -> torch.Tensor:
    """Log of the probability of a set given its size: sum over it of logits - log e_k(exp(logits)).

    e_k is the elementary symmetric polynomial, computed layer by layer. All weights are relative to that of the set
    itself, whose own part of the sum is then exactly 1: the result never comes out above 0.

    Args:
        logits: of the layers, [B, L]; higher is likelier to be in the set.
        mask: whether a layer is in the set, [B, L].

    Returns:
        [B], at most 0; its exponentials sum to 1 over the sets of one size.
    """
    inside, outside = torch.where(mask, 0.0, logits), torch.where(mask, -logits, 0.0)
    sums = logits.new_zeros(len(logits), 1)  # of the weights of sets of the first i layers, by size 0..i, in logarithms
    for layer in range(logits.shape[1]):
        without, within = sums + outside[:, layer, None], sums + inside[:, layer, None]
        both = torch.logaddexp(without[:, 1:], within[:, :-1])
        sums = torch.cat([without[:, :1], both, within[:, -1:]], 1)
    return -sums.gather(1, mask.sum(1, keepdim=True))[:, 0]


def sinkhorn_logits(
    logits: torch.Tensor, counts: torch.LongTensor, temperature: float, iterations: int
) -> torch.Tensor:
    """Logits of the marginals of a differentiable top-k: each in (0, 1), k together.

    The solution of the transport of L items to the targets {chosen, left} of masses k and L - k with entropy
    regularisation: sigmoid(logit / temperature + v), where v makes the sum right.

    Args:
        logits: [B, L].
        counts: k, [B], from 1 to L - 1; at 0 and L, which no such marginals have, half a layer more or less.
        temperature: near 0 the marginals are 0 or 1.
        iterations: halvings of the interval in which v lies, (max - min of logits) / temperature wide at first.

    Returns:
        [B, L].
    """
    depth, scaled = logits.shape[1], logits / temperature
    wanted = counts.to(logits.dtype).clamp(0.5, depth - 0.5)
    with torch.no_grad():
        start = torch.logit(wanted / depth)
        low, high = start - scaled.amax(1), start - scaled.amin(1)
        for _ in range(iterations):
            middle = (low + high) / 2
            enough = torch.sigmoid(scaled + middle[:, None]).sum(1) > wanted
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        v = (low + high) / 2
        shares = torch.sigmoid(scaled + v[:, None])
        slopes = shares * (1 - shares)
        slopes = slopes / slopes.sum(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)
    # The sum must stay, so v goes down by the mean of what the logits go up, by their slopes.
    shift = (slopes * (scaled - scaled.detach())).sum(1)
    return scaled + (v - shift)[:, None]


def gumbel_marginals(
    logits: torch.Tensor,
    counts: torch.LongTensor,
    temperature: float,
    iterations: int,
    samples: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """How often each layer is among the k highest of logits with Gumbel noise; the gradient is that of soft sets.

    Args:
        logits: [B, L].
        counts: k, [B].
        temperature, iterations: of the soft sets, see `sinkhorn_logits`.
        samples: n draws of noise; a layer that was chosen m times gets (m + 1) / (n + 2), so that logarithms are
            finite.
        generator: of the noise.

    Returns:
        [B, L] in (0, 1).
    """
    batch, depth = logits.shape
    noise = -torch.empty(samples, batch, depth, device=logits.device).exponential_(generator=generator).log()
    noisy = logits + noise.to(logits.dtype)  # [N, B, L]
    ranks = noisy.argsort(-1, descending=True).argsort(-1)
    hard = ((ranks < counts[:, None]).sum(0) + 1) / (samples + 2)
    every = sinkhorn_logits(noisy.flatten(0, 1), counts.repeat(samples), temperature, iterations)
    soft = torch.sigmoid(every).unflatten(0, (samples, batch)).mean(0)
    return hard.to(logits.dtype) + (soft - soft.detach())


def log_policy(
    scores: QueryScores,
    mask: torch.BoolTensor,
    method: str = "conditional",
    temperature: float = 1.0,
    iterations: int = 40,
    samples: int = 16,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """log pi of pruning a set of layers: log mass of its size + log probability of the set.

    Args:
        scores: of the router.
        mask: layers that are pruned, [B, L].
        method: one of TOP_K; the other arguments are those of `sinkhorn_logits` and `gumbel_marginals`.

    Returns:
        [B], at most 0.
    """
    counts = mask.sum(1)
    mass = log_count_mass(torch.sigmoid(scores.ratio), scores.log_std, counts, mask.shape[1])
    if method == "conditional":
        return mass + log_set_probability(scores.layers, mask)
    if method == "sinkhorn":
        marginals = sinkhorn_logits(scores.layers, counts, temperature, iterations)
        chosen = nn.functional.logsigmoid(torch.where(mask, marginals, -marginals)).sum(1)
    else:
        marginals = gumbel_marginals(scores.layers, counts, temperature, iterations, samples, generator)
        chosen = torch.where(mask, marginals, 1 - marginals).log().sum(1)
    return mass + torch.where((counts == 0) | (counts == mask.shape[1]), 0.0, chosen)
