"""Pictures of runs of train.py --objective lm; see `run_plots` for colours, files and titles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

from routing.report.hybrid_runs import HybridGroup, HybridRun, middle
from routing.report.plots import save
from routing.report.run_plots import COLORS, File, errors, legend, look, wrapped
from routing.training.language_model.training import SHARE


def draw_curve(axes: plt.Axes, group: HybridGroup, number: int, column: str) -> list:
    """Each run thin, the mean of a group thick, in a band of its 95 % interval over seeds; what there is of it."""
    steps, values = group.curve(column)
    if not steps:
        return []
    if len(group.runs) > 1:
        for run in group.runs:
            own = [(row["step"], row[column]) for row in run.metrics if row[column] is not None]
            axes.plot(*zip(*own), color=look(number)["color"], alpha=0.35, linewidth=0.7)
        bands = [middle(own)[1] for own in values]
        axes.fill_between(steps, *zip(*bands), color=look(number)["color"], alpha=0.12, linewidth=0)
    return axes.plot(steps, [middle(own)[0] for own in values], **look(number), linewidth=1.8, marker="o", markersize=3)


def plot_curves(groups: Sequence[HybridGroup], column: str, label: str, log: bool, file: File, title: str) -> None:
    """One column of metrics.csv by step, of all groups that have it."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    handles, lows, highs = {}, [], []
    for number, group in enumerate(groups):
        if drawn := draw_curve(axes, group, number, column):
            handles[group.name] = drawn[0]
            seen = [row[column] for run in group.runs for row in run.metrics if row[column] is not None]
            lows.append(min(seen))
            highs.append(max(seen))
    if log:
        axes.set_yscale("log")
    # Intervals of two or three seeds may be far wider than all runs; the axis is that of the runs.
    low, high = min(lows), max(highs)
    margin = 0.05 * (high - low or 1)
    axes.set_ylim((low / 1.05, high * 1.05) if log else (low - margin, high + margin))
    axes.set(xlabel="step", ylabel=label, title=title)
    axes.grid(alpha=0.3, which="both")
    legend(figure, list(handles.values()), list(handles))
    save(figure, file)


def plot_bars(
    groups: Sequence[HybridGroup], value: Callable[[HybridRun], float | None], label: str, digits: int, whole: bool,
    file: File, title: str,
) -> None:  # fmt: skip
    """A bar for each group with its interval over seeds, dots for its runs.

    Args:
        whole: let the axis begin at 0; otherwise it is that of the runs, which may lie close together.
    """
    shown = [group for group in groups if group.values(value)]
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.5 * len(shown)), layout="constrained")
    ends = []
    for place, group in enumerate(shown):
        values = group.values(value)
        mean, interval = middle(values)
        axes.barh(place, mean, 0.7, color=COLORS[0])
        if interval:
            axes.errorbar(mean, place, xerr=errors(mean, interval), color="black", capsize=3)
        axes.scatter(values, [place] * len(values), color=COLORS[4], edgecolors="black", s=16, zorder=3, linewidths=0.5)
        ends += [*values, *(interval or ())]
    low, high = min(ends), max(ends)
    left = 0 if whole else max(low - 0.35 * (high - low or 0.1), 0)
    axes.set_xlim(left, high + 0.1 * (high - left))
    for place, group in enumerate(shown):
        mean = middle(group.values(value))[0]
        axes.annotate(f"{mean:.{digits}f}", (left, place), (4, 0), textcoords="offset points", va="center",
                      color="white", fontsize=9)  # fmt: skip
    axes.set_yticks(range(len(shown)), [wrapped(group.name) for group in shown], fontsize=9)
    axes.set_ylim(len(shown) - 0.3, -0.7)
    cut = "" if left == 0 else f"; the axis begins at {left:.{digits}f}"
    axes.set(xlabel=f"{label}, with 95 % interval{cut}; dots: single runs", title=title)
    save(figure, file)


def plot_shares(groups: Sequence[HybridGroup], file: File, title: str) -> None:
    """Share of validation tokens that take softmax in each routed block by step, a panel for each group."""
    shown = [group for group in groups if group.runs[0].blocks]
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(max(4.2 * columns, 6), 3 * rows + 0.8), layout="constrained", squeeze=False, sharey=True
    )
    handles = {}
    for axes, group in zip(panels.flat, shown):
        axes.axhspan(0, 0.01, color=COLORS[1], alpha=0.4, linewidth=0)
        axes.axhspan(0.99, 1, color=COLORS[1], alpha=0.4, linewidth=0)
        for number, block in enumerate(group.runs[0].blocks):
            if drawn := draw_curve(axes, group, number, f"{SHARE}{block}"):
                handles[f"block {block}"] = drawn[0]
        axes.set(ylim=(0, 1), xlabel="step")
        axes.set_title(wrapped(group.name, 46), fontsize=9)
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(shown) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylabel("tokens that take softmax")
    figure.suptitle(title)
    legend(figure, list(handles.values()), list(handles))
    save(figure, file)
