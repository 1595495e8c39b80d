"""Pictures of runs of training end to end. Each is written to a path or into a binary buffer, under a title.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import BinaryIO

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from routing.report.groups import Group, Point, curve
from routing.report.plots import save

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
GREY = "#c8c8c8"
# Method -> name in pictures, marker, color where methods are compared.
LOOKS = {
    "own": ("as trained", "o", "#0072B2"),
    "threshold": ("another threshold", "v", "#56B4E9"),
    "full": ("full depth", "D", "#000000"),
    "base": ("base", "*", "#CC79A7"),
    "static": ("static", "s", "#009E73"),
    "random_layers": ("random layers", "+", "#E69F00"),
    "random_tokens": ("random tokens", "x", "#D55E00"),
}
COMPONENTS = {
    "train_loss": "whole loss",
    "ce_loss": "cross-entropy",
    "kd_loss": "distillation",
    "gate_loss": "gate loss",
    "target_loss": "target loss",
}

File = Path | BinaryIO


def look(number: int) -> dict:
    """Color and line of the n-th group."""
    return {"color": COLORS[number % len(COLORS)], "linestyle": LINES[number // len(COLORS) % len(LINES)]}


def wrapped(name: str, width: int = 30) -> str:
    return "\n".join(textwrap.wrap(name, width))


def legend(figure: plt.Figure, handles: list, names: list[str]) -> None:
    """Below the axes, in as many columns as the names leave room for."""
    widest = max(map(len, names))
    columns = max(min(int(figure.get_figwidth() * 12 / (widest + 6)), len(names)), 1)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def plot_validation(groups: Sequence[Group], file: File, title: str) -> None:
    """Validation loss by step: each run thin, the mean of each group thick."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    handles = []
    for number, group in enumerate(groups):
        for run in group.runs if len(group.runs) > 1 else ():
            steps, losses = zip(*((row["step"], row["validation_loss"]) for row in run.metrics))
            axes.plot(steps, losses, color=look(number)["color"], alpha=0.35, linewidth=0.8)
        steps, losses = curve(group, lambda row: row["validation_loss"])
        handles += axes.plot(steps, losses, **look(number), linewidth=1.8, marker="o", markersize=3)
    axes.set(xlabel="step", ylabel="validation loss, nats a token", title=title)
    axes.grid(alpha=0.3)
    legend(figure, handles, [group.name for group in groups])
    save(figure, file)


def plot_final_losses(points: Sequence[Point], file: File, title: str) -> None:
    """A bar for each group with its interval, dots for its runs."""
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.5 * len(points)), layout="constrained")
    for place, point in enumerate(points):
        axes.barh(place, point.loss, 0.7, color=COLORS[0])
        axes.text(0.02 * point.loss, place, f"{point.loss:.4f}", va="center", color="white", fontsize=9)
        if point.interval:
            axes.errorbar(point.loss, place, xerr=errors(point.loss, point.interval), color="black", capsize=3)
        losses = [run.result["loss"] for run in point.group.runs]
        axes.scatter(losses, [place] * len(losses), color=COLORS[4], edgecolors="black", s=16, zorder=3, linewidths=0.5)
    axes.set_yticks(range(len(points)), [wrapped(point.group.name) for point in points], fontsize=9)
    axes.set_ylim(len(points) - 0.3, -0.7)
    axes.set(xlabel="loss, nats a token, with 95 % interval; dots: single runs", title=title)
    save(figure, file)


def errors(middle: float, interval: Sequence[float]) -> list[list[float]]:
    return [[max(middle - interval[0], 0)], [max(interval[1] - middle, 0)]]


def plot_components(groups: Sequence[Group], file: File, title: str) -> None:
    """Parts of the training loss by step, a panel each, means over the runs of each group."""
    shown = [name for name in COMPONENTS if any(curve(group, _cell(name))[0] for group in groups)]
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    size = (3.6 * max(columns, 2), 2.9 * rows + 0.8)
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    handles = {}
    for axes, name in zip(panels.flat, shown):
        for number, group in enumerate(groups):
            steps, values = curve(group, _cell(name))
            if steps:
                handles[group.name] = axes.plot(steps, values, **look(number), linewidth=1.4, marker="o", markersize=2)[
                    0
                ]
        axes.set_title(COMPONENTS[name], fontsize=10)
        axes.grid(alpha=0.3)
        axes.set_xlabel("step")
    for axes in panels.flat[len(shown) :]:
        axes.remove()
    figure.suptitle(title)
    legend(figure, list(handles.values()), list(handles))
    save(figure, file)


def _cell(name: str):
    return lambda row: row[name]


def plot_temperature(groups: Sequence[Group], file: File, title: str) -> None:
    """Active layers against temperature, a line for each gumbel run; time goes to the right."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    handles = {}
    for number, group in enumerate(groups):
        for run in group.runs if group.arguments["objective"] == "gumbel" else ():
            rows = [row for row in run.metrics if row["temperature"] is not None]
            across, up = [row["temperature"] for row in rows], [row["active_layers"] for row in rows]
            (handles[group.name],) = axes.plot(across, up, **look(number), marker="o", markersize=3, linewidth=1.2)
    axes.invert_xaxis()
    axes.set(xlabel="temperature, falling in training", ylabel="layers executed a token", title=title)
    axes.grid(alpha=0.3)
    legend(figure, list(handles.values()), list(handles))
    save(figure, file)


def plot_speed(points: Sequence[Point], file: File, title: str) -> None:
    """Bars of measured tokens a second, those of the same weights at full depth = 1; a block for each group."""
    shown = [point for point in points if point.speedup is not None and point.method != "full"]
    places, place, ticks = [], 0.0, {}
    for before, point in zip([None, *shown], shown):
        place += 1.6 if before and before.group is not point.group else 1
        places.append(place)
        ticks.setdefault(point.group.name, []).append(place)
    figure, axes = plt.subplots(figsize=(8, 1.8 + 0.26 * place), layout="constrained")
    for place, point in zip(places, shown):
        axes.barh(place, point.speedup, 0.9, color=LOOKS[point.method][2])
        end = point.speedup
        if point.speedup_interval:
            axes.errorbar(end, place, xerr=errors(end, point.speedup_interval), color="black", capsize=2, linewidth=1)
            end = point.speedup_interval[1]
        axes.annotate(
            f"{point.speedup:.2f}×, {point.layers:.1f} layers", (end, place), (5, 0), textcoords="offset points",
            va="center", fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.margins(y=0.02)
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_yticks([mean(own) for own in ticks.values()], list(map(wrapped, ticks)), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, axes.get_xlim()[1] * 1.2)
    axes.set(xlabel="tokens a second, full depth = 1 (dashed)", title=title)
    methods = [method for method in LOOKS if any(point.method == method for point in shown)]
    handles = [plt.Rectangle((0, 0), 1, 1, color=LOOKS[method][2]) for method in methods]
    legend(figure, handles, [LOOKS[method][0] for method in methods])
    save(figure, file)


def plot_pareto(points: Sequence[Point], file: File, title: str) -> None:
    """Loss against executed layers with intervals: families by color, methods by marker, families joined.

    Random controls may be so bad that nothing else can be told apart, so a second panel leaves them out.
    """
    panels = [("all", points)]
    calm = [point for point in points if not point.method.startswith("random")]
    if len(calm) < len(points):
        panels.append(("without random controls", calm))
    families = list(dict.fromkeys(point.group.family for point in points))
    # All families may share a base, which is drawn once for each result.
    bases = {(point.layers, round(point.loss, 4)): point for point in points if point.method == "base"}
    figure, drawn = plt.subplots(
        1, len(panels), figsize=(5.6 * len(panels) + 1, 5.6), layout="constrained", squeeze=False
    )
    for axes, (name, shown) in zip(drawn.flat, panels):
        for number, family in enumerate(families):
            color = COLORS[number % len(COLORS)]
            for method in LOOKS:
                own = sorted(
                    (point for point in shown if point.group.family == family and point.method == method),
                    key=lambda point: point.layers,
                )
                if method != "base":
                    _draw_family(axes, own, color, method)
        _draw_family(axes, list(bases.values()), "black", "base")
        axes.set_title(name if len(panels) > 1 else "", fontsize=10)
        axes.set_xlabel("layers executed a token")
        axes.grid(alpha=0.3)
        axes.margins(x=0.08)
    drawn[0, 0].set_ylabel("loss, nats a token, 95 % interval")
    figure.suptitle(title)
    handles = [Line2D([], [], color=COLORS[n % len(COLORS)], linewidth=4) for n, _ in enumerate(families)]
    methods = [method for method in LOOKS if any(point.method == method for point in points)]
    handles += [Line2D([], [], color="black", marker=LOOKS[method][1], linestyle="none") for method in methods]
    legend(figure, handles, families + [LOOKS[method][0] for method in methods])
    save(figure, file)


def _draw_family(axes: plt.Axes, points: Sequence[Point], color: str, method: str) -> None:
    for point in points:
        error = errors(point.loss, point.interval) if point.interval else None
        axes.errorbar(
            point.layers, point.loss, yerr=error, color=color, marker=LOOKS[method][1], capsize=2, linewidth=0.9,
            markersize={"own": 7, "base": 11}.get(method, 5.5), zorder=4 if method == "base" else 3,
        )  # fmt: skip
    if method in ("own", "static") and len({point.group.name for point in points}) > 1:
        style = "-" if method == "own" else ":"
        axes.plot([point.layers for point in points], [point.loss for point in points], style, color=color, linewidth=1)


def plot_quality(groups: Sequence[Group], file: File, title: str) -> None:
    """Perplexity of each run, on a logarithmic scale, against the layers it executes."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    handles, seen = [], []
    for number, group in enumerate(groups):
        results = [run.result for run in group.runs]
        perplexities = [float(np.exp(result["loss"])) for result in results]
        marker = "osD^"[number // len(COLORS) % 4]
        color, across = COLORS[number % len(COLORS)], [result["layers"] for result in results]
        handles.append(axes.scatter(across, perplexities, color=color, marker=marker, s=40, alpha=0.8))
        seen += perplexities
    axes.set_yscale("log")
    # Within a decade the logarithmic locator finds a tick or two at most.
    close = max(seen) < 10 * min(seen)
    low, high = min(seen) * 0.95, max(seen) * 1.05
    ticks = [tick for tick in MaxNLocator(7).tick_values(low, high) if tick > 0]
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(ticks) if close else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set(xlabel="layers executed a token", ylabel="perplexity (logarithmic)", title=title)
    axes.grid(alpha=0.3)
    axes.margins(x=0.08)
    legend(figure, handles, [group.name for group in groups])
    save(figure, file)


def skips_layers(group: Group) -> bool:
    return any(run.layers and min(run.layers) < 1 for run in group.runs)


def plot_layer_skips(groups: Sequence[Group], file: File, title: str) -> None:
    """Share of tokens that skip each layer, a panel for each group that skips any, means over its runs."""
    shown = [group for group in groups if skips_layers(group)]
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(5 * columns + 1, 2.3 * rows + 0.6), layout="constrained", squeeze=False, sharey=True
    )
    for axes, group in zip(panels.flat, shown):
        shares = np.mean([run.layers for run in group.runs if run.layers], 0)
        _draw_skips(axes, 1 - shares, int(group.arguments["kept_layers"]))
        axes.set_title(wrapped(group.name, 52), fontsize=9)
    for axes in panels.flat[len(shown) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylabel("share skipped")
    figure.suptitle(title)
    save(figure, file)


def _draw_skips(axes: plt.Axes, skips: Sequence[float], kept: int) -> None:
    axes.axvspan(-0.5, kept - 0.5, color=GREY, alpha=0.5, linewidth=0)
    axes.bar(range(len(skips)), skips, 0.8, color=COLORS[1])
    axes.set(ylim=(0, 1), xlim=(-0.7, len(skips) - 0.3), xlabel="layer (grey: always run)")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def plot_categories(analysis: dict, file: File, title: str) -> None:
    """Mean layers of the tokens of each category; a line at the mean of all tokens."""
    shown = {name: found for name, found in analysis["categories"].items() if found["layers"] is not None}
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for place, found in enumerate(shown.values()):
        axes.barh(place, found["layers"], 0.7, color=COLORS[0])
        axes.text(0.02 * found["layers"], place, f"{found['layers']:.2f}", va="center", color="white")
    axes.axvline(analysis["mean_layers"], color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(shown)), [f"{name}, n {found['tokens']:,}" for name, found in shown.items()])
    axes.invert_yaxis()
    axes.set(xlabel="layers executed a token (dashed: all tokens)", title=title)
    save(figure, file)


def plot_skip_rates(analysis: dict, file: File, title: str) -> None:
    """Share of tokens that skip each layer."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    _draw_skips(axes, analysis["layer_skip_rates"], analysis["kept_layers"])
    axes.set(ylabel="share of tokens that skip it", title=title)
    save(figure, file)
