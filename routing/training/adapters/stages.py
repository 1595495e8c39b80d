"""What each stage of adapter training brings: the task score along paths, with nothing and with its adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from routing.common.statistics import mcnemar, wilson_interval
from routing.common.tables import print_table
from routing.scoring.along import verdicts_along
from routing.scoring.requests import Request
from routing.search.routes import SKIP, Route, full_route
from routing.training.adapters.heal_paths import path_name

NOTHING = "nothing"


def paired(first: Sequence[bool], second: Sequence[bool]) -> dict:
    """McNemar's test of two methods on the same questions, and the 95 % interval of the difference, second less first
    (Wald: Agresti, Categorical Data Analysis, eq. 11.2)."""
    test = mcnemar(dict(enumerate(first)), dict(enumerate(second)))
    n, gained, lost = len(first), test["gained"], test["lost"]
    half = 1.96 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return test | {"ci95": [test["difference"] - half, test["difference"] + half]}


def right_by_stage(
    model,
    tokenizer,
    requests: Sequence[Request],
    routes: Sequence[Route],
    stages: Mapping[str, Mapping[str, torch.Tensor]],
    batch_size: int,
    folder: Path | None = None,
    key: object = None,
) -> dict[str, list[list[bool]]]:
    """Of each stage, whether each request is answered rightly along each route, [routes][requests]; `nothing` first.

    Args:
        model: with adapters, which are those of the last stage afterwards.
        stages: of each the state dict of the adapters.
        folder, key: of what is kept for a rerun, see `verdicts_along`; the key must tell the stages' weights.
    """
    found = {}
    lines = [[route] * len(requests) for route in routes]
    for name, weights in {NOTHING: None, **stages}.items():
        if weights is not None:
            model.model.adapters.load_state_dict(weights)
        own = None if folder is None else folder / name.replace(" ", "_")
        verdicts = verdicts_along(
            model, tokenizer, requests, lines, "identity" if weights is None else "adapter", batch_size,
            folder=own, key=[key, name],
        )  # fmt: skip
        found[name] = [[verdict.correct for verdict in line] for line in verdicts]
    return found


def worth_of_stages(right: Mapping[str, Sequence[Sequence[bool]]], routes: Sequence[Route]) -> dict:
    """Accuracies of `right_by_stage`, along the menu's paths.

    Args:
        routes: the full one first.

    Returns:
        n; `base`, accuracy of the full path; of each other path its route, name, skipped layers, for each stage
        accuracy with interval and paired test against the full path, and `brought`: what each stage brings over the
        one before.
    """
    names = list(right)
    base = right[names[0]][0]
    paths = []
    for at, route in enumerate(routes):
        if route == full_route(len(route)):
            continue
        stages = {name: _share(lines[at]) | {"minus_full": paired(base, lines[at])} for name, lines in right.items()}
        brought = {f"{new} - {old}": paired(right[old][at], right[new][at]) for old, new in zip(names, names[1:])}
        one = {"route": list(route), "path": path_name(route), "skipped": route.count(SKIP), "layers": sum(route)}
        paths.append(one | {"stages": stages, "brought": brought})
    return {"n": len(base), "base": _share(base), "paths": paths}


def _share(right: Sequence[bool]) -> dict:
    return {"accuracy": sum(right) / len(right), "ci95": wilson_interval(sum(right), len(right))}


def print_stages(worth: dict) -> None:
    """A table on the terminal."""
    names = list(worth["paths"][0]["stages"])
    rows = []
    for path in worth["paths"]:
        shares = [
            "{:.3f} ({:.3f}-{:.3f})".format(path["stages"][name]["accuracy"], *path["stages"][name]["ci95"])
            for name in names
        ]
        last = list(path["brought"].values())[-1]
        gain = "{:+.3f} ({:+.3f} to {:+.3f})".format(last["difference"], *last["ci95"])
        rows.append([str(path["layers"]), *shares, gain, f"{last['p']:.3f}"])
    title = f"accuracy by path, {worth['n']} questions, full model {worth['base']['accuracy']:.3f}"
    print_table(title, ("layers", *names, "last stage brings", "p"), rows)


def plot_stages(worth: dict, path: Path, title: str) -> None:
    """Accuracy by executed layers, a line a stage, as PNG."""
    figure, axes = plt.subplots(figsize=(9, 4.5))
    ordered = sorted(worth["paths"], key=lambda one: one["layers"])
    names = list(ordered[0]["stages"])
    for at, name in enumerate(names):
        shares = [one["stages"][name] for one in ordered]
        values = [share["accuracy"] for share in shares]
        spread = [[abs(share["ci95"][end] - share["accuracy"]) for share in shares] for end in (0, 1)]
        places = [one["layers"] + 0.08 * (at - len(names) / 2) for one in ordered]
        axes.errorbar(places, values, yerr=spread, marker="o", markersize=4, capsize=2, label=name)
    axes.axhline(worth["base"]["accuracy"], color="black", linestyle="--", label="full model")
    axes.set(xlabel="layers executed", ylabel=f"accuracy, n = {worth['n']}", ylim=(0, None), title=title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
