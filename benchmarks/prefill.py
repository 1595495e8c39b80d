"""How much faster is a prompt read when layers are skipped? Stock model against routed model, in turn.

    .venv/bin/python benchmarks/prefill.py --json benchmarks/results/prefill.json --plot benchmarks/results/prefill.png

Beside fixed routes: the same with all layers run while the routers decide, and `router_share`, the part of that time
that the decisions take by the clock (median; the difference of two prefills would drown in noise). Nothing is timed
whose log-probabilities differ from a stock model that has the executed layers alone.
"""

from __future__ import annotations

import statistics
import time

import torch
from routed_speed import Models, arguments_of, in_turn, rows_a_layer, run, speedup

from routing.common.errors import run_command


class RouterClock:
    """Reads a prompt while the routers decide, and notes the share of the time that their decisions take."""

    def __init__(self, models: Models, read):
        self.models, self.read, self.shares, self.times = models, read, [], []
        self.inner = models.routed.model
        self.decide = self.inner.decide

    def _timed(self, call, *given):
        self.models.synchronize()  # What runs before is no decision.
        start = time.perf_counter()
        result = call(*given)
        self.models.synchronize()
        self.spent += time.perf_counter() - start
        return result

    def __call__(self) -> None:
        def decide(prompt):
            decision = self._timed(self.decide, prompt)
            counts = decision.counts
            decision.counts = lambda layer, hidden: self._timed(counts, layer, hidden)
            return decision

        self.spent, self.inner.decide = 0.0, decide
        start = time.perf_counter()
        try:
            self.read()
            self.models.synchronize()
        finally:
            del self.inner.decide
        self.times.append(time.perf_counter() - start)
        self.shares.append(self.spent / self.times[-1])

    @property
    def share(self) -> float:
        return statistics.median(self.shares[1:])  # The first warms up.

    @property
    def seconds(self) -> float:
        return statistics.median(self.times[1:])


@torch.inference_mode()
def measure(models: Models, prompts: torch.LongTensor, routes: list, repeats: int) -> list[dict]:
    def reader(model, rows: int | None = None, **given):
        return lambda: model(prompts[:rows], use_cache=True, logits_to_keep=1, **given)

    for router in models.routed.model.routers:  # All layers run, whatever they read.
        torch.nn.init.zeros_(router.down.weight)
        router.down.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    calls, clock = [reader(models.dense)], RouterClock(models, reader(models.routed))
    for share, mixed, route in routes:
        calls.append(reader(models.routed, routes=route))
        if not share:
            calls.append(clock)
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
            next(others)
            row["router_share"] = clock.share
        else:
            row["fewer_rows" if mixed else "pruned"] = speedup(dense, next(others))
        rows.append(row)
    return rows


def main() -> None:
    arguments = arguments_of(__doc__)
    run("prefill", arguments, lambda *case: measure(*case, arguments.repeats))


if __name__ == "__main__":
    run_command(main)
