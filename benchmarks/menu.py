"""What all paths of a menu cost together, against a single pass of each path in an evaluator of its own.

    .venv/bin/python benchmarks/menu.py --json benchmarks/results/value/menu.json

On all sides the same questions and paths, and the same verdicts, or nothing is reported (where floats nearly tie a
batch may decide otherwise: there the plain evaluator alone must agree with the menu). The menu: groups of 64
questions, as data_generation.py --search menu asks for them, with one store of prefixes. The obvious way: for each path
the plain evaluator (`routing.scoring.plain`), which keeps nothing, answers all questions in batches; and besides, for
each path a fast evaluator of its own, which shares no prefix between paths but has all else that makes the menu fast.
Ratios of seconds, measured in turns in one run, medians of --repeats.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

from tqdm import tqdm

from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.labelling import Labeller
from routing.labels.menus import influences, make_menu
from routing.models.base_files import locate_model
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_base_config, load_tokenizer, routed_class
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import Evaluator
from routing.scoring.requests import draw_requests
from routing.search.influence import influence_order
from routing.search.menu import MenuSettings, Nested, along_menu, parse_spec, spec_problems

GROUP = 64  # questions side by side


def together(model, tokenizer, requests, routes) -> list[list[bool]]:
    """Verdicts [N][K] of a menu, as stage 1 asks for them."""
    evaluator = PathEvaluator(model, tokenizer, batch_size=GROUP)
    labeller = Labeller(len(routes[0]), MenuSettings(tuple(routes)), 0, evaluator, search=along_menu)
    results = []
    for start in range(0, len(requests), GROUP):
        results += labeller.search_group(requests[start : start + GROUP], {}, lambda verdicts: None)
    return [[verdict.correct for verdict in result.verdicts.values()] for result in results]


def one_by_one(evaluate, requests, routes) -> list[list[bool]]:
    """Verdicts [N][K], one path after the other; `evaluate` gives the verdicts of a part of the questions on a path."""
    columns = []
    for route in routes:
        column = []
        for start in range(0, len(requests), GROUP):
            part = requests[start : start + GROUP]
            column += [verdict.correct for verdict in evaluate(part, [route] * len(part))]
        columns.append(column)
    return [list(row) for row in zip(*columns, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model: hub id, folder or the default")
    parser.add_argument("--dataset", default="procedural", help="comma-separated data sets")
    parser.add_argument("--num_samples", type=int, default=128, help="search questions of each data set, at most")
    parser.add_argument("--menu", default="influence:0,1,2,3,4,6,8,9,10,12,14", help="SPEC; no greedy")
    parser.add_argument("--menu_kept", type=int, default=1, help="layers at the beginning that are never cut")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way")
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    config, tokenizer = load_base_config(arguments.model), load_tokenizer(arguments.model)
    depth = config.num_hidden_layers
    raise_all(spec_problems(arguments.menu, depth, arguments.menu_kept))
    sources = parse_spec(arguments.menu)
    if any(isinstance(source, Nested) and source.order == "greedy" for source in sources):
        raise UserError(
            f"--menu {arguments.menu}: greedy takes long and costs the same; give influence, labels or a file"
        )
    requests = draw_requests(arguments.dataset, "search", arguments.num_samples, tokenizer)
    model = routed_class(config.model_type).from_pretrained(locate_model(arguments.model)).eval()

    def order() -> list[int]:
        return influence_order(influences(PathEvaluator(model, tokenizer), requests))

    routes = make_menu(sources, depth, arguments.menu_kept, order, rewards=None, diverging=None)

    def plain(part, own):
        return Evaluator(model, tokenizer, batch_size=GROUP).verdicts(part, own)

    def fast(part, own):
        evaluator = PathEvaluator(model, tokenizer, batch_size=GROUP)
        evaluator.prepare(part)
        return evaluator.verdicts(part, own)

    ways = {
        "menu": lambda: together(model, tokenizer, requests, routes),
        "plain_one_by_one": lambda: one_by_one(plain, requests, routes),
        "fast_one_by_one": lambda: one_by_one(fast, requests, routes),
    }
    alone = Evaluator(model, tokenizer, batch_size=1)

    def check(menu: list[list[bool]], others: list[list[bool]]) -> int:
        """How many verdicts differ; each of those of the menu must be that of the pair alone."""
        pairs = [(i, k) for i, row in enumerate(menu) for k, right in enumerate(row) if right != others[i][k]]
        for i, k in pairs:
            if alone.verdicts([requests[i]], [routes[k]])[0].correct != menu[i][k]:
                raise UserError(f"question {requests[i].example.id}, route {routes[k]}: the menu's verdict is wrong")
        return len(pairs)

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    differing = []
    for _ in tqdm(range(arguments.repeats), desc="repeats"):
        verdicts = {}
        for name, way in ways.items():
            start = time.perf_counter()
            verdicts[name] = way()
            seconds[name].append(time.perf_counter() - start)
        differing.append({name: check(verdicts["menu"], found) for name, found in verdicts.items() if name != "menu"})
    middle = {name: median(taken) for name, taken in seconds.items()}
    ratios = {name: taken / middle["menu"] for name, taken in middle.items() if name != "menu"}
    right = [sum(column) / len(requests) for column in zip(*verdicts["menu"], strict=True)]
    for route, share in zip(routes, right, strict=True):
        print(f"{sum(route):3} layers: {share:.3f} right")
    print(f"{len(requests)} questions along {len(routes)} paths: {middle['menu']:.1f} s; " + ", ".join(
        f"{name} takes {ratio:.2f} times as long" for name, ratio in ratios.items()))  # fmt: skip
    if arguments.json:
        about = {"model": arguments.model, "hardware": hardware(), "date": today(), "arguments": vars(arguments)}
        about |= {"versions": versions(), "git_commit": git_commit()}
        figures = {"questions": len(requests), "routes": [list(route) for route in routes], "right": right}
        write_json(
            Path(arguments.json), about | figures | {"seconds": seconds, "ratios": ratios, "near_ties": differing}
        )


if __name__ == "__main__":
    run_command(main)
