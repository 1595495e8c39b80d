"""How much faster is a prompt read when layers are skipped? Stock model against routed model, in turn.

    .venv/bin/python benchmarks/prefill.py --json benchmarks/results/prefill.json --plot benchmarks/results/prefill.png

Beside fixed routes: the same with all layers run while the routers decide (`router_share`, of the time with given
routes). Nothing is timed whose log-probabilities differ from a stock model that has the executed layers alone.
"""

from __future__ import annotations

import torch
from routed_speed import Models, arguments_of, in_turn, rows_a_layer, run, speedup

from routing.errors import run_command


@torch.inference_mode()
def measure(models: Models, prompts: torch.LongTensor, routes: list, repeats: int) -> list[dict]:
    def reader(model, rows: int | None = None, **given):
        return lambda: model(prompts[:rows], use_cache=True, logits_to_keep=1, **given)

    for router in models.routed.model.routers:  # All layers run, whatever they read.
        torch.nn.init.zeros_(router.down.weight)
        router.down.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    calls = [reader(models.dense)]
    for share, mixed, route in routes:
        calls.append(reader(models.routed, routes=route))
        if not share:
            calls.append(reader(models.routed))
        elif mixed:
            calls.append(reader(models.dense, rows_a_layer(route)))
        else:
            calls.append(reader(models.pruned(route[0].tolist())))
    dense, *others = in_turn(calls, repeats, models.synchronize)
    rows, others = [], iter(others)
    for share, mixed, _ in routes:
        found = next(others)
        row = {"speedup": speedup(dense, found)}
        if not share:
            row["router_share"] = speedup(next(others), found) - 1
        else:
            row["fewer_rows" if mixed else "pruned"] = speedup(dense, next(others))
        rows.append(row)
    return rows


def main() -> None:
    arguments = arguments_of(__doc__)
    run("prefill", arguments, lambda *case: measure(*case, arguments.repeats))


if __name__ == "__main__":
    run_command(main)
