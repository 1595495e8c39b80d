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
from routing.report.words import budget_words

# Panels of the frontier: few methods each, or their intervals would hide one another. In all of them stand REFERENCES.
PANELS = {
    "static paths": ("healed", "influence", "shortgpt", "cut", "random", "stochastic_depth"),
    "routers by value, Dr.LLM": ("value", "dr_llm", "dr_llm_verified", "dr_llm_value"),
    "query routers": ("fbc", "dpo", "orpo"),
    "routers trained on text": ("dlr_input", "dlr_token", "reinforce", "lora"),
}
REFERENCES = ("full", "static")
COLORS = ("#1b6ca8", "#d95f02", "#4d9221", "#e7298a", "#7570b3", "#a6761d")
MARKS = "os^vD*"


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
    lines = _lines(rows)
    panels = {name: [m for m in own if m in lines] for name, own in PANELS.items()}
    panels = {name: own for name, own in panels.items() if own} or {"": []}
    columns = min(2, len(panels))
    down = -(-len(panels) // columns)
    shape = {"figsize": (6 * columns, 4.6 * down), "layout": "constrained", "sharex": True, "sharey": True}
    figure, grid = plt.subplots(down, columns, squeeze=False, **shape)
    for axes, (name, members) in zip(grid.flat, panels.items()):
        for method in (m for m in REFERENCES if m in lines):
            _line(axes, lines[method], "#555555", "*" if method == "full" else ".", "--")
        for method, color, mark in zip(members, COLORS, MARKS):
            _line(axes, lines[method], color, mark, "-")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.25)
        # Below: inside it would hide points, which lie anywhere.
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2, frameon=False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(title)
    figure.supxlabel("time of a request, full model = 1 (router included)", fontsize=10)
    figure.supylabel("accuracy", fontsize=10)
    save(figure, path)


def _line(axes: plt.Axes, rows: Sequence[dict], color: str, mark: str, style: str) -> None:
    x, y = [row["seconds"] / row["seconds_full"] for row in rows], [row["accuracy"] for row in rows]
    low, high = zip(*(row["ci95"] for row in rows))
    axes.plot(x, y, style, color=color, marker=mark, markersize=8 if mark == "*" else 5, label=rows[0]["title"])
    if len(rows) > 1:
        axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    else:
        axes.vlines(x, low, high, color=color, alpha=0.5)


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
