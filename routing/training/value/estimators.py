"""What estimates rewards from a prompt's features: ridge regression, or a small network. A new one is one row here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from routing.training.value.crossfit import from_parts, to_parts
from routing.training.value.ridge import STRENGTHS, ridge, standard
from train_models.menu_router import MenuRouter

Setting = tuple[int, int]  # of the full path's reward, of the differences to it


@dataclass(frozen=True)
class Ridge:
    """Linear estimates, see `routing.training.value.ridge`. A setting is a strength of shrinkage.

    The full path's reward and the differences to it are shrunk apart: the former takes little of it, being easy to
    tell, the latter a lot.
    """

    strengths: Sequence[float] = STRENGTHS
    joint = False

    def predict(self, features: np.ndarray, rewards: np.ndarray, others: np.ndarray) -> np.ndarray:
        """An `Estimator` of `routing.training.value.crossfit`."""
        scaled, parts = standard(features), to_parts(rewards)
        weights = ridge(scaled(features), parts, self.strengths)
        return from_parts(scaled(others) @ weights + parts.mean(0))

    def fit(self, features: np.ndarray, rewards: np.ndarray, setting: Setting) -> MenuRouter:
        """A router without its errors."""
        scaled, parts = standard(features), to_parts(rewards)
        full, others = ridge(scaled(features), parts, [self.strengths[index] for index in setting])
        weights = from_parts(np.concatenate([full[:, :1], others[:, 1:]], axis=1))
        router = _router(scaled, [], rewards.shape[1])
        _copy(router.linears[0].weight, weights.T)
        _copy(router.linears[0].bias, rewards.mean(0))
        return router

    def describe(self, setting: Setting) -> dict:
        """For training.json; an infinite strength, which JSON lacks, as text."""
        names = ("shrinkage_full", "shrinkage_differences")
        return {name: _json(self.strengths[index]) for name, index in zip(names, setting)}


@dataclass(frozen=True)
class Mlp:
    """A network of one logit a path, trained with binary cross-entropy. A setting is a number of epochs, the same for
    all its parts."""

    sizes: tuple[int, ...]
    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    seed: int
    joint = True

    def _train(self, features: np.ndarray, rewards: np.ndarray, epochs: int):
        """Yields the router after each epoch."""
        scaled = standard(features)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            router = _router(scaled, list(self.sizes), rewards.shape[1])
        with torch.no_grad():  # It starts from the mean of each path.
            means = torch.from_numpy(rewards.mean(0)).float().clamp(0.01, 0.99)
            router.linears[-1].weight.mul_(0.1)
            router.linears[-1].bias.copy_(means.logit())
        inputs, targets = torch.from_numpy(features).float(), torch.from_numpy(rewards).float()
        optimizer = torch.optim.AdamW(router.linears.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        for _ in range(epochs):
            for rows in torch.randperm(len(inputs), generator=generator).split(self.batch_size):
                with torch.enable_grad():
                    loss = nn.functional.binary_cross_entropy_with_logits(router.logits(inputs[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            yield router

    def predict(self, features: np.ndarray, rewards: np.ndarray, others: np.ndarray) -> np.ndarray:
        """An `Estimator` of `routing.training.value.crossfit`."""
        inputs, found = torch.from_numpy(others).float(), []
        for router in self._train(features, rewards, self.epochs):
            with torch.no_grad():
                found.append(router.logits(inputs).sigmoid().double().numpy())
        return np.stack(found)

    def fit(self, features: np.ndarray, rewards: np.ndarray, setting: Setting) -> MenuRouter:
        """A router without its errors."""
        *_, router = self._train(features, rewards, setting[1] + 1)
        return router

    def describe(self, setting: Setting) -> dict:
        """For training.json."""
        return {"epochs": setting[1] + 1}


def _router(scaled, sizes: list[int], paths: int) -> MenuRouter:
    router = MenuRouter(len(scaled.mean), sizes, paths)
    router.reset_parameters()
    _copy(router.mean, scaled.mean)
    _copy(router.scale, scaled.scale)
    return router


@torch.no_grad()
def _copy(parameter: nn.Parameter, values: np.ndarray) -> None:
    parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def _json(strength: float) -> float | str:
    return float(strength) if np.isfinite(strength) else "infinite"
