"""How good is the tree search, and how much of what a search finds is luck?

    .venv/bin/python benchmarks/search_quality.py --json benchmarks/results/search_quality.json \
        --plot benchmarks/results/search_quality.png

The methods of `routing.search.baselines` search the same questions at equal numbers of evaluations (the full path is
not counted), without early stops; up to 50 evaluations with all seeds, to 100 with the first. Intervals are 95 %
bootstrap percentiles over questions, seeds averaged within each.

Luck: the best path found at 50 evaluations is re-tested on the question in other words, beside two controls: the full
path, and the path that was found for another question of the same data set. What the found path gains over the latter
is what a search knows about the question; the rest is luck: any such path would have got it.

Finished groups of questions are kept in --work_dir, so a run that was interrupted continues.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from random import Random

import numpy as np
import torch
from tqdm import tqdm

from routing.common.devices import pick_device
from routing.common.errors import UserError, run_command
from routing.common.files import append_text, write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.labelling import example_rng
from routing.models.base_files import locate_model
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_base_config, load_tokenizer, routed_class
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import Evaluator
from routing.scoring.requests import Request, request_of
from routing.search.baselines import METHODS, static_path
from routing.search.results import SearchResult, Verdict, best_route
from routing.search.routes import Route, full_route, route_length
from routing.tasks import load_examples
from routing.tasks.variants import rephrased

BUDGETS = (10, 20, 50, 100)
FEWER = (1, 2, 4, 8)
FURTHER_SEEDS = 50  # evaluations of the seeds after the first, which alone goes to 100
AT = 50  # evaluations at which found paths are re-tested
LABELS = {
    "random_paths": "random paths",
    "random_chain": "random chain",
    "greedy_deletion": "greedy deletion",
    "beam_deletion": "beam deletion",
    "tree": "tree",
    "tree_prior": "tree, influence prior",
    "tree_margin": "tree, prior and margin reward",
}
SHOWN = tuple(LABELS)


class Questions:
    """Requests of the questions, in their own and in other words."""

    def __init__(self, counts: dict[str, int], split: str, tokenizer):
        self.plain: list[Request] = []
        for name, count in counts.items():
            self.plain += self._requests(load_examples(name, split, count, seed=0), tokenizer)
        self.rephrased = self._requests([rephrased(request.example) for request in self.plain], tokenizer)

    @staticmethod
    def _requests(examples, tokenizer) -> list[Request]:
        return [request_of(example, "auto", tokenizer) for example in examples]


def search_side_by_side(evaluator, requests: list[Request], methods, seeds: int, depth: int) -> list[dict]:
    """All methods and seeds on some questions; verdicts that several searches ask for are shared."""
    evaluator.prepare(requests)
    priors = evaluator.influence(requests)
    running, records = {}, []
    for at, request in enumerate(requests):
        for name in methods:
            reward = "margin" if name == "tree_margin" else "binary"
            if reward == "margin" and request.scoring == "generate":
                continue
            method = METHODS["tree_prior" if name == "tree_margin" else name]
            for seed in range(seeds):
                rng = example_rng(seed, f"{name}/{request.example.id}")
                limit = max(BUDGETS) if seed == 0 else FURTHER_SEEDS
                searching = method(depth, limit, 2.0, rng, priors[at], reward)
                running[at, name, seed] = (searching, next(searching))
    known: dict[tuple[int, Route], Verdict] = {}
    while running:
        wanted = list(dict.fromkeys((at, route) for (at, _, _), (_, route) in running.items()))
        wanted = [key for key in wanted if key not in known]
        known |= zip(wanted, evaluator.verdicts([requests[at] for at, _ in wanted], [route for _, route in wanted]))
        for key, (searching, route) in list(running.items()):
            try:
                running[key] = (searching, searching.send(known[key[0], route]))
            except StopIteration as stop:
                del running[key]
                records.append(record(requests[key[0]], key[1], key[2], stop.value))
    evaluator.release()
    return records


def record(request: Request, method: str, seed: int, result: SearchResult) -> dict:
    """What one search found at each number of evaluations."""
    tried = list(result.verdicts.items())
    best = {budget: best_route(dict(tried[: budget + 1])) for budget in BUDGETS}
    searched = tried[1:]
    return {
        "question": request.example.id,
        "dataset": request.example.dataset,
        "method": method,
        "seed": seed,
        "right": result.base_correct,
        "evaluations": len(searched),
        "right_share": sum(verdict.correct for _, verdict in searched) / max(len(searched), 1),
        "best": {budget: None if route is None else list(route) for budget, route in best.items()},
    }


def summarise(records: list[dict], depth: int) -> dict:
    """For each method and budget: means over questions with intervals."""
    table: dict = {}
    for method in dict.fromkeys(r["method"] for r in records):
        for budget in BUDGETS:
            own = [r for r in records if r["method"] == method and (r["seed"] == 0 or budget <= FURTHER_SEEDS)]
            saved, fixed, layers = defaultdict(list), defaultdict(list), defaultdict(list)
            fewer = {k: defaultdict(list) for k in FEWER}
            for r in own:
                best = r["best"][str(budget)]
                if best is not None:
                    layers[r["question"]].append(sum(best))
                if r["right"]:
                    saved[r["question"]].append(depth - sum(best))
                    for k in FEWER:
                        fewer[k][r["question"]].append(depth - sum(best) >= k)
                else:
                    fixed[r["question"]].append(best is not None)
            table.setdefault(method, {})[budget] = {
                "layers_saved_per_right_answer": interval(saved),
                "kept_with_fewer_layers": {k: interval(fewer[k]) for k in FEWER},
                "wrong_answers_fixed": interval(fixed),
                "mean_layers_of_best_valid_path": interval(layers),
            }
        shares = defaultdict(list)
        for r in records:
            if r["method"] == method:
                shares[r["question"]].append(r["right_share"])
        table[method]["right_share_of_tried_paths"] = interval(shares)
    return table


def interval(values: dict[str, list[float]]) -> dict:
    """Mean over questions of the mean over seeds, with a 95 % bootstrap interval."""
    means = np.array([np.mean(v) for v in values.values()])
    if not len(means):
        return {"mean": None, "low": None, "high": None, "questions": 0}
    draws = np.random.default_rng(0).integers(len(means), size=(2000, len(means)))
    low, high = np.percentile(means[draws].mean(axis=1), [2.5, 97.5])
    return {"mean": float(means.mean()), "low": float(low), "high": float(high), "questions": len(means)}


def ratio_of_saved(records: list[dict], method: str, control: str, depth: int) -> dict:
    """Layers saved per right answer at 50 evaluations, method over control, with a paired bootstrap interval."""
    sums = {name: defaultdict(list) for name in (method, control)}
    for r in records:
        if r["right"] and r["method"] in sums:
            sums[r["method"]][r["question"]].append(depth - sum(r["best"][str(AT)]))
    a, b = (np.array([np.mean(sums[name][q]) for q in sums[method]]) for name in (method, control))
    draws = np.random.default_rng(0).integers(len(a), size=(2000, len(a)))
    low, high = np.percentile(a[draws].mean(axis=1) / np.maximum(b[draws].mean(axis=1), 1e-9), [2.5, 97.5])
    return {"ratio": float(a.mean() / b.mean()), "low": float(low), "high": float(high)}


def measure_luck(evaluator, questions: Questions, records: list[dict], methods) -> dict:
    """Re-test of the best paths found at 50 evaluations, with controls; see the module's docstring.

    For each method and kind of question, shares of all searches on such questions: `found` (a path was found), `passed`
    (it is right in other words too), `other_path` (so is the path found for another question), `full_path` (so is the
    full path), and the paired difference of `passed` and `other_path`, what the search knows about the question.
    """
    depth = evaluator.model.config.num_hidden_layers
    full = full_route(depth)
    ours = [r for r in records if r["method"] in methods]
    kinds = {
        "wrong answers fixed": [r for r in ours if not r["right"]],
        "right answers with fewer layers": [r for r in ours if r["right"]],
    }
    others = {kind: paths_of_other_questions(group, depth) for kind, group in kinds.items()}
    wanted = {(r["question"], full) for r in ours}
    for kind, group in kinds.items():
        for r, other in zip(group, others[kind]):
            wanted |= {(r["question"], route) for route in (found_path(r, depth), other) if route is not None}
    passes = retest(evaluator, questions, sorted(wanted))
    result: dict = {}
    for kind, group in kinds.items():
        for method in methods:
            columns = {name: defaultdict(list) for name in ("found", "passed", "other_path", "full_path", "gain")}
            for r, other in zip(group, others[kind]):
                if r["method"] != method:
                    continue
                found = found_path(r, depth)
                row = {
                    "found": found is not None,
                    "passed": found is not None and passes[r["question"], found],
                    "other_path": found is not None and other is not None and passes[r["question"], other],
                    "full_path": passes[r["question"], full],
                }
                row["gain"] = float(row["passed"]) - float(row["other_path"])
                for name, value in row.items():
                    columns[name][r["question"]].append(value)
            result.setdefault(kind, {})[method] = {name: interval(column) for name, column in columns.items()}
    return result


def found_path(r: dict, depth: int) -> Route | None:
    """The best path of a search at 50 evaluations, if it is right and not the full path."""
    best = r["best"][str(AT)]
    return None if best is None or (r["right"] and sum(best) >= depth) else tuple(best)


def retest(evaluator, questions: Questions, wanted: list[tuple[str, Route]]) -> dict[tuple[str, Route], bool]:
    """Verdicts on the questions in other words."""
    place = {request.example.id: at for at, request in enumerate(questions.plain)}
    requests = [questions.rephrased[place[question]] for question, _ in wanted]
    verdicts = evaluator.verdicts(requests, [route for _, route in wanted])
    evaluator.release()
    return {key: verdict.correct for key, verdict in zip(wanted, verdicts)}


def paths_of_other_questions(group: list[dict], depth: int) -> list[Route | None]:
    """For each search a path that the same method found for another question of the data set, None without any."""
    pools = defaultdict(list)
    for r in group:
        if found_path(r, depth) is not None:
            pools[r["method"], r["dataset"]].append(r)
    rng, routes = Random(0), []
    for r in group:
        pool = [other for other in pools[r["method"], r["dataset"]] if other["question"] != r["question"]]
        routes.append(found_path(rng.choice(pool), depth) if pool else None)
    return routes


def measure_static(evaluator, tuning: list[Request], questions: Questions, layers: list[int], depth: int) -> list[dict]:
    """The best static paths of 1 to 3 skips, chosen on other questions, on the questions of the searches."""

    def score_many(routes: list[Route]) -> list[float]:
        return [
            sum(verdict.correct for verdict in evaluator.verdicts(tuning, [route] * len(tuning))) for route in routes
        ]

    evaluator.prepare(tuning)
    paths = static_path(depth, score_many, max_skips=3, layers=layers)
    evaluator.prepare(questions.plain)
    full = evaluator.verdicts(questions.plain, [full_route(depth)] * len(questions.plain))
    rows = []
    for path in paths:
        verdicts = evaluator.verdicts(questions.plain, [path.route] * len(questions.plain))
        right = {str(i): [v.correct] for i, (v, base) in enumerate(zip(verdicts, full)) if base.correct}
        wrong = {str(i): [v.correct] for i, (v, base) in enumerate(zip(verdicts, full)) if not base.correct}
        rows.append(
            {
                "layers_saved": depth - route_length(path.route),
                "skipped": [layer for layer, count in enumerate(path.route) if not count],
                "right_answers_kept": interval(right),
                "wrong_answers_fixed": interval(wrong),
            }
        )
    evaluator.release()
    return rows


def measure_stability(model, tokenizer, evaluator, questions: Questions, records: list[dict], count: int) -> dict:
    """Share of recorded valid paths whose verdict a plain evaluation, alone, repeats: fp32, and bf16."""
    place = {request.example.id: at for at, request in enumerate(questions.plain)}
    valid = [r for r in records if r["method"] == "tree_prior" and r["best"][str(AT)] is not None]
    chosen = Random(0).sample(valid, min(count, len(valid)))
    requests = [questions.plain[place[r["question"]]] for r in chosen]
    routes = [tuple(r["best"][str(AT)]) for r in chosen]
    again = Evaluator(model, tokenizer, batch_size=1).verdicts(requests, routes)
    fp32 = sum(verdict.correct for verdict in again) / max(len(again), 1)
    evaluator.release()
    half = model.to(torch.bfloat16)
    fast = PathEvaluator(half, tokenizer, evaluator.batch_size).verdicts(requests, routes)
    alone = Evaluator(half, tokenizer, batch_size=1).verdicts(requests, routes)
    right = [second.correct for first, second in zip(fast, alone) if first.correct]
    return {
        "paths": len(chosen),
        "float32_same_verdict": fp32,
        "bfloat16_right_paths": len(right),
        "bfloat16_same_verdict": sum(right) / max(len(right), 1),
        "right_in_float32_and_in_bfloat16": len(right) / max(len(chosen), 1),
    }


def plot(table: dict, path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "layers_saved_per_right_answer": "layers saved per right answer",
        "wrong_answers_fixed": "share of wrong answers fixed (with hindsight)",
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for axis, (key, label) in zip(axes, panels.items()):
        for number, (method, rows) in enumerate(table.items()):
            means = [rows[b][key]["mean"] for b in BUDGETS]
            low = [m - rows[b][key]["low"] for m, b in zip(means, BUDGETS)]
            high = [rows[b][key]["high"] - m for m, b in zip(means, BUDGETS)]
            at = [b * 1.03 ** (number - 2.5) for b in BUDGETS]  # side by side: intervals stay readable
            axis.errorbar(at, means, yerr=[low, high], label=LABELS[method], marker="o", capsize=2, linewidth=1.5)
        axis.set_xscale("log")
        axis.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
        axis.minorticks_off()
        axis.set_xlabel("evaluations a question")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def print_table(table: dict) -> None:
    print(f"{'method':32} {'evaluations':>11} {'layers saved':>22} {'fixed':>22} {'layers of best':>15}")
    for method, rows in table.items():
        for budget in BUDGETS:
            row = rows[budget]
            cells = [row[key] for key in ("layers_saved_per_right_answer", "wrong_answers_fixed")]
            spans = [f"{c['mean']:.2f} ({c['low']:.2f}–{c['high']:.2f})" if c["questions"] else "–" for c in cells]
            layers = row["mean_layers_of_best_valid_path"]["mean"]
            layers = "–" if layers is None else f"{layers:.2f}"
            print(f"{LABELS[method]:32} {budget:>11} {spans[0]:>22} {spans[1]:>22} {layers:>15}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model: hub id, folder or the default")
    parser.add_argument(
        "--questions",
        default="arithmetic:70,openbookqa:30",
        help="data sets with numbers of questions, validation split",
    )
    parser.add_argument("--seeds", type=int, default=3, help="searches of each question and method")
    parser.add_argument("--group", type=int, default=6, help="questions searched side by side")
    parser.add_argument("--groups", type=int, help="only so many groups of the (shuffled) questions; default all")
    parser.add_argument("--cache_gib", type=float, default=4.0, help="stored states, GiB at most")
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--work_dir", default="runs/search_quality", help="finished groups of questions")
    parser.add_argument(
        "--shard", default="0/1", help="i/n: search every n-th group and stop; run it once more without for the results"
    )
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--plot", help="picture of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shard, shards = map(int, arguments.shard.split("/"))
    config, tokenizer = load_base_config(arguments.model), load_tokenizer(arguments.model)
    counts = parse_counts(arguments.questions)
    questions = Questions(counts, "validation", tokenizer)
    model = routed_class(config.model_type).from_pretrained(locate_model(arguments.model), dtype=torch.float32)
    model.to(pick_device(arguments.device)).eval()
    evaluator = PathEvaluator(model, tokenizer, batch_size=128, memory=int(arguments.cache_gib * 2**30))
    depth = config.num_hidden_layers
    work = Path(arguments.work_dir) / "groups.jsonl"
    work.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(arguments).items() if key in ("model", "questions", "seeds", "group")}
    done = read_work(work, settings)
    # Data sets mixed, so that an early look at the results is one at all of them.
    order = list(range(len(questions.plain)))
    Random(0).shuffle(order)
    groups = [order[start : start + arguments.group] for start in range(0, len(order), arguments.group)]
    groups = groups[: arguments.groups]
    for number, group in enumerate(tqdm(groups, desc="groups of questions")):
        if number not in done and number % shards == shard:
            requests = [questions.plain[at] for at in group]
            done[number] = search_side_by_side(evaluator, requests, SHOWN, arguments.seeds, depth)
            # Through JSON, as after an interruption.
            line = json.dumps({"settings": settings, "group": number, "records": done[number]})
            append_text(work, line + "\n")
            done[number] = json.loads(line)["records"]
    if shards > 1:
        return
    records = [r for number in range(len(groups)) for r in done[number]]
    # The margin reward needs choices: it is compared within its data sets only.
    table = summarise([r for r in records if r["method"] != "tree_margin"], depth)
    print_table(table)
    ratios = {
        method: ratio_of_saved(records, method, "random_chain", depth) for method in SHOWN if method != "tree_margin"
    }
    print(
        f"layers saved at {AT} evaluations over the random chain's:",
        {m: round(r["ratio"], 2) for m, r in ratios.items()},
    )
    luck = measure_luck(evaluator, questions, records, [method for method in SHOWN if method != "tree_margin"])
    tuning = Questions({name: -(-count // 2) for name, count in counts.items()}, "search", tokenizer).plain
    evaluator.prepare(tuning)
    influence = np.mean(evaluator.influence(tuning), axis=0)
    static = measure_static(evaluator, tuning, questions, [int(i) for i in np.argsort(influence)[:10]], depth)
    stability = measure_stability(model, tokenizer, evaluator, questions, records, count=60)
    by_dataset = {name: summarise([r for r in records if r["dataset"] == name], depth) for name in counts}
    result = {
        "questions": len({r["question"] for r in records}),
        "right_at_full_depth": len({r["question"] for r in records if r["right"]}),
        "seeds": arguments.seeds,
        "methods": table,
        "saved_over_random_chain_at_50": ratios,
        "luck_at_50": luck,
        "static_path": static,
        "verdict_stability": stability,
        "by_dataset": by_dataset,
        "model": arguments.model,
        "data": counts,
        "dtype": "float32",
        "hardware": hardware(),
        "date": today(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    print(json.dumps({"luck_at_50": luck, "static_path": static, "verdict_stability": stability}, indent=1))
    if arguments.json:
        write_json(Path(arguments.json), result)
    if arguments.plot:
        title = f"{arguments.model}, {result['questions']} questions ({', '.join(counts)}), {arguments.seeds} seeds"
        plot(table, Path(arguments.plot), title)


def parse_counts(text: str) -> dict[str, int]:
    try:
        return {name: int(count) for name, count in (part.split(":") for part in text.split(","))}
    except ValueError as error:
        raise UserError(f"--questions {text!r} must look like arithmetic:70,openbookqa:30") from error


def read_work(path: Path, settings: dict) -> dict[int, list[dict]]:
    """Groups that an interrupted run finished; a torn last line is cut off."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    done = {}
    for line in whole.decode().splitlines():
        entry = json.loads(line)
        if entry["settings"] != settings:
            raise UserError(f"{path} holds another run, {entry['settings']}. Give another --work_dir, or remove it.")
        done[entry["group"]] = entry["records"]
    return done


if __name__ == "__main__":
    run_command(main)
