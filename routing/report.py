"""Tables and pictures of evaluation results."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from rich.console import Console
from rich.table import Table

COLORS = ("#d95f02", "#e8e8e8", "#1b6ca8")  # skip, run, repeat
NAMES = ("skip", "run", "repeat")


def print_table(results: list[dict], console: Console | None = None) -> None:
    """One row for each model and task."""
    table = Table(title="held-out questions, never searched on")
    columns = ("task", "n", "model", "accuracy", "95 % interval", "layers/input", "skip", "run", "repeat", "seconds")
    captions = []
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "model") else "right")
    for result in results:
        for name in ("base", "routed"):
            row = result[name]
            shares = result["route_share"] if name == "routed" else {"skip": 0, "run": 1, "repeat": 0}
            low, high = row["ci95"]
            table.add_row(
                result["task"],
                str(result["n"]),
                name,
                f"{row['accuracy']:.3f}",
                f"{low:.3f} – {high:.3f}",
                f"{row['layers']:.2f}",
                *(f"{shares[share]:.1%}" for share in NAMES),
                f"{row['seconds']:.1f}",
            )
        paired = result["paired"]
        captions.append(
            f"{result['task']}: paired difference {result['routed']['accuracy'] - result['base']['accuracy']:+.3f}: "
            f"{paired['gained']} answers gained, {paired['lost']} lost, McNemar p = {paired['p']:.3f}"
        )
    table.caption = "\n".join(captions)
    (console or Console(width=120)).print(table)


def plot_routes(routes: list[list[int]], path: Path, title: str) -> None:
    """Heatmap of routes, examples × layers, rows ordered by their routes."""
    matrix = np.array(sorted(routes))
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    norm = BoundaryNorm([-0.5, 0.5, 1.5, 2.5], 3)
    image = axes.imshow(
        matrix, aspect="auto", interpolation="nearest", cmap=ListedColormap(COLORS), norm=norm, origin="lower"
    )
    bar = figure.colorbar(image, ticks=[0, 1, 2])
    bar.ax.set_yticklabels(NAMES)
    axes.set(xlabel="layer", ylabel="input, ordered by route", title=title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_layer_rates(routes: list[list[int]], path: Path, title: str) -> None:
    """Share of inputs that skip and that repeat each layer."""
    matrix = np.array(routes)
    layers = np.arange(matrix.shape[1])
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for count, offset in ((0, -0.2), (2, 0.2)):
        rates = (matrix == count).mean(0)
        axes.bar(layers + offset, rates, 0.4, color=COLORS[count], label=NAMES[count])
    axes.set(xlabel="layer", ylabel="share of inputs", ylim=(0, 1), title=title)
    axes.set_xticks(layers[::2])
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_frontier(points: list[dict], path: Path, title: str) -> None:
    """Accuracy with intervals against executed layers, and against measured time (that of dense = 1)."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    styles = {
        "dense": ("black", "D"),
        "routed": ("#1b6ca8", "o"),
        "static": ("#4d9221", "s"),
        "random": ("#d95f02", "x"),
    }
    for axes, label in zip(panels, ("layers executed an input", "time, that of the dense path = 1")):
        for method, (color, marker) in styles.items():
            own = [point for point in points if point["method"] == method]
            across = [point["layers"] if axes is panels[0] else 1 / point["speedup"] for point in own]
            middle = [point["accuracy"] for point in own]
            below = [point["accuracy"] - point["ci95"][0] for point in own]
            above = [point["ci95"][1] - point["accuracy"] for point in own]
            axes.errorbar(
                across, middle, yerr=[below, above], fmt=marker, color=color, label=method, capsize=2, linewidth=0.9
            )
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, 95 % interval")
    panels[0].legend()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
