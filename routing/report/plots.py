"""Pictures of routes, evaluations and frontiers. Each is written to a path or into a binary buffer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, ListedColormap
from matplotlib.ticker import MaxNLocator

COLORS = ("#d95f02", "#e8e8e8", "#1b6ca8")  # skip, run, repeat
NAMES = ("skip", "run", "repeat")
LABEL_GAP = 0.065  # of the height of a picture, between names of points
STYLES = {
    "dense": ("black", "D"),
    "base": ("black", "D"),
    "routed": ("#1b6ca8", "o"),
    "static": ("#4d9221", "s"),
    "random": ("#d95f02", "x"),
    "drawn": ("#e6ab02", "+"),
    "dataset": ("#7570b3", "^"),
    "shuffled": ("#a6761d", "v"),
    "published": ("#e7298a", "P"),
}


def save(figure: plt.Figure, path: Path | BinaryIO) -> None:
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def whole_ticks(axes: plt.Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def plot_routes(routes: list[list[float]], path: Path | BinaryIO, title: str) -> None:
    """Heatmap of routes, examples × layers, ordered: counts, or shares of tokens that ran a layer."""
    matrix = np.array(sorted(routes))
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    if np.array_equal(matrix, matrix.round()):
        look = {"cmap": ListedColormap(COLORS), "norm": BoundaryNorm([-0.5, 0.5, 1.5, 2.5], 3)}
        ticks, names = [0, 1, 2], NAMES
    else:
        look = {"cmap": LinearSegmentedColormap.from_list("shares", COLORS[:2]), "vmin": 0, "vmax": 1}
        ticks, names = [0, 0.5, 1], ("no token runs", "half", "all run")
    image = axes.imshow(matrix, aspect="auto", interpolation="nearest", origin="lower", **look)
    bar = figure.colorbar(image, ticks=ticks)
    bar.ax.set_yticklabels(names)
    axes.set(xlabel="layer", ylabel="input, ordered by route", title=title)
    whole_ticks(axes)
    save(figure, path)


def plot_layer_rates(routes: list[list[float]], path: Path | BinaryIO, title: str) -> None:
    """Share of inputs (or of their tokens) that skip and that repeat each layer."""
    matrix = np.array(routes)
    layers = np.arange(matrix.shape[1])
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for count, offset in ((0, -0.2), (2, 0.2)):
        rates = ((matrix - 1) * (count - 1)).clip(0).mean(0)
        axes.bar(layers + offset, rates, 0.4, color=COLORS[count], label=NAMES[count])
    axes.set(xlabel="layer", ylabel="share of inputs", ylim=(0, 1), title=title)
    axes.set_xticks(layers[::2])
    axes.legend()
    save(figure, path)


def plot_layers_histogram(result: dict, path: Path | BinaryIO, title: str) -> None:
    """How many inputs executed how many layers, of the routed model; lines at its mean and at the full depth."""
    histogram = {int(layers): count for layers, count in result["layers_histogram"].items()}
    depth, mean = len(result["routes"][0]), result["routed"]["layers"]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.bar(list(histogram), list(histogram.values()), 0.8, color=STYLES["routed"][0])
    axes.axvline(depth, color="black", linestyle="--", linewidth=1, label=f"all layers once: {depth}")
    axes.axvline(mean, color=STYLES["random"][0], linewidth=1.5, label=f"mean: {mean:.2f}")
    axes.set_xlim(min(*histogram, depth) - 1, max(*histogram, depth) + 1)
    axes.set(xlabel="layers executed an input", ylabel="inputs", title=title)
    whole_ticks(axes)
    axes.legend()
    save(figure, path)


def plot_accuracy(result: dict, path: Path | BinaryIO, title: str) -> None:
    """Accuracy with intervals against executed layers: routed model, base and controls, as far as there are any."""
    points = [{"method": name, **result[name]} for name in ("base", "routed") if result[name]] + result["controls"]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    _draw_points(axes, points, lambda point: point["layers"])
    axes.margins(x=0.1)
    axes.set(xlabel="layers executed an input", ylabel="accuracy, 95 % interval", title=title)
    axes.legend()
    save(figure, path)


def plot_seconds(result: dict, path: Path | BinaryIO, title: str) -> None:
    """Accuracy with intervals against measured time, that of the base = 1, of an evaluation that has a base."""
    points = [{"method": name, **result[name]} for name in ("base", "routed")] + result["controls"]
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    _draw_points(axes, points, lambda point: point["seconds"] / result["base"]["seconds"])
    axes.margins(x=0.1)
    axes.set(xlabel="measured time, that of the base = 1", ylabel="accuracy, 95 % interval", title=title)
    # Points lie close together: their names stand in a column at the right, in the order of accuracy, joined by lines.
    low, high = axes.get_ylim()
    heights = _apart([(point["accuracy"] - low) / (high - low) for point in points], LABEL_GAP)
    for point, height in zip(points, heights, strict=True):
        axes.annotate(
            f"{point.get('name', point['method'])}, {point['layers']:.1f} layers",
            (point["seconds"] / result["base"]["seconds"], point["accuracy"]),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5},
        )
    save(figure, path)


def _apart(heights: list[float], gap: float) -> list[float]:
    """Heights moved up as little as a gap between neighbours asks for, then all down if they pass 1."""
    order = sorted(range(len(heights)), key=lambda at: heights[at])
    moved, last = list(heights), -gap
    for at in order:
        last = moved[at] = max(heights[at], last + gap)
    over = max(0.0, last - 1)
    return [height - over for height in moved]


def plot_frontier(points: list[dict], path: Path | BinaryIO, title: str) -> None:
    """Accuracy with intervals against executed layers, and against measured time (that of dense = 1)."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    for axes, label in zip(panels, ("layers executed an input", "time, that of the dense path = 1")):
        by_layers = axes is panels[0]
        _draw_points(axes, points, lambda point, own=by_layers: point["layers"] if own else 1 / point["speedup"])
        axes.set(xlabel=label)
    panels[0].set_ylabel("accuracy, 95 % interval")
    panels[0].legend()
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def _draw_points(axes: plt.Axes, points: list[dict], across: Callable[[dict], float]) -> None:
    """Accuracies with intervals, a style for each method; points have method, accuracy and ci95."""
    for method, (color, marker) in STYLES.items():
        own = [point for point in points if point["method"] == method]
        if not own:
            continue
        middle = [point["accuracy"] for point in own]
        below = [point["accuracy"] - point["ci95"][0] for point in own]
        above = [point["ci95"][1] - point["accuracy"] for point in own]
        axes.errorbar(
            [across(point) for point in own],
            middle,
            yerr=[below, above],
            fmt=marker,
            color=color,
            label=method,
            capsize=2,
            linewidth=0.9,
        )
    axes.grid(alpha=0.3)
