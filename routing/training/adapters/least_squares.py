"""Adapters in closed form: for each layer the linear map that explains best, by ridge least squares, how the layer
moves a token's state, within the rank that the bottleneck allows.

Sources: ReplaceMe (arXiv 2505.02819: one linear map by least squares in the place of a cut) and LinearPatch (arXiv
2505.24680). Deviations: one map for each layer (a cut of several is a chain, so that every path can use them), with a
bias, of limited rank (reduced-rank regression: Izenman, Journal of Multivariate Analysis 5, 1975), written into the
weights of the adapter as it is.

How a linear map fits into x + W2 ReLU(W1 x + b1) + b2: b1 lifts each unit so far that it is open for every state that
was seen, and b2 takes that back. So a bottleneck of m holds a map of rank m; with both signs of ReLU it would be m / 2.
Beyond the states that were seen a unit stays at 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from routing.training.adapters.training import SMALLEST_MOVE

# Strengths of the ridge that are tried, as shares of the mean variance of the inputs' coordinates.
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
SLACK = 1e-3  # of the range of a unit: how far it is open beyond the states that were seen


class Moments:
    """Weighted sums of states in front of each layer and moves, float64: 2 L D^2 numbers, however many the tokens.

    Attributes:
        weight: [L], total weight of the tokens.
        inputs, moves: [L, D], sums of states x and of moves d = (state behind - state in front).
        inner: [L, D, D], sums of x x^T; cross: [L, D, D], sums of x d^T; squares: [L], sums of |d|^2.
    """

    def __init__(self, layers: int, width: int):
        self.weight, self.squares = (torch.zeros(layers, dtype=torch.float64) for _ in range(2))
        self.inputs, self.moves = (torch.zeros(layers, width, dtype=torch.float64) for _ in range(2))
        self.inner, self.cross = (torch.zeros(layers, width, width, dtype=torch.float64) for _ in range(2))

    def add(self, states: torch.Tensor, relative: bool) -> None:
        """Take in states [B, L + 1, D]; relative: each token and layer counts by 1 / its mean squared move."""
        states = states.double().transpose(0, 1)  # [L + 1, B, D]
        given, moves = states[:-1], states[1:] - states[:-1]
        weights = torch.ones(given.shape[:2], dtype=torch.float64)
        if relative:
            weights = 1 / moves.square().mean(-1).clamp(min=SMALLEST_MOVE)
        weighted = given * weights[..., None]
        self.weight += weights.sum(1)
        self.inputs += weighted.sum(1)
        self.moves += (moves * weights[..., None]).sum(1)
        self.inner += weighted.transpose(1, 2) @ given
        self.cross += weighted.transpose(1, 2) @ moves
        self.squares += (weights * moves.square().sum(-1)).sum(1)

    def centred(self, layer: int) -> tuple[torch.Tensor, ...]:
        """Of one layer: means of x [D] and d [D], covariances x x^T [D, D] and x d^T [D, D]."""
        total = self.weight[layer]
        x, d = self.inputs[layer] / total, self.moves[layer] / total
        return x, d, self.inner[layer] / total - torch.outer(x, x), self.cross[layer] / total - torch.outer(x, d)

    def error(self, layer: int, inward: torch.Tensor, outward: torch.Tensor, bias: torch.Tensor) -> float:
        """Weighted mean of |d - (outward inward x + bias)|^2, of a map of rank r: inward [r, D], outward [D, r]."""
        total = self.weight[layer]
        x, d = self.inputs[layer] / total, self.moves[layer] / total
        seen = inward @ (self.inner[layer] / total) @ inward.T  # [r, r]
        mean = outward @ (inward @ x)
        found = ((outward.T @ outward) * seen).sum() + bias @ bias + 2 * bias @ mean
        both = ((inward @ (self.cross[layer] / total)) * outward.T).sum() + bias @ d
        return float(self.squares[layer] / total + found - 2 * both)


def moments_of(batches: Iterable[torch.Tensor], layers: int, width: int, relative: bool) -> Moments:
    """Moments of batches of states [B, L + 1, D]."""
    found = Moments(layers, width)
    for states in batches:
        found.add(states, relative)
    return found


def reduced_rank(
    moments: Moments, layer: int, ridge: float, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ridge regression of a layer's move on the state in front of it, within a rank.

    With B the full solution and A = covariance + ridge I, the best map of a rank keeps of A^(1/2) B the leading right
    singular vectors (Eckart and Young in the metric of A): eigenvectors of B^T A B, which are found faster.
    The bias is not penalised.

    Args:
        ridge: added to the diagonal, as a share of its mean.

    Returns:
        inward [r, D], outward [D, r], bias [D], r = min(rank, D): move = outward inward x + bias.
    """
    x, d, inner, cross = moments.centred(layer)
    penalised = inner + torch.eye(len(inner), dtype=inner.dtype) * ridge * inner.diagonal().mean().clamp(min=1e-12)
    full = torch.cholesky_solve(cross, torch.linalg.cholesky(penalised))  # [D, D], d = x full
    fitted = cross.T @ full  # B^T A B
    outward = torch.linalg.eigh((fitted + fitted.T) / 2).eigenvectors[:, -rank:]  # [D, r], orthonormal
    inward = outward.T @ full.T
    return inward, outward, d - outward @ (inward @ x)


def fit_adapters(adapters: nn.ModuleList, train, held_out, relative: bool, batch_size: int = 256) -> list[float]:
    """Give every adapter of a model its closed form.

    Args:
        adapters: `model.model.adapters`.
        train, held_out: StoredStates; the ridge of each layer is the one of least error on the latter.
        relative: tokens are weighted as the loss `relative` weights them.

    Returns:
        the ridge of each layer.
    """
    layers, width = len(adapters), adapters[0].down.in_features
    rank = min(adapters[0].down.out_features, width)
    seen, aside = (moments_of(batches(part, batch_size), layers, width, relative) for part in (train, held_out))
    maps, chosen = [], []
    for layer in range(layers):
        tried = {ridge: reduced_rank(seen, layer, ridge, rank) for ridge in RIDGES}
        ridge = min(RIDGES, key=lambda one: aside.error(layer, *tried[one]))
        maps.append(tried[ridge])
        chosen.append(ridge)
    lowest, highest = unit_ranges((inward for inward, _, _ in maps), batches(train, batch_size))
    for adapter, (inward, outward, bias), low, high in zip(adapters, maps, lowest, highest, strict=True):
        write_linear(adapter, inward, outward, bias, low - SLACK * (high - low))
    return chosen


def unit_ranges(inwards, parts: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest value [L, r] of each unit over the states in front of its layer."""
    stacked = torch.stack(list(inwards))  # [L, r, D]
    lowest = torch.full(stacked.shape[:2], torch.inf, dtype=torch.float64)
    highest = -lowest
    for states in parts:
        units = stacked @ states[:, :-1].double().permute(1, 2, 0)  # [L, r, B]
        lowest, highest = torch.minimum(lowest, units.amin(-1)), torch.maximum(highest, units.amax(-1))
    return lowest, highest


@torch.no_grad()
def write_linear(adapter, inward, outward, bias, lowest: torch.Tensor) -> None:
    """Weights by which an adapter is x + outward inward x + bias wherever no unit of inward x is below `lowest` [r].

    What one side of a unit has more than the other is evened out, so that steps of training move both alike. Units that
    the rank leaves over are 0.
    """
    scale = (inward.norm(dim=1) / outward.norm(dim=0)).sqrt().clamp(min=1e-12)  # [r]
    inward, outward, lowest = inward / scale[:, None], outward * scale, lowest / scale
    for tensor in adapter.parameters():
        tensor.zero_()
    rank = len(inward)
    adapter.down.weight[:rank] = inward.to(adapter.down.weight)
    adapter.down.bias[:rank] = -lowest.to(adapter.down.bias)
    adapter.up.weight[:, :rank] = outward.to(adapter.up.weight)
    adapter.up.bias[:] = (bias + outward @ lowest).to(adapter.up.bias)


def batches(stored, size: int) -> Iterable[torch.Tensor]:
    """Stored states in order, [B, L + 1, D] at a time."""
    for start in range(0, len(stored), size):
        yield stored.__getitems__(list(range(start, min(start + size, len(stored)))))["states"]
