"""What routing could gain on a dense table, before any router is trained: shares of variance, and cross-fitted gains.

No figure takes the best of many verdicts of a question (that is called hindsight, and is shown under that name alone):
what chooses a path for a question has not seen its verdicts. Two policies are tried, each at several costs of a layer:

- data set: the path that is best on the other questions of the same data set; an oracle of task identity.
- text: ridge regression from cheap features of the prompt's text (`text_features`) to the rewards of all paths. It is a
  lower bound of what a router can gain: one that reads states of the model knows more. A gain of it is real; none of
  it does not prove that there is none.

The gain is over the best static use of the menu at equal mean layers: one path, or two of them mixed by a coin, chosen
on other questions as well (the upper concave hull). Intervals are percentiles of a paired bootstrap over questions,
with policies and hulls held as they were fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from data_models.path_notation import write_path
from routing.common.errors import UserError
from routing.common.paired_bounds import Pairs, loss_p_value
from routing.labels.records import example_of
from routing.labels.table import Table
from routing.search.routes import Route, route_length, to_path
from routing.tasks.examples import held_out_key
from routing.tasks.variants import commuted
from routing.training.value.crossfit import crossfit, fold_of
from routing.training.value.estimators import Ridge
from routing.training.value.frontier import chosen_paths
from routing.training.value.text_features import text_features

COSTS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.05)
# Some pieces of text tell nearly all, such as the name of a task: they must be able to count in full.
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0, np.inf)
BOOTSTRAPS = 1000
LEVEL = 0.05


# Shares of variance.


@dataclass(frozen=True)
class Effects:
    """Sums of squares of a table's parts, which are orthogonal and add up to its total.

    Attributes:
        question, path, by_dataset: of the main effects, and of path × data set.
        residual: [N, K], what is left: path × question, and noise.
        freedom: degrees of freedom of the residual.
    """

    question: float
    path: float
    by_dataset: float
    residual: np.ndarray
    freedom: int
    counts: tuple[int, int, int]  # questions, paths, data sets


def effects(rewards: np.ndarray, datasets: Sequence[str]) -> Effects:
    """Analysis of variance of rewards [N, K] with questions nested in data sets."""
    count, paths = rewards.shape
    mean, of_question, of_path = rewards.mean(), rewards.mean(1), rewards.mean(0)
    sets, index = np.unique(np.asarray(datasets), return_inverse=True)
    within = np.array([rewards[index == at].mean(0) for at in range(len(sets))])  # [D, K]
    within -= within.mean(1, keepdims=True)
    beside = within[index]  # [N, K]: path effects of the question's data set
    residual = rewards - of_question[:, None] - beside
    return Effects(
        paths * float(((of_question - mean) ** 2).sum()),
        count * float(((of_path - mean) ** 2).sum()),
        float(((beside - (of_path - mean)) ** 2).sum()),
        residual,
        (count - len(sets)) * (paths - 1),
        (count, paths, len(sets)),
    )


def variance_shares(table: Table, again: Table | None = None) -> dict:
    """Shares of the variance of rewards; what noise adds to each is taken out and counted with path × question.

    Args:
        again: the same questions, in the same order, in another wording. Then path × question is parted into what
            returns under the other wording (`stable`) and noise.
    """
    own = effects(table.rewards, table.datasets)
    squares = float((own.residual**2).sum())
    total = own.question + own.path + own.by_dataset + squares
    if total == 0:
        raise UserError("all rewards of the table are the same, so there is nothing to route by. Give more questions.")
    noise = squares / max(own.freedom, 1)
    count, paths, sets = own.counts
    found = {
        "question": max(own.question - (count - 1) * noise, 0.0) / total,
        "path": max(own.path - (paths - 1) * noise, 0.0) / total,
        "path × data set": max(own.by_dataset - (sets - 1) * (paths - 1) * noise, 0.0) / total,
    }
    rest = 1 - sum(found.values())
    if again is None:
        return found | {"path × question, and noise": rest}
    other = effects(again.rewards, again.datasets)
    product = (own.residual * other.residual).sum(1)  # [N]
    sizes = (own.residual**2).sum(1), (other.residual**2).sum(1)

    def correlation(weights: np.ndarray) -> float:
        scale = np.sqrt((weights @ sizes[0]) * (weights @ sizes[1]))
        return float(weights @ product / scale) if scale > 0 else 0.0

    stable = correlation(np.ones(count))
    drawn = [correlation(weights) for weights in bootstrap_counts(count, seed=0)]
    means = [part.rewards.mean(1) for part in (table, again)]
    return found | {
        "path × question": rest * max(stable, 0.0),
        "noise": rest * (1 - max(stable, 0.0)),
        "returns under other words": {
            "of path × question": stable,
            "ci95": np.quantile(drawn, [0.025, 0.975]).tolist(),
            "of question": float(np.corrcoef(*means)[0, 1]) if min(map(np.ptp, means)) > 0 else 0.0,
        },
    }


def matched(table: Table, again: Table) -> tuple[Table, Table]:
    """The questions that both tables have, in the order of the first; the second has them in another wording.

    Raises:
        UserError: for other menus, or no question in common.
    """
    if table.routes != again.routes:
        raise UserError("--again has another menu than LABELS. Make both with the same --menu.")
    places = {identity: at for at, identity in enumerate(again.ids)}
    pairs = []
    for at, record in enumerate(table.records):
        example = example_of(record)
        # In other words a + b is b + a, which has another id.
        other = places.get(replace(example, question=commuted(example.question)).id, places.get(example.id))
        if other is not None:
            pairs.append((at, other))
    if len(pairs) < 2:
        raise UserError(
            "--again has none of the questions of LABELS. Make it with the same --dataset, --split, --num_samples, "
            "--seed and --menu, and --wording 1."
        )
    return _rows(table, [at for at, _ in pairs]), _rows(again, [other for _, other in pairs])


def _rows(table: Table, chosen: list[int]) -> Table:
    lists = ([part[at] for at in chosen] for part in (table.datasets, table.ids, table.records, table.origins))
    return Table(table.routes, table.rewards[chosen], *lists, table.headers)


# Policies.


def folds_of(table: Table, folds: int) -> np.ndarray:
    """[N] fold of each question."""
    found = np.array([fold_of(held_out_key(example_of(record)), folds) for record in table.records])
    if len(set(found.tolist())) < 2:
        raise UserError(f"{len(found)} questions are too few to choose on some and judge on others. Label more.")
    return found


def dataset_estimates(table: Table, folds: np.ndarray) -> np.ndarray:
    """[N, K] mean rewards of the other folds' questions of the same data set; of all, where there are none."""
    names, found = np.asarray(table.datasets), np.empty_like(table.rewards)
    for fold in np.unique(folds):
        for name in np.unique(names):
            learned = (folds != fold) & (names == name)
            learned = learned if learned.any() else folds != fold
            found[(folds == fold) & (names == name)] = table.rewards[learned].mean(0)
    return found


def text_estimates(table: Table, folds: np.ndarray) -> np.ndarray:
    """[N, K] rewards estimated from the prompt's text by ridge regression on the other folds."""
    features = text_features([record["prompt"] for record in table.records])
    return crossfit(Ridge(STRENGTHS).predict, features, table.rewards, folds.tolist()).estimates


# Static paths.


def hull(layers: np.ndarray, means: np.ndarray) -> list[int]:
    """Paths, by layers, whose mixtures are the best static use of a menu at each mean number of layers."""
    order = sorted(range(len(layers)), key=lambda k: (layers[k], -means[k]))
    found: list[int] = []
    for k in order:
        if found and means[k] <= means[found[-1]]:
            continue
        while len(found) > 1 and _turns_up(layers, means, found[-2], found[-1], k):
            found.pop()
        found.append(k)
    return found


def _turns_up(layers, means, a: int, b: int, c: int) -> bool:
    return (means[b] - means[a]) * (layers[c] - layers[b]) <= (means[c] - means[b]) * (layers[b] - layers[a])


def mixed(layers: np.ndarray, means: np.ndarray, vertices: list[int], at: np.ndarray) -> np.ndarray:
    """[B] rewards of the mixtures of a hull at mean layers `at` [B].

    Args:
        means: [B, K].
    """
    steps = layers[vertices].astype(float)
    if len(vertices) == 1:
        return means[:, vertices[0]]
    place = np.clip(np.searchsorted(steps, at), 1, len(steps) - 1)
    share = np.clip((at - steps[place - 1]) / (steps[place] - steps[place - 1]), 0, 1)
    rows = np.arange(len(at))
    low, high = np.asarray(vertices)[place - 1], np.asarray(vertices)[place]
    return (1 - share) * means[rows, low] + share * means[rows, high]


def bootstrap_counts(count: int, seed: int, times: int = BOOTSTRAPS) -> np.ndarray:
    """[times, count] how often each question is drawn."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=times).astype(float)


@dataclass
class Gain:
    """What a policy reaches at a cost, and how its gain over static paths varies over draws of questions.

    Attributes:
        policy: data set, text or other wording.
        drawn: [B + 1, 3] gain, difference to the full path and layers: as seen, then of each bootstrap.
    """

    policy: str
    cost: float
    reward: float
    static: float
    drawn: np.ndarray

    def row(self, lower: float | None) -> dict:
        seen, drawn = self.drawn[0], self.drawn[1:]
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        return {
            "policy": self.policy,
            "cost": self.cost,
            "layers": seen[2],
            "reward": self.reward,
            "static": self.static,
            "gain": seen[0],
            "gain_ci95": [low[0], high[0]],
            "gain_lower_bound": lower,
            "difference": seen[1],
            "difference_ci95": [low[1], high[1]],
        }


def gain_of(
    policy: str,
    cost: float,
    chosen: np.ndarray,
    table: Table,
    folds: np.ndarray,
    counts: np.ndarray,
    learned: np.ndarray | None = None,
) -> Gain:
    """The gain of paths [N] that were chosen without seeing the questions' rewards.

    Args:
        counts: [B, N] of the bootstrap.
        learned: rewards that the static paths are chosen by, of the other folds; None: the table's.
    """
    rewards, layers = table.rewards, table.layers
    learned = rewards if learned is None else learned
    count = len(rewards)
    weights = np.concatenate([np.ones((1, count)), counts]) / count  # [B + 1, N]
    own, length = rewards[np.arange(count), chosen], layers[chosen].astype(float)
    at = weights @ length
    static = np.zeros(len(weights))
    for fold in np.unique(folds):
        inside = folds == fold
        vertices = hull(layers, learned[~inside].mean(0))
        static += mixed(layers, weights[:, inside] @ rewards[inside], vertices, at)
    reached = weights @ own
    if (chosen == chosen[0]).all():  # One path for all inputs is a static path itself, whatever the folds chose.
        static = np.maximum(static, reached)
    drawn = np.stack([reached - static, weights @ (own - rewards[:, 0]), at], axis=1)
    return Gain(policy, cost, float(reached[0]), float(static[0]), drawn)


def simultaneous_bounds(gains: Sequence[Gain], level: float = LEVEL) -> list[float]:
    """One-sided lower bounds of gains that hold together with confidence 1 - level (bootstrap of the largest t)."""
    seen = np.array([gain.drawn[0, 0] for gain in gains])
    drawn = np.stack([gain.drawn[1:, 0] for gain in gains], axis=1)
    errors = drawn.std(0)
    known = errors > 1e-12
    if not known.any():
        return seen.tolist()
    largest = ((drawn - seen)[:, known] / errors[known]).max(1)
    return (seen - np.quantile(largest, 1 - level) * errors).tolist()


# The report.


def shortest_safe(table: Table, max_loss: float, level: float = LEVEL) -> int:
    """The shortest path that is shown to lose at most `max_loss`, by testing from the longest on until one fails."""
    layers, rewards, kept = table.layers, table.rewards, 0
    order = sorted(range(1, len(layers)), key=lambda k: (-layers[k], -rewards[:, k].mean()))
    for k in order:
        if layers[k] >= layers[0]:
            continue  # It saves nothing.
        lost = rewards[:, 0] - rewards[:, k]
        if set(np.unique(rewards)) <= {0.0, 1.0}:
            p = loss_p_value(Pairs(int((lost > 0).sum()), int((lost < 0).sum()), len(lost)), max_loss)
        else:
            error = lost.std(ddof=1) / np.sqrt(len(lost))
            p = float(norm.cdf((lost.mean() - max_loss) / max(error, 1e-12)))
        if p > level:
            break
        if not kept or layers[k] < layers[kept]:  # Of equally long ones the better comes first.
            kept = k
    return kept


def describe(route: Route) -> str:
    """A path in words."""
    skipped = [str(layer) for layer, count in enumerate(route) if count == 0]
    repeated = [str(layer) for layer, count in enumerate(route) if count == 2]
    parts = [f"without layers {', '.join(skipped)}"] if skipped else []
    parts += [f"with layers {', '.join(repeated)} twice"] if repeated else []
    return f"{route_length(route)} of {len(route)} layers, " + (" and ".join(parts) or "the full path")


def measure(
    table: Table,
    again: Table | None = None,
    costs: Sequence[float] = COSTS,
    folds: int = 10,
    max_loss: float = 0.02,
    seed: int = 0,
) -> dict:
    """Everything that is reported, as it goes into JSON.

    Args:
        again: questions of the table in another wording.
        max_loss: what a static path may lose to be recommended.

    Raises:
        UserError: for tables that cannot be measured or do not belong together.
    """
    if len(table.routes) < 2:
        raise UserError("the menu has the full path alone, so there is nothing to choose. Make one with more paths.")
    parts = (table, None) if again is None else matched(table, again)
    shares = variance_shares(*parts)
    fold = folds_of(table, folds)
    counts = bootstrap_counts(len(table.ids), seed)
    names = list(dict.fromkeys(table.datasets))
    policies = {"data set": dataset_estimates(table, fold)} if len(names) > 1 else {}
    policies["text"] = text_estimates(table, fold)
    none = np.zeros(len(table.routes))

    def gains(policy, estimates, scored, folds_, counts_, learned=None):
        choices = [(cost, chosen_paths(estimates, none, table.layers, cost, 0.0)) for cost in costs]
        return [gain_of(policy, cost, chosen, scored, folds_, counts_, learned) for cost, chosen in choices]

    found = [gain for name, estimates in policies.items() for gain in gains(name, estimates, table, fold, counts)]
    rows = [gain.row(lower) for gain, lower in zip(found, simultaneous_bounds(found), strict=True)]
    repeated = []
    if again is not None:  # One look at the verdicts of one wording, judged by those of the other.
        first, second = parts
        some = folds_of(first, folds)
        own = gains("other wording", first.rewards, second, some, bootstrap_counts(len(first.ids), seed))
        repeated = [gain.row(None) for gain in own]
    means, safe = table.rewards.mean(0), shortest_safe(table, max_loss)
    report = {
        "questions": len(table.ids),
        "repeated_questions": 0 if again is None else len(parts[0].ids),
        "datasets": {name: table.datasets.count(name) for name in names},
        "paths": [
            {"layers": int(length), "reward": float(mean), "route": list(route)} | minus_full(table, at)
            for at, (length, mean, route) in enumerate(zip(table.layers, means, table.routes, strict=True))
        ],
        "by_dataset": {name: table.rewards[np.asarray(table.datasets) == name].mean(0).tolist() for name in names},
        "variance": shares,
        "gains": rows,
        "other_wording": repeated,
        "hindsight": float(table.rewards.max(1).mean()),
        "static_path": {"index": safe, "max_loss": max_loss, "layers": int(table.layers[safe])},
    }
    best = max(rows, key=lambda row: row["gain_lower_bound"])
    report["route"] = bool(best["gain_lower_bound"] > 1e-6)  # More than the last digits of floats.
    report["sentence"] = sentence(report, best, table)
    return report


def minus_full(table: Table, path: int) -> dict:
    """Mean difference of the rewards along a path and the full one, of the same questions, with Wald's interval."""
    gains = table.rewards[:, path] - table.rewards[:, 0]
    mean, half = float(gains.mean()), float(norm.ppf(0.975) * gains.std(ddof=1) / len(gains) ** 0.5)
    return {"minus_full": mean, "minus_full_ci95": [mean - half, mean + half]}


def sentence(report: dict, best: dict, table: Table) -> str:
    """Route, or take which static path."""
    depth, safe = len(table.routes[0]), report["static_path"]
    at = f"at {best['layers']:.1f} of {depth} layers"
    if report["route"]:
        others = [row for row in report["gains"] if row["policy"] != best["policy"] and row["cost"] == best["cost"]]
        reads = {"text": "the text of its prompt", "data set": "the data set of its question"}
        beside = "".join(f"; one that knows {reads[row['policy']]} gains {row['gain']:+.3f}" for row in others)
        return (
            f"Route: a router that knows {reads[best['policy']]} gains {best['gain']:+.3f} over the best static path "
            f"{at}, and at least {best['gain_lower_bound']:+.3f} with 95 % confidence{beside}."
        )
    paths = report["paths"]
    loss = paths[safe["index"]]["reward"] - paths[0]["reward"]
    route = table.routes[safe["index"]]
    static = f"take one static path, {describe(route)} (--path {write_path(to_path(route))})" + (
        f": reward {paths[safe['index']]['reward']:.3f}, {loss:+.3f} beside the full path, and a loss above "
        f"{safe['max_loss']:g} is refuted with 95 % confidence"
        if safe["index"]
        else f": no shorter one is shown to lose at most {safe['max_loss']:g}"
    )
    most = max(report["gains"], key=lambda row: row["gain"])
    error = (most["gain_ci95"][1] - most["gain_ci95"][0]) / (2 * norm.ppf(0.975))
    more = ""
    if most["gain"] > 0 and error > 0:
        needed = report["questions"] * ((norm.ppf(0.95) + norm.ppf(0.8)) * error / most["gain"]) ** 2
        if needed > report["questions"]:
            more = f", which about {needed:.0f} questions would show if it is real"
    return (
        f"Do not route, {static}. On {report['questions']} questions no gain of routing is shown: the largest estimate "
        f"is {most['gain']:+.3f} at {most['layers']:.1f} layers{more}."
    )
