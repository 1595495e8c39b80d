"""The largest saving of a routed checkpoint whose loss of accuracy is shown to stay within bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from routing.common.paired_bounds import Pairs, Tested, fixed_sequence, pairs_of
from routing.evaluation.budget import decided_routes, find_bias, mean_layers
from routing.models.config_fields import config_with
from routing.scoring.along import verdicts_along
from routing.scoring.requests import Request
from routing.search.routes import Route, full_route
from routing.training.features import RouterExample
from routing.training.value.prompts import prompt_inputs
from train_models.menu_router import best_paths, path_values
from train_models.router_kinds import kind_of

# Prices of a layer for a menu router, from the one that takes long paths to the one that saves most.
PRICES = (-0.05, -0.03, -0.02, -0.01, -0.005, -0.002, 0.0, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.0125,
          0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.07, 0.1)  # fmt: skip
# Shares of layers that other routers are to save, each by a bias of its own, found on other questions.
SAVINGS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4)


def swept_field(config) -> str:
    """Name of the config field that is calibrated: what a layer costs a menu router, the bias of others."""
    return kind_of(config).budget


def as_set(config, setting: float) -> dict[str, float]:
    """Config fields of a setting; both count together."""
    return {"cost": setting, "route_bias": 0.0} if swept_field(config) == "cost" else {"route_bias": setting}


def biases(model, tokenizer, prompts: Sequence, batch_size: int, tolerance: float) -> list[float]:
    """A grid of route biases, from the safest on, by the layers that they run on prompts of other questions."""
    tried: dict[float, float] = {}

    def layers_at(bias: float) -> float:
        if bias not in tried:
            with config_with(model, route_bias=bias):
                tried[bias] = mean_layers(decided_routes(model, tokenizer, prompts, batch_size))
        return tried[bias]

    depth = model.config.num_hidden_layers
    targets = [depth * (1 - saving) for saving in SAVINGS]
    found = {find_bias(layers_at, target, tolerance)[0] for target in tqdm(targets, desc="grid")}
    return sorted(found, reverse=True)


@torch.inference_mode()
def deciding(model, tokenizer, prompts: Sequence, batch_size: int) -> Callable[[float], list[Route]]:
    """Function that gives the routes of prompts (token ids) under a setting. A menu router reads them once for all."""
    config = model.config
    if not kind_of(config).has_menu:

        def decide(setting: float) -> list[Route]:
            with config_with(model, **as_set(config, setting)):
                return decided_routes(model, tokenizer, prompts, batch_size)

        return decide
    parts = []
    for start in tqdm(range(0, len(prompts), batch_size), desc="reading prompts"):
        rows = [RouterExample(ids, ()) for ids in prompts[start : start + batch_size]]
        features = prompt_inputs(tuple(config.router_reads), model, rows, tokenizer.pad_token_id)["features"]
        parts.append(model.model.routers(features.to(model.device))[0])
    estimates, errors = torch.cat(parts), model.model.routers.errors
    layers = torch.tensor([sum(route) for route in config.menu], device=estimates.device)

    def choose(setting: float) -> list[Route]:
        chosen = best_paths(path_values(estimates, errors, layers, setting, config.caution))
        return [tuple(config.menu[index]) for index in chosen.tolist()]

    return choose


class Setting(NamedTuple):
    """A setting with the layers an input that it runs, and accuracies of its routes and of the full path."""

    value: float
    layers: float
    accuracy: float
    full_accuracy: float


def tested_settings(
    model,
    tokenizer,
    requests: Sequence[Request],
    grid: Sequence[float],
    max_loss: float,
    confidence: float,
    batch_size: int,
    folder: Path,
    key: object,
) -> tuple[list[Tested], int]:
    """`fixed_sequence` over settings of a model; each tested one is a `Setting`.

    A question is answered once along each route that comes up for it. Answers are kept in `folder` as they are made,
    and a rerun with the same key goes on.

    Args:
        grid: settings from the safest to the one that saves most, see `as_set`.
        folder: of the verdicts.
        key: what they depend on besides questions and routes: the checkpoint, dtype.
    """
    decide = deciding(model, tokenizer, [request.prompt_ids for request in requests], batch_size)
    known: dict[tuple[int, Route], bool] = {}
    settings: list[Setting] = []

    def answers(routes: list[Route], name: str) -> list[bool]:
        missing = [at for at, route in enumerate(routes) if (at, route) not in known]
        if missing:
            asked, line = [requests[at] for at in missing], [routes[at] for at in missing]
            (verdicts,) = verdicts_along(
                model, tokenizer, asked, [line], model.config.skip_action, batch_size, folder=folder / name, key=key
            )
            known.update({(at, routes[at]): verdict.correct for at, verdict in zip(missing, verdicts, strict=True)})
        return [known[at, route] for at, route in enumerate(routes)]

    full = answers([full_route(model.config.num_hidden_layers)] * len(requests), "full")

    def verdicts(value: float) -> Pairs:
        routes = decide(value)
        routed = answers(routes, f"{value:.6g}")
        settings.append(Setting(value, mean_layers(routes), sum(routed) / len(routed), sum(full) / len(full)))
        return pairs_of(full, routed)

    tested, kept = fixed_sequence(grid, verdicts, max_loss, confidence)
    return [test._replace(setting=setting) for test, setting in zip(tested, settings, strict=True)], kept
