"""Many prompts with different routes: decoded in groups of like routes, against a stock model with as few layers.

    python benchmarks/grouped.py --batches 4 --repeats 2 --json benchmarks/results/grouped.json

The same prompts and numbers of tokens on all sides, prefill included:
- dense: the stock model in batches of prompts of like lengths.
- grouped: the routed model by `routing.inference.generate_grouped`, along routes of three kinds: `menu` (three nested
  paths), `per_layer` (as trained routers of layers decided, see below) and `random` (nothing in common).
- as they come: the same without grouping, so that each batch holds whatever routes it happens to hold.
- pruned: a stock model that has as many layers as the routes have on average, alone. This is the bound.

`speedup` and `bound` are seconds of dense over those of grouped and pruned, medians over repeats that are taken in
turn; `share_of_bound` is one over the other. Routes are forced, so the routers' own time is not in it. Before anything
is timed, grouped tokens are compared with those of each prompt alone.

`share_by_reads` is counted, not timed: the layers of the routes, on average, over those that a step of the groups
reads. It is what decoding in groups can reach at most, and it grows with the number of prompts that are grouped.

Routes of trained routers come from `per_layer_routes.json`, which this writes from a checkpoint of routers of layers:

    python benchmarks/grouped.py --routes_of demo/published
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from routed_speed import Models, in_turn
from tqdm import tqdm

from routing.common.devices import DTYPES
from routing.common.errors import UserError, run_command
from routing.common.files import write_json, write_text
from routing.common.run_info import git_commit, hardware, today, versions
from routing.evaluation.budget import decided_routes, find_bias, mean_layers
from routing.inference import generate_grouped
from routing.inference.groups import grouped, union
from routing.models.checkpoint import load_checkpoint
from routing.models.checkpoint_files import training_record
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_tokenizer
from routing.scoring.requests import draw_requests

ROUTES = Path(__file__).with_name("per_layer_routes.json")
KINDS = ("menu", "per_layer", "random")
SPREAD = 4  # layers between two paths of the menu
CHECKED = 8  # prompts whose tokens are compared with those of the prompt alone


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model")
    parser.add_argument("--batch", default="8,32", help="batch sizes")
    parser.add_argument("--skipped", default="0.25,0.4", help="shares of layers that are skipped on average")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of routes")
    parser.add_argument("--batches", type=int, default=3, help="batches of prompts for each batch size")
    parser.add_argument("--new_tokens", type=int, default=12, help="tokens for each prompt")
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of each, taken in turn")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--routes_of", type=Path, help="write the routes of this checkpoint's routers, and stop")
    return parser.parse_args()


def write_routes(checkpoint: Path, shares: list[float]) -> None:
    """What a checkpoint's routers decide for procedural questions, with the bias that skips each share on average."""
    model, tokenizer = load_checkpoint(checkpoint, torch.float32, torch.device("cpu"))
    prompts = [request.prompt_ids for request in draw_requests("procedural", "validation", 192, tokenizer)]
    depth, found = model.config.num_hidden_layers, {}

    def layers_at(bias: float) -> float:
        model.config.route_bias = bias
        return mean_layers(decided_routes(model, tokenizer, prompts, 32))

    for share in shares:
        model.config.route_bias = find_bias(layers_at, (1 - share) * depth, 0.3)[0]
        found[f"{share:g}"] = [list(route) for route in decided_routes(model, tokenizer, prompts, 32)]
        print(f"{share}: {mean_layers(found[f'{share:g}']):.2f} layers")
    trained = training_record(checkpoint)
    lines = {share: ",\n".join(map(str, routes)) for share, routes in found.items()}  # a route a line
    routes = ",\n".join(f'"{share}": [\n{text}\n]' for share, text in lines.items())
    about = json.dumps({"model": trained["arguments"]["model_id"], "questions": "procedural"})[:-1]
    write_text(ROUTES, f'{about}, "routes": {{\n{routes}\n}}}}\n')


def routes_of(kind: str, depth: int, count: int, share: float) -> list[tuple[int, ...]]:
    """Routes of one kind, of which a share of the layers is skipped on average."""
    rng, skipped = Random(f"{kind}/{share}"), round(share * depth)
    if kind == "per_layer":
        saved = json.loads(ROUTES.read_text())["routes"].get(f"{share:g}", [])
        if not saved or len(saved[0]) != depth:
            raise UserError(f"{ROUTES.name} has no routes of {depth} layers at {share:g}; write some with --routes_of")
        return [tuple(saved[index % len(saved)]) for index in rng.sample(range(max(count, len(saved))), count)]
    if kind == "random":
        gone = [set(rng.sample(range(depth), skipped)) for _ in range(count)]
    else:
        order = rng.sample(range(1, depth), depth - 1)
        gone = [set(order[: skipped + SPREAD * rng.choice((-1, 0, 1))]) for _ in range(count)]
    return [tuple(int(layer not in own) for layer in range(depth)) for own in gone]


def share_by_reads(routes: list[tuple[int, ...]], batch: int) -> float:
    """Layers of the routes over those that their groups read, a step; all of them are grouped at once."""
    groups = grouped(routes, batch)
    return mean_layers(routes) * len(groups) / sum(sum(union([routes[at] for at in group])) for group in groups)


def check_same(models: Models, tokenizer, prompts, routes, found) -> None:
    """Refuse to time what does not answer as each prompt alone."""
    for at in range(CHECKED):
        ids = torch.tensor([prompts[at]], device=models.device)
        tokens = len(found[at].tokens)
        alone = models.routed.generate(
            ids, attention_mask=torch.ones_like(ids), routes=torch.tensor([routes[at]]), max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        if tuple(alone[0, ids.shape[1] :].tolist()) != found[at].tokens:
            raise UserError(
                f"prompt {at} gives other tokens in a group than alone along {routes[at]}; nothing is timed"
            )


def cases(arguments: argparse.Namespace, models: Models, tokenizer, prompts: list, batch: int) -> list[dict]:
    """Rows of one batch size."""
    depth, given = models.depth, {
        "max_new_tokens": arguments.new_tokens, "min_new_tokens": arguments.new_tokens, "do_sample": False,
    }  # fmt: skip
    shares = [float(text) for text in arguments.skipped.split(",")]
    kinds = arguments.kinds.split(",")
    chosen = [(kind, share, routes_of(kind, depth, len(prompts), share)) for share in shares for kind in kinds]

    def plain(model):
        return lambda: generate_grouped(model, tokenizer, prompts, batch, **given)

    def routed(routes, window):
        return lambda: generate_grouped(models.routed, tokenizer, prompts, batch, window, routes=routes, **given)

    means = [round(mean_layers(routes)) for _, _, routes in chosen]
    sizes = sorted({*means})
    pruned = [models.pruned([1] * size + [0] * (depth - size)) for size in sizes]
    for _, _, routes in chosen[: len(kinds)]:
        check_same(models, tokenizer, prompts, routes, routed(routes, len(prompts))())
    calls = [plain(models.dense), *map(plain, pruned)]
    calls += [routed(routes, window) for *_, routes in chosen for window in (len(prompts), batch)]
    dense, *others = [median(own) for own in in_turn(calls, arguments.repeats, models.synchronize, len(pruned) + 1)]
    bounds, timed = dict(zip(sizes, others)), others[len(sizes) :]
    rows = []
    for at, (kind, _, routes) in enumerate(chosen):
        layers = mean_layers(routes)
        # The pruned model has whole layers; what it saves is scaled to what the routes skip.
        bound = dense / (dense + (bounds[means[at]] - dense) * (depth - layers) / max(depth - means[at], 1))
        speedup = dense / timed[2 * at]
        rows.append(
            {
                "batch": batch, "kind": kind, "skipped_fraction": 1 - layers / depth, "distinct_routes": len({*routes}),
                "speedup": speedup, "bound": bound, "share_of_bound": speedup / bound,
                "share_by_reads": share_by_reads(routes, batch), "as_they_come": dense / timed[2 * at + 1],
                "dense_seconds": dense,
            }
        )  # fmt: skip
    return rows


def write_results(arguments: argparse.Namespace, rows: list[dict]) -> None:
    given = {name: str(value) for name, value in vars(arguments).items() if name not in ("json", "routes_of")}
    about = {"hardware": hardware(), "date": today(), "versions": versions(), "git_commit": git_commit()}
    write_json(arguments.json, {"arguments": given, "rows": rows, **about})


def main() -> None:
    arguments = parse_arguments()
    shares = [float(text) for text in arguments.skipped.split(",")]
    if unknown := [kind for kind in arguments.kinds.split(",") if kind not in KINDS]:
        raise UserError(f"--kinds: {unknown[0]!r} is none of {', '.join(KINDS)}")
    if arguments.routes_of:
        write_routes(arguments.routes_of, shares)
        return
    torch.set_num_threads(arguments.threads)
    models, tokenizer = Models(arguments), load_tokenizer(arguments.model)
    sizes = [int(text) for text in arguments.batch.split(",")]
    requests = draw_requests("procedural", "validation", max(sizes) * arguments.batches, tokenizer)
    rows = []
    for batch in tqdm(sizes, desc="batch sizes"):
        prompts = [request.prompt_ids for request in requests[: batch * arguments.batches]]
        rows += cases(arguments, models, tokenizer, prompts, batch)
        if arguments.json:
            write_results(arguments, rows)
    table = Table(
        "batch", "routes", "distinct", "skipped", "speed-up", "bound", "share of bound", "by reads", "as they come"
    )
    for row in rows:
        names = ("skipped_fraction", "speedup", "bound", "share_of_bound", "share_by_reads", "as_they_come")
        numbers = [row[name] for name in names]
        table.add_row(str(row["batch"]), row["kind"], str(row["distinct_routes"]), *(f"{x:.3f}" for x in numbers))
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
