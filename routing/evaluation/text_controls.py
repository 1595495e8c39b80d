"""Ways to run the same weights over the same text: as routed, at full depth, and the controls at equal depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from routing.models.config_fields import config_with
from routing.tasks.sequences import TextBatch
from routing.training.end_to_end.static import same_routes
from routing.training.end_to_end.validation import Measured, measure

# Scaled residuals stand for layers that are all run; where layers are skipped, they would count twice.
UNSCALED = {"residual_scale": None}


@dataclass(frozen=True)
class Method:
    """One way to run a model.

    Attributes:
        name: base, full, routed, threshold, random_tokens, random_layers or static.
        seed: of random ones.
        run: measures the n-th batch.
        target: share of routable layers that a threshold is set for.
    """

    name: str
    seed: int | None
    run: Callable[[int, TextBatch], Measured]
    target: float | None = None


def full_depth(model, name: str = "full") -> Method:
    every = [1] * model.config.num_hidden_layers
    return Method(name, None, lambda _, batch: measure(model, batch, same_routes(every, batch)))


def routed(model) -> Method:
    return Method("routed", None, lambda _, batch: measure(model, batch))


def at_threshold(model, target: float, bias: float) -> Method:
    """As routed with another route bias."""

    def run(_: int, batch: TextBatch) -> Measured:
        with config_with(model, route_bias=bias):
            return measure(model, batch)

    return Method("threshold", None, run, target)


def fixed(model, route: Sequence[int]) -> Method:
    def run(_: int, batch: TextBatch) -> Measured:
        with config_with(model, **UNSCALED):
            return measure(model, batch, same_routes(route, batch))

    return Method("static", None, run)


def random_tokens(model, skip: float, seed: int) -> Method:
    """Each token runs each routable layer with a probability of 1 - skip."""

    own = {"router": "random_token", "run_probability": 1 - skip, "random_seed": seed, "fixed_route": None}

    def run(_: int, batch: TextBatch) -> Measured:
        with config_with(model, **own, **UNSCALED):
            return measure(model, batch)

    return Method("random_tokens", seed, run)


def random_layers(model, skip: float, seed: int) -> Method:
    """Each row leaves out as many routable layers, chosen at random; the mean over rows is the share `skip`."""
    depth, kept = model.config.num_hidden_layers, model.config.kept_layers

    def run(number: int, batch: TextBatch) -> Measured:
        rng = Random(f"{seed}/{number}")
        routes = []
        for _ in range(len(batch.ids)):
            out = rng.sample(range(kept, depth), int(skip * (depth - kept) + rng.random()))
            routes.append([int(layer not in out) for layer in range(depth)])
        with config_with(model, **UNSCALED):
            return measure(model, batch, torch.tensor(routes))

    return Method("random_layers", seed, run)


def compare(methods: Sequence[Method], batches: Sequence[TextBatch], progress: Callable) -> list[Measured]:
    """All methods on each batch in turn, so that a change of the machine's speed meets them all; one pass before
    that is not measured."""
    for method in methods:
        method.run(0, batches[0])
    totals = [Measured() for _ in methods]
    for number, batch in enumerate(progress(batches)):
        for total, method in zip(totals, methods, strict=True):
            total.add(method.run(number, batch))
    return totals


def bootstrap(values: Callable[[np.ndarray], float], rows: int, resamples: int = 1000) -> list[float]:
    """95 % percentile interval of a figure of some rows, by resampling rows (Efron 1979), always with the same draws.

    Args:
        values: figure of rows, by their indices [rows].
    """
    rng = np.random.default_rng(0)
    drawn = [values(rng.integers(0, rows, rows)) for _ in range(resamples)]
    return [float(x) for x in np.quantile(drawn, [0.025, 0.975])]


def loss_interval(measured: Measured) -> list[float]:
    """95 % interval of the loss a token."""
    losses, counts = np.array(measured.losses), np.array(measured.predicted)
    return bootstrap(lambda rows: losses[rows].sum() / counts[rows].sum(), len(losses))


def difference(measured: Measured, reference: Measured) -> tuple[float, list[float]]:
    """Loss less that of a reference on the same rows, and its 95 % interval."""
    gaps, counts = np.array(measured.losses) - np.array(reference.losses), np.array(measured.predicted)
    interval = bootstrap(lambda rows: gaps[rows].sum() / counts[rows].sum(), len(gaps))
    return float(gaps.sum() / counts.sum()), interval
