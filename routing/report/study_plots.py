"""Pictures of a study: accuracy against measured time, one line a method, and how often each layer runs by method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from routing.report.plots import save

MARKS = "osD^v<>Phd*X"


def _lines(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Rows with a time by method, in order of seconds."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        if row["seconds"] is not None and row["accuracy"] is not None:
            found.setdefault(row["method"], []).append(row)
    return {name: sorted(own, key=lambda row: row["seconds"]) for name, own in found.items()}


def plot_frontier(rows: Sequence[dict], path: Path | BinaryIO, title: str) -> None:
    """Accuracy against the time of a request, that of the full model = 1; shaded: 95 % intervals of accuracy.

    Args:
        rows: of one model and task, one seed or all together.
    """
    figure, axes = plt.subplots(figsize=(10, 6.4), layout="constrained")
    colors = plt.get_cmap("tab20").colors
    for at, (_, own) in enumerate(_lines(rows).items()):
        x = [row["seconds"] / row["seconds_full"] for row in own]
        y, low, high = [row["accuracy"] for row in own], *zip(*(row["ci95"] for row in own))
        color, mark = colors[at % len(colors)], MARKS[at % len(MARKS)]
        axes.plot(x, y, color=color, marker=mark, linewidth=1.3, label=own[0]["title"])
        if len(own) > 1:
            axes.fill_between(x, low, high, color=color, alpha=0.1, linewidth=0)
        else:
            axes.vlines(x, low, high, color=color, alpha=0.5)
    axes.set(xlabel="time of a request, full model = 1 (router included)", ylabel="accuracy", title=title)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)


def plot_run_shares(rows: Sequence[dict], path: Path | BinaryIO, title: str) -> None:
    """Heatmap, methods at their budgets × layers: how often a question runs each layer, on average."""
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.2 * len(rows)), layout="constrained")
    shares = np.array([row["run_shares"] for row in rows])
    image = axes.imshow(
        shares, aspect="auto", interpolation="nearest", cmap="cividis", vmin=0, vmax=max(1.0, shares.max())
    )
    axes.set_yticks(range(len(rows)), [f"{row['title']}, {budget_words(row['budget'])}" for row in rows], fontsize=7)
    axes.set(xlabel="layer", title=title)
    figure.colorbar(image, label="runs of the layer in a question, mean")
    save(figure, path)


def budget_words(budget) -> str:
    """A budget as tables tell it."""
    return "by itself" if budget == "free" else f"{budget:.0%} fewer"
