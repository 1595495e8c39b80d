"""How often is the promise of a guarantee broken, and what power has its test? 1,000 draws of calibration questions.

    python benchmarks/guarantee.py
    python benchmarks/guarantee.py --table data/menu-calibration

A draw is what `python -m routing calibrate --max_loss` does: verdicts of the full path and of settings that save ever
more, the sequence of tests, the setting that is kept. The promise is broken where the true loss of that setting is
above the loss that was promised. Worlds: synthetic ones, the hardest among them, in which the loss of every setting is
just above what is allowed; and, with --table, the questions of a dense table drawn with replacement, whose own means
are the truth then, with settings that send ever more questions along a shorter path.

For power the exact test is held against a betting martingale (Waudby-Smith and Ramdas, arXiv 2010.09686, section 4:
predictable plug-in bets, Ville's inequality) and the normal approximation, which promises nothing for finite samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as Rows
from scipy.stats import binomtest, norm
from tqdm import tqdm

from routing.common.errors import run_command
from routing.common.files import write_json
from routing.common.paired_bounds import Pairs, fixed_sequence, loss_p_value
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.table import read_table

RESULTS = Path(__file__).parent / "results" / "value" / "guarantee.json"


def normal_p_value(pairs: Pairs, max_loss: float) -> float:
    """Of the normal approximation, with the variance as seen."""
    difference = (pairs.lost - pairs.gained) / pairs.n
    variance = (pairs.lost + pairs.gained) / pairs.n - difference**2
    return float(norm.cdf((difference - max_loss) / np.sqrt(max(variance, 1e-9) / pairs.n)))


def betting_p_value(differences: np.ndarray, max_loss: float) -> float:
    """Of a betting martingale: 1 / the most that a gambler ever has who bets on losses below `max_loss`.

    Args:
        differences: [n] full - routed, in -1, 0, 1, in the order of the questions.
    """
    gains = max_loss - differences
    counts = np.arange(1, len(gains) + 1)
    # Plug-in mean and variance of the questions before; the first bet rests on a guess.
    mean = np.concatenate([[0.0], (np.cumsum(gains) / (counts + 1))[:-1]])
    variance = np.concatenate([[0.25], ((0.25 + np.cumsum((gains - mean) ** 2)) / (counts + 1))[:-1]])
    bets = np.clip(mean / (variance + mean**2), 0, 0.5 / (1 - max_loss))
    return float(min(1.0, np.exp(-np.cumsum(np.log1p(bets * gains)).max())))


def world(losses: list[float], discordance: list[float]) -> np.ndarray:
    """[S, 3] probabilities that a question is lost, gained or answered alike under each setting."""
    loss, share = np.array(losses), np.array(discordance)
    return np.stack([(share + loss) / 2, (share - loss) / 2, 1 - share], axis=1)


def synthetic(max_loss: float) -> dict[str, np.ndarray]:
    """Worlds by name: what settings lose, in the order in which they are tested."""
    edge = max_loss + 1e-9
    return {
        "every setting just too lossy": world([edge] * 10, [0.1] * 10),
        "every setting just too lossy, little discordance": world([edge] * 10, [max_loss + 0.002] * 10),
        "every setting just too lossy, much discordance": world([edge] * 10, [0.3] * 10),
        "losses grow": world(list(np.linspace(0, 3 * max_loss, 10)), list(np.linspace(0.02, 0.2, 10))),
        "safe but for the last": world([0.0] * 9 + [edge], list(np.linspace(0.02, 0.2, 10))),
        "saving helps, then hurts": world(list(np.linspace(-0.02, 2 * max_loss, 10)), [0.12] * 10),
    }


def draw_counts(chances: np.ndarray, n: int, rng: np.random.Generator) -> list[Pairs]:
    """Counts under each setting. One uniform number a question serves all settings, as one set of questions does."""
    edges = chances.cumsum(1)[:, :2]
    drawn = np.sort(rng.random(n))
    below = np.searchsorted(drawn, edges)  # [S, 2]
    return [Pairs(int(lost), int(both - lost), n) for lost, both in below]


def broken(tested: list[Pairs], losses: np.ndarray, max_loss: float, confidence: float) -> tuple[bool, int]:
    """Whether the setting that is kept loses more than was promised, and how many settings are kept."""
    _, kept = fixed_sequence(range(len(tested)), tested.__getitem__, max_loss, confidence)
    return bool(kept and losses[kept - 1] > max_loss), kept


def judged(name: str, found: list[tuple[bool, int]], n: int, confidence: float) -> dict:
    """Share of broken promises with its exact one-sided bounds; broken too often if even the lower one is above."""
    times = sum(was_broken for was_broken, _ in found)
    low, high = (
        getattr(binomtest(times, len(found), alternative=side).proportion_ci(0.95), edge)
        for side, edge in (("greater", "low"), ("less", "high"))
    )
    return {
        "world": name,
        "questions": n,
        "draws": len(found),
        "broken": times / len(found),
        "at_least": float(low),
        "at_most": float(high),
        "holds": bool(low <= 1 - confidence),
        "settings_kept": float(np.mean([kept for _, kept in found])),
    }


def simulate(chances: np.ndarray, n: int, draws: int, max_loss: float, confidence: float, seed: int) -> list:
    """(broken, settings kept) of each draw from a synthetic world."""
    rng, losses = np.random.default_rng(seed), chances[:, 0] - chances[:, 1]
    return [broken(draw_counts(chances, n, rng), losses, max_loss, confidence) for _ in range(draws)]


def table_settings(rewards: np.ndarray, layers: np.ndarray, seed: int) -> np.ndarray:
    """[S, N] rewards of settings that save ever more: the j-th sends a share of the questions, drawn at random, along
    the j-th path by length, as a router does that knows nothing."""
    rng = np.random.default_rng(seed)
    order = sorted(range(1, rewards.shape[1]), key=lambda k: -layers[k])
    rank = rng.random(len(rewards))
    shares = np.linspace(0, 1, 3 * len(order) + 1)[1:]
    rows, routed = [], rewards[:, 0].copy()
    for at, share in enumerate(shares):
        path = order[min(at * len(order) // len(shares), len(order) - 1)]
        routed = np.where(rank < share, rewards[:, path], rewards[:, 0])
        rows.append(routed)
    return np.array(rows)


def simulate_table(folders: list[Path], n: int, draws: int, max_loss: float, confidence: float, seed: int) -> list:
    """(broken, settings kept) of draws of n questions from a dense table, with replacement."""
    table = read_table(folders)
    full, settings = table.rewards[:, 0], table_settings(table.rewards, table.layers, seed)
    losses, rng = full.mean() - settings.mean(1), np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = rng.integers(len(full), size=n)
        difference = full[chosen] - settings[:, chosen]
        tested = [Pairs(int((row > 0).sum()), int((row < 0).sum()), n) for row in difference]
        found.append(broken(tested, losses, max_loss, confidence))
    return found


def power(n: int, loss: float, discordance: float, draws: int, max_loss: float, confidence: float, seed: int) -> dict:
    """Share of draws in which a loss below the allowed one is shown, by test."""
    rng = np.random.default_rng(seed)
    chances = world([loss], [discordance])[0]
    shown = {"exact": 0, "betting": 0, "normal": 0}
    for _ in range(draws):
        differences = rng.choice([1, -1, 0], size=n, p=chances)
        pairs = Pairs(int((differences == 1).sum()), int((differences == -1).sum()), n)
        p = {
            "exact": loss_p_value(pairs, max_loss),
            "betting": betting_p_value(differences, max_loss),
            "normal": normal_p_value(pairs, max_loss),
        }
        for name, value in p.items():
            shown[name] += value <= 1 - confidence
    setting = {"questions": n, "loss": loss, "discordance": discordance, "draws": draws}
    return setting | {name: count / draws for name, count in shown.items()}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="calibration sets of each world")
    parser.add_argument("--questions", type=int, default=1500, help="in a calibration set")
    parser.add_argument("--max_loss", type=float, default=0.02)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--table", type=Path, nargs="+", default=[], help="label folders of a menu, to draw from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file for the results")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    shared = (arguments.draws, arguments.max_loss, arguments.confidence, arguments.seed)
    results = []
    for name, chances in tqdm(synthetic(arguments.max_loss).items(), desc="worlds"):
        for n in (arguments.questions // 5, arguments.questions):
            results.append(judged(name, simulate(chances, n, *shared), n, arguments.confidence))
    if arguments.table:
        n = arguments.questions
        results.append(judged("a dense table", simulate_table(arguments.table, n, *shared), n, arguments.confidence))
    powers = [
        power(n, loss, discordance, *shared)
        for n in tqdm((arguments.questions, 2 * arguments.questions), desc="power")
        for loss in (0.0, arguments.max_loss / 2)
        for discordance in (0.05, 0.1, 0.2)
    ]
    rows = Rows(title=f"promises of a loss of at most {arguments.max_loss:g}, {arguments.confidence:.0%} confidence")
    for column in ("world", "questions", "broken", "at most (95 %)", "settings kept"):
        rows.add_column(column)
    for r in results:
        rows.add_row(
            r["world"], str(r["questions"]), f"{r['broken']:.1%}", f"{r['at_most']:.1%}", f"{r['settings_kept']:.1f}"
        )
    tests = Rows(title="power: share of draws in which the loss is shown to be at most what is allowed")
    for column in powers[0]:
        tests.add_column(column)
    for line in powers:
        tests.add_row(*(f"{value:g}" for value in line.values()))
    console = Console(width=120)
    console.print(rows)
    console.print(tests)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.output,
        {
            "promises": results,
            "power": powers,
            "arguments": {name: str(value) for name, value in vars(arguments).items() if name != "output"},
            "hardware": hardware(),
            "date": today(),
            "versions": versions(),
            "git_commit": git_commit(),
        },
    )
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    run_command(main)
