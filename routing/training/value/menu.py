"""Training of a menu router: a dense table, prompts read once, estimates by cross-fitting, the router of all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from routing.common.devices import DTYPES
from routing.common.errors import UserError
from routing.labels.records import example_of, labelled
from routing.labels.table import Table, read_table
from routing.models.bases import load_base, weight_stamps
from routing.models.placement import place_of
from routing.scoring.prompting import prompting_of
from routing.scoring.requests import Request
from routing.search.routes import RUN, Route
from routing.tasks.examples import held_out_key
from routing.training.value.arguments import ValueArguments
from routing.training.value.crossfit import crossfit, explained, fold_of
from routing.training.value.estimators import Mlp, Ridge
from routing.training.value.frontier import COSTS, frontier, print_frontier, print_paths, standard_errors
from routing.training.value.prompts import cached_prompt_features


def shared_layers(routes: list[Route]) -> int:
    """K0, how many first layers all paths run once, at most all but the last."""
    depth = len(routes[0])
    return next((layer for layer in range(depth) if any(route[layer] != RUN for route in routes)), depth - 1)


def requests_of(table: Table, tokenizer) -> Iterator[Request]:
    """The questions of a table, one after the other, ready for the model."""
    for record, origin in zip(table.records, table.origins, strict=True):
        yield labelled(record, tokenizer, prompting_of(table.headers[origin]))


def checked_table(arguments: ValueArguments) -> Table:
    """The table, if a router can learn from it.

    Raises:
        UserError: for a table that says nothing of other paths, or rewards that the estimator cannot take.
    """
    table = read_table(arguments.data_folders())
    if len(table.routes) < 2:
        raise UserError(f"--data {arguments.data}: its menu has the full path alone; make a table with more paths")
    low, high = table.rewards.min(), table.rewards.max()
    if arguments.estimator == "mlp" and not (low >= 0 and high <= 1):
        raise UserError(
            f"--data {arguments.data}: its scores go from {low:g} to {high:g}, and --estimator mlp takes rewards from "
            "0 to 1; use ridge"
        )
    return table


def chosen_reads(arguments: ValueArguments, kept: int) -> list[int]:
    """Depths that the router reads.

    Raises:
        UserError: for one that lies behind a layer that some path does not run once.
    """
    reads = arguments.depths() or auto_reads(kept)
    if max(reads) > kept:
        raise UserError(
            f"--reads {arguments.reads}: all paths of the menu run the first {kept} layers once, so states behind more "
            f"would have to be computed twice; read behind {kept} at most, or make a menu that cuts later"
        )
    return reads


def auto_reads(kept: int) -> list[int]:
    """The depths that are read where none are asked for: what is behind all layers that the paths share, alone.

    On arithmetic questions further depths beside it, or other ones, changed the cross-fitted value by less than chance.
    """
    return [kept]


def prompt_matrix(arguments: ValueArguments, config, tokenizer, requests, reads: list[int], work: Path) -> np.ndarray:
    """Features [N, F] of the prompts."""
    commit = config._commit_hash
    model = load_base(arguments.model_id, DTYPES[arguments.dtype], commit, place_of(arguments), router="none")
    return cached_prompt_features(
        work / "prompts", model, requests, tokenizer.pad_token_id, reads, arguments.model_batch_size,
        model_id=arguments.model_id, weights=weight_stamps(arguments.model_id, commit), dtype=arguments.dtype,
        revision=commit,
    )  # fmt: skip


def estimator_of(arguments: ValueArguments) -> Ridge | Mlp:
    if arguments.estimator == "ridge":
        return Ridge()
    return Mlp(
        tuple(arguments.sizes()), arguments.num_epochs, arguments.learning_rate, arguments.weight_decay,
        arguments.batch_size, arguments.seed,
    )  # fmt: skip


def train_menu(arguments: ValueArguments, config, tokenizer, work: Path) -> tuple[dict, dict, dict]:
    """Weights of the router, config fields, and what training.json says of them."""
    table = checked_table(arguments)
    kept = shared_layers(table.routes)
    reads = chosen_reads(arguments, kept)
    folds = [fold_of(held_out_key(example_of(record)), arguments.folds) for record in table.records]
    if len(set(folds)) < 2:
        raise UserError(f"--data {arguments.data}: {len(folds)} questions are too few to cross-fit; label more")
    features = prompt_matrix(arguments, config, tokenizer, requests_of(table, tokenizer), reads, work)
    estimator, rewards = estimator_of(arguments), table.rewards

    def fitted(shuffled: bool):
        rng = np.random.default_rng(arguments.seed) if shuffled else None
        return crossfit(estimator.predict, features, rewards, folds, rng, estimator.joint)

    own, control = fitted(arguments.shuffle_questions), fitted(True)
    learned = features
    if arguments.shuffle_questions:
        learned = features[np.random.default_rng(arguments.seed).permutation(len(features))]
    router = estimator.fit(learned, rewards, own.setting)
    errors = standard_errors(rewards)
    with torch.no_grad():
        router.errors.copy_(torch.from_numpy(errors))
    costs = sorted({*COSTS, arguments.cost})
    curves = [
        frontier(fit.estimates, errors, rewards, table.layers, arguments.caution, costs) for fit in (own, control)
    ]
    of_reward, of_difference = explained(rewards, own.estimates)
    paths = zip(table.layers.tolist(), rewards.mean(0).tolist(), errors.tolist(), of_reward, of_difference, strict=True)
    summary = {
        "datasets": list(dict.fromkeys(table.datasets)),
        "train_examples": len(rewards),
        "menu": [header["menu"].get("spec") for header in table.headers],
        "paths": [
            dict(zip(("layers", "reward", "difference_error", "r2", "r2_difference"), path, strict=True))
            for path in paths
        ],
        "setting": estimator.describe(own.setting),
        "cross_fitted_errors": own.errors.tolist(),
        "frontier": curves[0],
        "frontier_shuffled": curves[1],
    }
    title = f"cross-fitted on {len(rewards)} questions, {len(table.routes)} paths, read behind layers {reads}"
    if arguments.shuffle_questions:
        title += "; a control: its training questions are shuffled"
    print_paths(summary["paths"])
    print_frontier(*curves, title)
    fields = {
        "router": "menu",
        "menu": [list(route) for route in table.routes],
        "router_reads": reads,
        "kept_layers": kept,
        "router_sizes": arguments.sizes() if arguments.estimator == "mlp" else None,
        "cost": arguments.cost,
        "caution": arguments.caution,
    }
    if not any(point["reward"] > point["static"] for point in curves[0]):
        print("ALARM: at no cost is the router above the best static paths of its menu", file=sys.stderr)
    return router.state_dict(), fields, summary
