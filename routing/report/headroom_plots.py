"""Pictures of a headroom report: rewards and gains by layers, and rewards by data set and path."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from routing.report.plots import save

LOOKS = {"data set": ("#d95f02", "^"), "text": ("#1b6ca8", "o"), "other wording": ("#7570b3", "d")}


def plot_frontier(report: dict, path: Path | BinaryIO) -> None:
    """Reward against layers of static paths and policies, and the gains of these with their intervals."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    paths = report["paths"]
    left.plot([p["layers"] for p in paths], [p["reward"] for p in paths], "s", color="#4d9221", label="static paths")
    for policy, (color, marker) in LOOKS.items():
        rows = [row for row in report["gains"] + report["other_wording"] if row["policy"] == policy]
        if not rows:
            continue
        layers = [row["layers"] for row in rows]
        name = {"text": "knows the text", "data set": "knows the data set"}.get(policy, "by one look at other words")
        left.plot(layers, [row["reward"] for row in rows], marker, color=color, label=name)
        gains = np.array([row["gain"] for row in rows])
        around = np.abs(np.array([row["gain_ci95"] for row in rows]).T - gains)
        right.errorbar(layers, gains, yerr=around, fmt=marker, color=color, capsize=2, linewidth=0.9)
    right.axhline(0, color="black", linewidth=0.8)
    left.set(xlabel="layers executed an input", ylabel="reward")
    right.set(xlabel="layers executed an input", ylabel="gain over the best static path, 95 % interval")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.suptitle(f"{report['questions']} questions, {len(paths)} paths, cross-fitted", fontsize=10)
    save(figure, path)


def plot_datasets(report: dict, path: Path | BinaryIO) -> None:
    """Heatmap of mean rewards, data sets × paths, the longest path first."""
    names, paths = list(report["by_dataset"]), report["paths"]
    order = sorted(range(len(paths)), key=lambda k: -paths[k]["layers"])
    values = np.array([[report["by_dataset"][name][k] for k in order] for name in names])
    size = (max(6.0, 1 + 0.55 * len(order)), 1.8 + 0.4 * len(names))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    figure.colorbar(image, label="reward")
    axes.set_xticks(range(len(order)), [paths[k]["layers"] for k in order])
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="layers of the path")
    middle = (values.min() + values.max()) / 2
    for (row, column), value in np.ndenumerate(values):
        color = "black" if value > middle else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=7)
    save(figure, path)
