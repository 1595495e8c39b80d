"""A router that estimates what each path of a small menu is worth for a prompt, and takes the best at a price a layer.

It reads the prompt's states behind some of the first K0 layers, which all paths of the menu run once, so no state is
computed for the decision alone. Of each depth it takes the mean over the prompt's tokens and the last prompt token,
standardises both, and estimates the reward of each path: by a linear map (ridge regression), or by a small network
whose logits a sigmoid turns into rewards.

The decision, of estimates q, a price p = `cost` - `route_bias` (reward a layer), |path| layers and standard errors e:

    argmax over paths k of  q_k - p |path_k| - caution e_k,   the full path (k = 0, e_0 = 0) among equals

e_k is the standard error, over the training questions, of the mean of (reward along path k) - (reward along the full
one): what luck there is in the difference that the router adjusts question by question. So a path is taken only where
it beats the full one by more than `caution` of these, and more bias never runs fewer layers.

A router that was not trained has infinite errors: nothing beats the full path.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn
from transformers import initialization as init

from .decisions import Prompt, RowDecision
from .float32 import StaysFloat32
from .routers import RouterLinear

UNTRAINED = (
    "the menu router is not trained, so every input takes the full path. Load a checkpoint of train.py --objective "
    "value, or give routes=."
)


def prompt_features(states: list[torch.Tensor], mask: torch.BoolTensor, device: torch.device) -> torch.Tensor:
    """What the router reads, [B, R * 2 * D] in fp32: mean, then last prompt token, of each depth in turn.

    Args:
        states: R of [B, T, D], behind the layers that are read.
        mask: [B, T], the prompt's tokens; a row without any gives zeros for the mean.
        device: of the result.
    """
    # What all depths share is computed once: at short prompts a decision costs what its operations cost to call.
    size = mask.sum(1, keepdim=True).clamp(min=1)
    tokens, means = mask[..., None], (mask.float() / size)[:, None]
    rows = torch.arange(len(mask), device=mask.device)
    last = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), 0).amax(1)
    parts = []
    for state in states:
        place = state.device
        real = torch.where(tokens.to(place), state.float(), 0.0)
        parts += [torch.bmm(means.to(place), real)[:, 0], state[rows.to(place), last.to(place)].float()]
    return torch.cat([part.to(device) for part in parts], dim=1)


def path_values(
    estimates: torch.Tensor, errors: torch.Tensor, layers: torch.Tensor, price: float, caution: float
) -> torch.Tensor:
    """What paths are worth at a price, [B, K].

    Args:
        estimates: [B, K], of rewards.
        errors: [K]; an infinite one rules its path out, whatever the caution.
        layers: [K], executions of each path.
        price: reward a layer.
        caution: errors that a path must be better by.
    """
    unsure = torch.where(errors.isinf(), errors, caution * errors)
    return estimates - price * layers.to(estimates) - unsure


def best_paths(values: torch.Tensor) -> torch.LongTensor:
    """Index [B] of the most valuable path; 0, the full one, where no other is worth more."""
    best, index = values.max(1)
    return torch.where(values[:, 0] >= best, 0, index)


class MenuRouter(StaysFloat32, nn.Module):
    """Estimates rewards of K paths from features [B, F].

    Weights: `mean`, `scale` [F], which standardise the features; `linears`; `errors` [K], see the module.
    """

    def __init__(self, features: int, sizes: list[int], paths: int):
        super().__init__()

        def frozen(count: int, value: float) -> nn.Parameter:
            return nn.Parameter(torch.full((count,), value, dtype=torch.float32), requires_grad=False)

        self.mean, self.scale = frozen(features, 0.0), frozen(features, 1.0)
        self.errors = frozen(paths, torch.inf)
        widths = [features, *sizes, paths]
        self.linears = nn.ModuleList(RouterLinear(*pair) for pair in zip(widths, widths[1:]))
        self.warned = False

    @classmethod
    def of(cls, config) -> MenuRouter:
        """The router that a config asks for."""
        features = len(config.router_reads) * 2 * config.hidden_size
        return cls(features, list(config.router_sizes or ()), len(config.menu))

    def reset_parameters(self) -> None:
        """Xavier weights, and the state of a router that was not trained."""
        for linear in self.linears:
            linear.reset_parameters()
        self.reset_statistics()

    def reset_statistics(self) -> None:
        init.zeros_(self.mean)
        init.ones_(self.scale)
        init.constant_(self.errors, torch.inf)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """[B, K]: rewards of a linear router, else their logits."""
        hidden = (features.to(self.mean) - self.mean) / self.scale
        for linear in self.linears[:-1]:
            hidden = nn.functional.gelu(linear(hidden))
        return self.linears[-1](hidden)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Estimated rewards [B, K], and the errors [K]."""
        logits = self.logits(features)
        return logits if len(self.linears) == 1 else logits.sigmoid(), self.errors.detach()

    @torch.no_grad()
    def choose(self, states: list[torch.Tensor], mask: torch.BoolTensor, config) -> list[int]:
        """Index of the path of each row, 0 for one without a prompt. The only transfer from device to host.

        Args:
            states: [B, T, D] behind each depth of `config.router_reads`.
            mask: [B, T], the prompt's tokens.
            config: see `RoutingFields`.
        """
        estimates, errors = self(prompt_features(states, mask, mask.device))
        layers = torch.tensor([sum(route) for route in config.menu], device=estimates.device)
        values = path_values(estimates, errors, layers, config.cost - config.route_bias, config.caution)
        chosen = torch.where(mask.any(1).to(values.device), best_paths(values), 0)
        *found, untrained = torch.cat([chosen, errors.isinf().any()[None].long()]).tolist()
        if untrained and not self.warned:
            self.warned = True
            warnings.warn(UNTRAINED, stacklevel=2)
        return found


def decide_by_value(router: MenuRouter, prompt: Prompt, config) -> RowDecision:
    """The most valuable path of the menu for each row, chosen behind the kept layers."""
    seen, routes = {}, []

    def counts(layer: int, hidden: torch.Tensor) -> list[int]:
        if layer <= config.kept_layers and layer in config.router_reads:
            seen[layer] = hidden
        if layer < config.kept_layers:
            return [1] * len(prompt.mask)
        if layer == config.kept_layers:
            states = [seen.pop(depth) for depth in config.router_reads]
            routes.extend(config.menu[index] for index in router.choose(states, prompt.mask, config))
        return [route[layer] for route in routes]

    return RowDecision(counts)
