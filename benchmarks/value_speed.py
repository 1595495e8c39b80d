"""Measured time of the same answers by the stock base and by a routed checkpoint, router included, in turn.

    .venv/bin/python benchmarks/value_speed.py runs/value/seed-0/router --costs 0.01,0.02 \\
        --json benchmarks/results/value/speed.json

Test questions in batches of 1 and 32, greedy, as many tokens each as the task allows. Base and routed model take turns
batch by batch; `time` is the median over repeats of routed over base seconds for all questions, with its range.
`adapters` and `pruned` are controls at the longest path of the menu that is at most half a layer longer than the routed
mean: the same model along it, and a stock model without these layers and without anything in their place, which is what
no adapter could beat.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from routed_speed import Models
from transformers import AutoModelForCausalLM

from routing.common.devices import DTYPES, pick_device
from routing.common.errors import run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.models.base_files import locate_model
from routing.models.checkpoint import load_checkpoint
from routing.models.checkpoint_files import training_record
from routing.models.config_fields import config_with
from routing.scoring.plain import PLAIN_GREEDY
from routing.scoring.requests import draw_requests
from routing.tasks.prompts import left_pad


def answered(model, ids: torch.Tensor, mask: torch.Tensor, tokens: int, **given) -> float:
    """Seconds to generate exactly so many tokens."""
    if ids.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0, **PLAIN_GREEDY}
    model.generate(ids, attention_mask=mask, **options, **given)
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(base, routed, pruned, route, batches, tokens: int, repeats: int) -> dict:
    ratios = {"time": [], "adapters": [], "pruned": []}
    layers = []
    for repeat in range(repeats + 1):
        seconds = dict.fromkeys(("base", *ratios), 0.0)
        for ids, mask in batches:
            forced = torch.tensor([route] * len(ids))
            seconds["base"] += answered(base, ids, mask, tokens)
            seconds["time"] += answered(routed, ids, mask, tokens)
            if repeat:
                layers += routed.last_routes.sum(1).tolist()
            seconds["adapters"] += answered(routed, ids, mask, tokens, routes=forced)
            seconds["pruned"] += answered(pruned, ids, mask, tokens)
        if repeat:  # The first warms up.
            for name, own in ratios.items():
                own.append(seconds[name] / seconds["base"])
    return {name: {"median": statistics.median(own), "range": [min(own), max(own)]} for name, own in ratios.items()} | {
        "layers": sum(layers) / len(layers),
        "base_seconds": seconds["base"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a menu router's checkpoint")
    parser.add_argument("--data", default="procedural", help="data sets")
    parser.add_argument("--costs", default="0.01,0.02", help="costs to measure at")
    parser.add_argument("--batch", default="1,32", help="batch sizes")
    parser.add_argument("--questions", type=int, default=64, help="test questions of each data set")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes over all questions")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device")
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder, dtype, device = Path(arguments.checkpoint), DTYPES[arguments.dtype], pick_device(arguments.device)
    routed, tokenizer = load_checkpoint(folder, dtype, device)
    name = training_record(folder)["arguments"]["model_id"]
    base = AutoModelForCausalLM.from_pretrained(locate_model(name), dtype=dtype).to(device).eval()
    requests = draw_requests(arguments.data, "test", arguments.questions, tokenizer)
    tokens = max(request.max_new_tokens for request in requests)
    about = {
        "arguments": vars(arguments), "hardware": hardware(), "date": today(), "versions": versions(),
        "git_commit": git_commit(), "questions": len(requests),
    }  # fmt: skip
    rows = []
    for cost in map(float, arguments.costs.split(",")):
        with config_with(routed, cost=cost):
            for size in map(int, arguments.batch.split(",")):
                batches = []
                for start in range(0, len(requests), size):
                    ids, mask = left_pad([r.prompt_ids for r in requests[start : start + size]], tokenizer.pad_token_id)
                    batches.append((torch.tensor(ids, device=device), torch.tensor(mask, device=device)))
                wanted = mean_routed(routed, batches)
                route = max((r for r in routed.config.menu if sum(r) <= wanted + 0.5), key=sum)
                pruned = Models.pruned(SimpleNamespace(dense=base), route)
                found = measure(base, routed, pruned, route, batches, tokens, arguments.repeats)
                rows.append({"cost": cost, "batch": size, "control_layers": sum(route), "new_tokens": tokens} | found)
                print(rows[-1], flush=True)
                if arguments.json:  # After each row: what was measured outlives a run that is cut off.
                    write_json(Path(arguments.json), about | {"rows": rows})


@torch.inference_mode()
def mean_routed(model, batches) -> float:
    """Mean layers that the router runs on the prompts."""
    found = []
    for ids, mask in batches:
        model(ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
        found += model.last_routes.sum(1).tolist()
    return sum(found) / len(found)


if __name__ == "__main__":
    run_command(main)
