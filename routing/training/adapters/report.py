"""What each adapter is worth: how near it comes to its layer, and the task score with that layer replaced alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from routing.common.statistics import mcnemar, wilson_interval
from routing.common.tables import print_table
from routing.scoring.along import verdicts_along
from routing.scoring.requests import Request
from routing.search.routes import Route, full_route


def worth_of_layers(
    model,
    tokenizer,
    requests: Sequence[Request],
    batch_size: int,
    folder: Path | None = None,
    key: object = None,
) -> dict:
    """The task score with each layer replaced alone, by its adapter and by nothing.

    Args:
        folder, key: of what is kept for a rerun, see `verdicts_along`.

    Returns:
        base accuracy with interval; of each layer both accuracies, intervals, and McNemar's test of adapter against
        nothing; `over_layers`: how many layers gain by their adapter, how many lose, which of them by more than chance
        (p < 0.05 after Bonferroni's correction), the mean gain over layers and its bootstrap interval over questions.
    """
    depth = model.config.num_hidden_layers
    full = full_route(depth)
    alone = [full[:layer] + (0,) + full[layer + 1 :] for layer in range(depth)]

    def right(routes: list[Route], skip_action: str) -> list[list[bool]]:
        lines = [[route] * len(requests) for route in routes]
        found = verdicts_along(model, tokenizer, requests, lines, skip_action, batch_size, folder=folder, key=key)
        return [[verdict.correct for verdict in line] for line in found]

    base, *identity = right([full, *alone], "identity")
    adapter = right(alone, "adapter")
    layers = []
    for layer, (without, replaced) in enumerate(zip(identity, adapter, strict=True)):
        layers.append(
            {
                "layer": layer,
                "identity": _share(without),
                "adapter": _share(replaced),
                "paired": mcnemar(dict(enumerate(without)), dict(enumerate(replaced))),
            }
        )
    signs = [layer["paired"]["difference"] for layer in layers]
    # All layers are asked the same questions, so those are the units, each with its mean over layers.
    gain = (np.array(adapter, dtype=float) - np.array(identity, dtype=float)).mean(0)
    drawn = gain[np.random.default_rng(0).integers(0, len(gain), (2000, len(gain)))].mean(1)
    over_layers = {
        "better": sum(sign > 0 for sign in signs),
        "worse": sum(sign < 0 for sign in signs),
        "significantly_better": [layer["layer"] for layer in layers if _certain(layer["paired"], 1, len(layers))],
        "significantly_worse": [layer["layer"] for layer in layers if _certain(layer["paired"], -1, len(layers))],
        "mean_gain": float(gain.mean()),
        "ci95": np.quantile(drawn, (0.025, 0.975)).tolist(),
    }
    return {"n": len(requests), "base": _share(base), "layers": layers, "over_layers": over_layers}


def _certain(paired: dict, sign: int, tests: int) -> bool:
    """Whether a paired difference has a sign beyond doubt, with Bonferroni's correction for so many tests."""
    return paired["difference"] * sign > 0 and paired["p"] * tests < 0.05


def _share(right: Sequence[bool]) -> dict:
    return {"accuracy": sum(right) / len(right), "ci95": wilson_interval(sum(right), len(right))}


def print_worth(worth: dict, errors: dict[str, list[float]] | None = None) -> None:
    """A table on the terminal."""
    rows = []
    for row in worth["layers"]:
        layer, paired = row["layer"], row["paired"]
        mse = [f"{errors[name][layer]:.3g}" if errors else "" for name in ("mse", "identity_mse", "relative")]
        shares = [f"{row[name]['accuracy']:.3f}" for name in ("adapter", "identity")]
        rows.append([str(layer), *mse, *shares, str(paired["gained"]), str(paired["lost"]), f"{paired['p']:.3f}"])
    errors_of = ("MSE adapter", "identity", "median ratio")
    print_table(
        f"one layer replaced, {worth['n']} questions, full model {worth['base']['accuracy']:.3f}",
        ("layer", *errors_of, "accuracy adapter", "identity", "gained", "lost", "p"),
        rows,
    )
    signs = worth["over_layers"]
    print(
        f"better with its adapter than without: {signs['better']} layers ({len(signs['significantly_better'])} beyond "
        f"chance), worse: {signs['worse']} ({len(signs['significantly_worse'])}); mean gain over layers "
        f"{signs['mean_gain']:.3f} ({signs['ci95'][0]:.3f} to {signs['ci95'][1]:.3f})"
    )


def plot_worth(worth: dict, errors: dict[str, list[float]] | None, path: Path, title: str) -> None:
    """Errors and accuracies by layer, as PNG."""
    figure, axes = plt.subplots(2 if errors else 1, 1, figsize=(9, 6.5 if errors else 3.6), squeeze=False)
    layers = [row["layer"] for row in worth["layers"]]
    accuracy = axes[-1][0]
    if errors:
        top = axes[0][0]
        for name, label, colour in (("identity_mse", "nothing", "tab:gray"), ("mse", "adapter", "tab:blue")):
            top.plot(layers, errors[name], marker="o", label=label, color=colour)
        top.set(yscale="log", ylabel="mean squared error", title=title)
        top.legend()
    else:
        accuracy.set_title(title)
    kinds = (("identity", "nothing", "tab:gray", -0.15), ("adapter", "adapter", "tab:blue", 0.15))
    for name, label, colour, shift in kinds:
        values = [row[name]["accuracy"] for row in worth["layers"]]
        spread = [[abs(row[name]["ci95"][end] - row[name]["accuracy"]) for row in worth["layers"]] for end in (0, 1)]
        places = [layer + shift for layer in layers]
        accuracy.errorbar(places, values, yerr=spread, fmt="o", markersize=4, capsize=2, label=label, color=colour)
    accuracy.axhline(worth["base"]["accuracy"], color="black", linestyle="--", label="full model")
    accuracy.set(xlabel="the one layer that is replaced", ylabel=f"accuracy, n = {worth['n']}", ylim=(0, None))
    accuracy.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
