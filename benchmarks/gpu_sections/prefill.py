"""How much faster is a prompt read when layers are skipped, and what do the routers' decisions cost? In bf16.

`share` is the measured speed-up over L / executed layers; controls as in `decode`. `deciding` is the time of a prefill
in which the routers of Dr.LLM (8 windows) decide that all layers run, over that of the same route forced.
"""

from __future__ import annotations

import statistics

import torch
from routed_speed import check_exact, in_turn, make_routes, rows_a_layer, speedup

from gpu_sections.job import Job
from gpu_sections.models import RandomModels, empty_memory

TOKENS_AT_MOST = 65536


@torch.inference_mode()
def measure(job: Job, models: RandomModels, shape: str, batch: int, tokens: int, shares, repeats: int) -> None:
    prompts = models.prompts(batch, tokens)

    def reader(model, rows=None, **given):
        return lambda: model(prompts[:rows], use_cache=True, logits_to_keep=1, **given)

    ones = torch.ones(batch, models.depth, dtype=torch.long)
    calls = [reader(models.dense), reader(models.routed, routes=ones), reader(models.routed)]
    cases = []
    for share in shares:
        for mixed in (False, True) if batch > 1 else (False,):
            routes = make_routes(models.depth, batch, share, mixed)
            check_exact(models, prompts[:4, :64], routes[:4])
            cases.append((share, mixed, models.depth / float(routes.sum(1).float().mean())))
            calls.append(reader(models.routed, routes=routes))
            calls.append(
                reader(models.dense, rows_a_layer(routes)) if mixed else reader(models.pruned(routes[0].tolist()))
            )
    job.peak_mib()
    reader(models.dense)()
    dense_peak = job.peak_mib()
    reader(models.routed)()
    peak = job.peak_mib()
    dense, forced, deciding, *others = in_turn(calls, repeats, job.synchronize)
    assert models.routed.model.last_routes.shape == (batch, models.depth)
    about = {"shape": shape, "batch": batch, "prompt_tokens": tokens}
    job.row(
        **about, skipped=0.0, mixed=False, ideal=1.0, speedup=speedup(dense, forced), share=speedup(dense, forced),
        ms=statistics.median(forced) * 1000, dense_ms=statistics.median(dense) * 1000,
        deciding=speedup(deciding, forced), peak_mib=peak, dense_peak_mib=dense_peak,
    )  # fmt: skip
    for (share, mixed, ideal), ours, control in zip(cases, others[::2], others[1::2], strict=True):
        gain = speedup(dense, ours)
        job.row(
            **about, skipped=share, mixed=mixed, ideal=ideal, speedup=gain, share=gain / ideal,
            **{"fewer_rows_speedup" if mixed else "pruned_speedup": speedup(dense, control)},
            ms=statistics.median(ours) * 1000, dense_ms=statistics.median(dense) * 1000,
        )  # fmt: skip


def run(job: Job) -> None:
    dtype = torch.float32 if job.smoke else torch.bfloat16
    shapes, batches, lengths, shares = ("3B", "1B"), (1, 8, 32, 128), (512, 2048), (0.25, 0.4)
    if job.smoke:
        shapes, batches, lengths, shares = ("tiny",), (1, 4), (24,), (0.25,)
    for shape in shapes:
        models = RandomModels(shape, dtype, job.device)
        for router in models.routed.model.routers:  # All layers run, whatever they read.
            torch.nn.init.zeros_(router.down.weight)
            router.down.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
        for batch, tokens in sorted(((b, t) for b in batches for t in lengths), key=lambda size: size[0] * size[1]):
            if batch * tokens > TOKENS_AT_MOST:
                job.left_out(f"{shape}, batch {batch}, {tokens} tokens: above {TOKENS_AT_MOST} tokens")
                continue
            large = batch * tokens > 16384
            if job.seconds_left() < (3 if job.smoke else 25 if large else 8):
                job.left_out(f"{shape}, batch {batch}, {tokens} tokens: no time")
                continue
            measure(job, models, shape, batch, tokens, shares, 1 if job.smoke else 2 if large else 5)
            empty_memory()
