"""How fast are whole tree searches, from first evaluation to last? Against a naive evaluator, with the same labels.

    OMP_NUM_THREADS=2 .venv/bin/python benchmarks/whole_search.py --json benchmarks/results/whole_search.json

`search.py` times the first rounds; here searches go on until they end by themselves, with the settings of
data_generation.py: late rounds have few questions left, and their paths share less. Two sides search:
- ours: all questions side by side, by the evaluator that data_generation.py uses;
- naive: each path alone, by `generate()` with batch 1 and a KV cache, or each choice in full; see `search.py`. That
  takes many minutes, so it searches some of the questions, drawn at random. Its own verdicts lead it.

Both take their rounds in turn, so that they see the same noise of the machine. `ratio` compares paths a second, each
side over all its searches. `agreement` is the share of the questions that both searched whose lines of the label file
are equal byte for byte. What two processes bring that label one folder together measures `sharing.py`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import search as first_rounds
import torch
from tqdm import tqdm

from routing.common.devices import DTYPES, pick_device
from routing.common.errors import raise_all, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.labelling import Labeller, example_rng
from routing.labels.records import label_line
from routing.models.default_model import DEFAULT_MODEL
from routing.scoring.packed import PathEvaluator
from routing.scoring.requests import Request
from routing.search.mcts import SearchSettings, search
from routing.search.results import SearchResult, Verdict


class NaiveSearches:
    """Searches of some requests, each path evaluated alone.

    Args:
        verdict: function (request, route) -> whether the answer is right.

    Attributes:
        results: of the searches that are over, by request.
        seconds, pairs: evaluations so far.
    """

    def __init__(self, depth: int, settings: SearchSettings, requests: list[Request], verdict: Callable):
        self.verdict, self.seconds, self.pairs = verdict, 0.0, 0
        self.results: dict[Request, SearchResult] = {}
        self.running = {}
        for request in requests:
            searching = search(depth, settings, example_rng(0, request.example.id), None)
            self.running[request] = (searching, next(searching))

    def round(self) -> None:
        """One path of each search that goes on."""
        for request, (searching, route) in list(self.running.items()):
            start = time.perf_counter()
            right = self.verdict(request, route)
            self.seconds += time.perf_counter() - start
            self.pairs += 1
            try:
                self.running[request] = (searching, searching.send(Verdict(right)))
            except StopIteration as stop:
                self.results[request] = stop.value
                del self.running[request]


def compare(model, evaluator, requests: list[Request], settings: SearchSettings, naive: NaiveSearches, name: str):
    """Both sides, in turn; what each took, and whether their labels are the same."""
    depth, away = model.config.num_hidden_layers, 0.0
    with tqdm(total=settings.num_simulations + 1, desc=name, unit="round") as progress:

        def between() -> None:
            nonlocal away
            start = time.perf_counter()
            naive.round()
            progress.update()
            away += time.perf_counter() - start

        labeller = Labeller(depth, settings, 0, evaluator, on_round=between)
        start = time.perf_counter()
        results = labeller.search_group(requests, {}, lambda verdicts: None)
        seconds = time.perf_counter() - start - away
    while naive.running:  # Only where verdicts differ.
        naive.round()
    found = dict(zip(requests, results, strict=True))
    same = [label_line(r, found[r]) == label_line(r, result) for r, result in naive.results.items()]
    pairs = labeller.counts.evaluations
    return {
        "ratio": (naive.seconds / naive.pairs) / (seconds / pairs),
        "agreement": sum(same) / len(same),
        "questions": len(requests),
        "naive_questions": len(same),
        "pairs": pairs,
        "naive_pairs": naive.pairs,
        "seconds": seconds,
        "naive_seconds": naive.seconds,
        "ours_per_second": pairs / seconds,
        "naive_per_second": naive.pairs / naive.seconds,
        "ties_decided_alone": evaluator.ties,
        "layer_tokens_per_path": evaluator.runner.layer_tokens / pairs,
        "layer_tokens_of_naive": sum(
            first_rounds.naive_tokens(request) * sum(route)
            for request, result in naive.results.items()
            for route in result.verdicts
        )
        / naive.pairs,
    }


def problems(arguments: argparse.Namespace) -> list[str]:
    least = ("examples", "naive_examples", "num_simulations", "batch_size", "threads")
    found = [f"--{n} {getattr(arguments, n)} must be at least 1" for n in least if getattr(arguments, n) < 1]
    if arguments.naive_examples > arguments.examples:
        found.append(f"--naive_examples {arguments.naive_examples} must be at most --examples {arguments.examples}")
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model: hub id, folder, or the default")
    parser.add_argument("--examples", type=int, default=32, help="questions of each scoring, searched side by side")
    parser.add_argument("--naive_examples", type=int, default=4, help="of these, those that the naive side searches")
    parser.add_argument("--num_simulations", type=int, default=50, help="of each search, at most")
    parser.add_argument("--batch_size", type=int, default=64, help="paths evaluated together, at most")
    parser.add_argument("--cache_gib", type=float, default=2.0, help="stored states, GiB at most")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    for name, datasets in first_rounds.DATASETS.items():
        parser.add_argument(f"--{name}", default=",".join(datasets), help="data sets with this scoring; empty: none")
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    raise_all(problems(arguments))
    return arguments


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = first_rounds.load(arguments.model, DTYPES["float32"], pick_device(arguments.device))
    settings = SearchSettings(num_simulations=arguments.num_simulations)
    rows = []
    for scoring in first_rounds.DATASETS:
        names = tuple(filter(None, getattr(arguments, scoring).split(",")))
        if not names:
            continue
        requests = first_rounds.build_requests(tokenizer, scoring, names, arguments.examples)
        drawn = Random(0).sample(requests, min(arguments.naive_examples, len(requests)))

        def verdict(request, route) -> bool:
            return first_rounds.naive_verdict(model, tokenizer, request, route)

        verdict(drawn[0], (1,) * model.config.num_hidden_layers)  # Warm.
        evaluator = PathEvaluator(model, tokenizer, arguments.batch_size, int(arguments.cache_gib * 2**30))
        naive = NaiveSearches(model.config.num_hidden_layers, settings, drawn, verdict)
        row = {"scoring": scoring, "datasets": names}
        rows.append(row | compare(model, evaluator, requests, settings, naive, scoring))
        evaluator.release()
        found = rows[-1]
        print(
            f"{scoring}: {found['questions']} searches of {found['pairs']} paths in {found['seconds']:.1f} s, naive "
            f"{found['naive_questions']} of {found['naive_pairs']} in {found['naive_seconds']:.1f} s: ratio "
            f"{found['ratio']:.1f} a path, labels the same for {found['agreement']:.0%}",
            flush=True,
        )
        if arguments.json:
            write_json(Path(arguments.json), summary(rows, arguments))
    result = summary(rows, arguments)
    print(f"the lowest ratio is {result['ratio']:.1f}, labels the same for {result['agreement']:.1%} of the searches")


def summary(rows: list[dict], arguments: argparse.Namespace) -> dict:
    """Results so far: the lowest ratio of all scorings, and the agreement over all searches of both sides."""
    searched = sum(row["naive_questions"] for row in rows)
    return {
        "ratio": min(row["ratio"] for row in rows),
        "agreement": sum(row["agreement"] * row["naive_questions"] for row in rows) / searched,
        "rows": rows,
        "arguments": {name: value for name, value in vars(arguments).items() if name != "json"},
        "hardware": hardware(),
        "date": today(),
        "versions": versions(),
        "git_commit": git_commit(),
    }


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_command(main)
