"""The comparison of query routers and baselines as table, Markdown and picture."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from routing.common.tables import markdown_table, print_table

FEW = 200  # questions, below which an interval is too wide to tell methods apart
COLUMNS = ("method", "stands in", "pruned", "score", "95 % interval", "− unpruned", "p", "− bare", "p", "speed-up")
STYLES = {"static": ("tab:orange", "s"), "influence": ("tab:green", "^"), "random": ("tab:gray", "x")}


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def table_rows(result: dict) -> list[list[str]]:
    """Cells of each method; the seeds of a random one in one row, as the range of their scores."""
    rows, seeds = [], defaultdict(list)
    for row in result["methods"]:
        if row["family"] == "random":
            seeds[row["name"].rsplit(", seed", 1)[0], row["skip_action"]].append(row)
            continue
        speed = result["speed"].get(f"{row['name']}, {row['skip_action']}") or result["speed"].get(row["name"])
        paired, bare = row["against_unpruned"], row.get("against_no_adapters")
        rows.append(
            [
                row["name"],
                {"adapter": "adapters", "identity": "nothing"}[row["skip_action"]] if row["pruned"] else "–",
                f"{row['pruned']:.2f}",
                f"{row['score']:.3f}",
                "{:.3f} – {:.3f}".format(*row["ci95"]),
                _signed(paired["score_difference"]) if row["family"] != "unpruned" else "–",
                _p(paired["p"]) if row["family"] != "unpruned" else "–",
                _signed(bare["score_difference"]) if bare else "–",
                _p(bare["p"]) if bare else "–",
                ", ".join(f"{entry['speedup']:.2f}" for entry in speed) if speed else "–",
            ]
        )
    for (name, action), group in seeds.items():
        scores = [row["score"] for row in group]
        rows.append(
            [
                f"{name}, {len(group)} seeds",
                {"adapter": "adapters", "identity": "nothing"}[action],
                f"{group[0]['pruned']:.2f}",
                f"{min(scores):.3f} to {max(scores):.3f}",
                *["–"] * 6,
            ]
        )
    return rows


def comparison_text(result: dict) -> str:
    """The table, and how to read it."""
    tokens = ", ".join(map(str, result["arguments"]["speed_tokens"]))
    return (
        markdown_table(COLUMNS, table_rows(result))
        + f"\n\n{result['n']} test questions ({result['data']}), score {result['score']}, {result['model']} with "
        f"{result['depth']} layers; p: McNemar's test of right answers, or for graded scores of random signs; bare: "
        "the same layers with nothing in their place; speed-up: over the stock model at batch 1, router included, with "
        f"{tokens} generated tokens. {result['hardware']}, {result['date']}.\n" + few_questions(result)
    )


def few_questions(result: dict) -> str:
    """A warning where there are too few questions; published comparisons rested on 20 to 33."""
    if result["n"] >= FEW:
        return ""
    return f"\nOnly {result['n']} questions: small differences are noise. Give --num_samples {FEW} or more.\n"


def print_comparison(result: dict) -> None:
    """The table on the terminal, and the tests of routers against baselines."""
    title = f"{result['n']} test questions, {result['data']}, score {result['score']}"
    print_table(title, COLUMNS, table_rows(result), left=COLUMNS[:2], width=160)
    print(few_questions(result), end="")
    for test in result["router_tests"]:
        print(
            f"{test['router']} ({test['pruned']:.2f} pruned) against {test['control']} ({test['control_pruned']:.2f}): "
            f"{_signed(test['score_difference'])}, {test['gained']} gained, {test['lost']} lost, p = {_p(test['p'])}"
        )
    for proof in result["generate_agrees"]:
        print(
            f"{proof['name']}: generate() takes the same routes for {proof['same_routes']} and gives the same answers "
            f"to {proof['same_answers']} of {proof['questions']} questions"
        )
    for name, entries in result["speed"].items():
        for entry in entries:
            if "decision_ms" in entry:
                print(
                    f"{name}: the router decides in {entry['decision_ms']:.1f} ms, {entry['decision_share']:.1%} of a "
                    f"request with {entry['new_tokens']} new tokens"
                )


def plot_comparison(result: dict, path: Path) -> None:
    """Score against pruned layers: baselines as lines, solid with adapters, routers as points with intervals."""
    figure, axis = plt.subplots(figsize=(11, 5.5))
    unpruned = next(row for row in result["methods"] if row["family"] == "unpruned")
    lines = defaultdict(list)
    for row in result["methods"]:
        if row["family"] in STYLES and "like" not in row["name"]:
            lines[row["family"], row["skip_action"]].append((row["pruned"], row["score"]))
    for (family, action), points in sorted(lines.items()):
        by_size = defaultdict(list)
        for size, score in [(0.0, unpruned["score"]), *points]:
            by_size[size].append(score)
        sizes = sorted(by_size)
        colour, marker = STYLES[family]
        axis.plot(
            sizes, [sum(by_size[size]) / len(by_size[size]) for size in sizes], color=colour, marker=marker,
            linestyle="-" if action == "adapter" else ":", markersize=4,
            label=f"{family}, {'adapters' if action == 'adapter' else 'nothing in their place'}",
        )  # fmt: skip
    own = {Path(name).name for name in result["arguments"]["checkpoints"]}
    routers = [row for row in result["methods"] if row["family"] == "router"]
    for at, row in enumerate(row for row in routers if row["name"] in own):
        colour = f"C{at + 3}"
        spread = [[abs(end - row["score"])] for end in row["ci95"]]
        axis.errorbar(row["pruned"], row["score"], yerr=spread, fmt="D", capsize=3, color=colour, label=row["name"])
        fixed = [(r["pruned"], r["score"]) for r in routers if r["name"].startswith(f"{row['name']}, ")]
        if fixed:
            axis.plot(*zip(*fixed), color=colour, linestyle="--", linewidth=1, label=f"{row['name']}, number fixed")
    axis.axhline(unpruned["score"], color="black", linewidth=0.8, linestyle="--", label="unpruned")
    axis.axhspan(*unpruned["ci95"], color="black", alpha=0.06)
    axis.set(
        xlabel=f"layers pruned of {result['depth']}", ylabel=f"{result['score']}, mean of {result['n']} test questions",
        title=f"{result['model']}, {result['data']}", ylim=(min(0, axis.get_ylim()[0]), None),
    )  # fmt: skip
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
