"""How much faster is a token decoded when layers are skipped? Stock model against routed model, in bf16.

One token a step for all rows behind a prompt in the cache, plain PyTorch without graphs. `share` is the measured
speed-up over L / executed layers. Controls say what any implementation could reach: `pruned`, a stock model of the
executed layers alone, for one route; `fewer_rows`, the stock model on as many rows as run a layer on average, for
mixed routes. Caches of many rows are made of eight, so mixed routes are eight different ones. Each step is timed on its
own; a row holds medians. The stock model is timed before and after the others; their medians count together.
"""

from __future__ import annotations

import statistics
import time

import torch
from routed_speed import check_exact, make_routes, rows_a_layer

from gpu_sections.job import Job
from gpu_sections.models import RandomModels, empty_memory

DIFFERENT = 8


class Decoder:
    """A model that decodes on and on behind a prompt, rows [B, T] made of a few."""

    def __init__(self, job: Job, model, prompts: torch.LongTensor, batch: int, routes=None):
        self.job, self.model = job, model
        few = min(batch, DIFFERENT)
        given = {} if routes is None else {"routes": routes[:few]}
        self.cache = model(prompts[:few], use_cache=True, logits_to_keep=1, **given).past_key_values
        if batch > few:
            self.cache.batch_repeat_interleave(batch // few)
        self.token = prompts[:few, -1:].repeat_interleave(batch // few, 0)

    def step(self) -> float:
        """Seconds of one step."""
        self.job.synchronize()
        start = time.perf_counter()
        logits = self.model(self.token, past_key_values=self.cache, use_cache=True).logits
        self.token = logits[:, -1:].argmax(-1)
        self.job.synchronize()
        return time.perf_counter() - start

    def median(self, steps: int) -> float:
        for _ in range(3):
            self.step()
        return statistics.median(self.step() for _ in range(steps))

    def cache_bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.cache.layers for tensor in (layer.keys, layer.values))


def timed(job: Job, steps: int, *arguments, **given) -> dict:
    """Milliseconds a step, and bytes of the cache behind the prompt; the cache is gone afterwards."""
    decoder = Decoder(job, *arguments, **given)
    held = decoder.cache_bytes()
    job.peak_mib()
    return {"ms": decoder.median(steps) * 1000, "cache_bytes": held, "peak_mib": job.peak_mib()}


@torch.inference_mode()
def measure(job: Job, models: RandomModels, shape: str, batch: int, tokens: int, shares, steps: int) -> None:
    prompts = models.prompts(min(batch, DIFFERENT), tokens)
    before = timed(job, steps, models.dense, prompts, batch)
    found = []
    for share in shares:
        for mixed in (False, True) if batch > 1 and share else (False,):
            routes = make_routes(models.depth, min(batch, DIFFERENT), share, mixed)
            check_exact(models, prompts[:, :64], routes)
            ours = timed(job, steps, models.routed, prompts, batch, routes=routes)
            control = {}
            if mixed:
                rows = max(round(rows_a_layer(routes) * batch / len(routes)), 1)
                few = min(rows, DIFFERENT)
                control["fewer_rows"] = timed(job, steps, models.dense, prompts[:few], rows - rows % few)
            elif share:
                control["pruned"] = timed(job, steps, models.pruned(routes[0].tolist()), prompts, batch)
            found.append((share, mixed, models.depth / float(routes.sum(1).float().mean()), ours, control))
    after = timed(job, steps, models.dense, prompts, batch)
    dense = (before["ms"] + after["ms"]) / 2
    for share, mixed, ideal, ours, control in found:
        job.row(
            shape=shape, batch=batch, prompt_tokens=tokens, skipped=share, mixed=mixed, ideal=ideal,
            speedup=dense / ours["ms"], share=dense / ours["ms"] / ideal,
            **{f"{name}_speedup": dense / own["ms"] for name, own in control.items()},
            ms=ours["ms"], dense_ms=dense, dense_drift=after["ms"] / before["ms"],
            cache_bytes=ours["cache_bytes"], cache_share=ours["cache_bytes"] / before["cache_bytes"],
            peak_mib=ours["peak_mib"], dense_peak_mib=before["peak_mib"],
        )  # fmt: skip


@torch.inference_mode()
def first_lengths(job: Job, models: RandomModels, shape: str, steps: int) -> None:
    """The stock model at lengths that it has not seen, with cuDNN's attention, PyTorch's choice, and without."""
    prompts = models.prompts(1, 300)
    if job.device.type != "cuda":
        return
    without = timed(job, steps, models.dense, prompts, 1)["ms"]
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        new, again = (timed(job, steps, models.dense, prompts, 1)["ms"] for _ in range(2))
    finally:
        torch.backends.cuda.enable_cudnn_sdp(False)
    job.row(shape=shape, stock="lengths seen first", ms=new, ms_again=again, ms_without_cudnn=without)


@torch.inference_mode()
def compiled(job: Job, models: RandomModels, shape: str, batch: int, tokens: int, steps: int) -> None:
    """The same with the layers compiled, which all routes share; and what the compilation takes."""
    prompts = models.prompts(batch, tokens)
    routes = make_routes(models.depth, batch, 0.25, False)
    stock = timed(job, steps, models.dense, prompts, batch)["ms"]
    plain = [stock, timed(job, steps, models.routed, prompts, batch, routes=routes)["ms"]]
    start = time.perf_counter()
    models.routed.compile(dynamic=True)
    for layer in models.dense.model.layers:
        layer.compile(dynamic=True)
    decoders = [Decoder(job, models.dense, prompts, batch), Decoder(job, models.routed, prompts, batch, routes=routes)]
    for decoder in decoders:
        for _ in range(4):
            decoder.step()
    seconds = time.perf_counter() - start
    dense, ours = (decoder.median(steps) * 1000 for decoder in decoders)
    job.row(
        shape=shape, batch=batch, prompt_tokens=tokens, skipped=0.25, mixed=False, compiled=True,
        compile_seconds=seconds, ms=ours, dense_ms=dense, speedup=dense / ours, ms_plain=plain[1],
        dense_ms_plain=plain[0],
    )  # fmt: skip


def run(job: Job) -> None:
    dtype = torch.float32 if job.smoke else torch.bfloat16
    shapes = ("tiny",) if job.smoke else ("3B", "1B")
    batches, lengths, shares, steps = (1, 8, 32, 128), (512, 2048), (0.0, 0.25, 0.4), 12
    if job.smoke:
        batches, lengths, shares, steps = (1, 16), (24,), (0.0, 0.25), 2
    job.facts["cuda_graphs"] = "not supported: a cache of fixed size is refused, since each visit of a layer has a slot"
    kept = None
    for shape in shapes:
        models = RandomModels(shape, dtype, job.device)
        first_lengths(job, models, shape, steps)
        for batch in batches:
            for tokens in lengths:
                # A case takes some 11 caches and 15 steps each; large ones need memory for two of the largest.
                if job.seconds_left() < (3 if job.smoke else 14):
                    job.left_out(f"{shape}, batch {batch}, {tokens} tokens: no time")
                    continue
                try:
                    measure(job, models, shape, batch, tokens, shares, steps)
                except torch.cuda.OutOfMemoryError:
                    job.left_out(f"{shape}, batch {batch}, {tokens} tokens: no memory")
                empty_memory()
        kept = models
    if job.seconds_left() > 12 or job.smoke:
        if not job.smoke:
            compiled(job, kept, shapes[-1], 1, lengths[0], steps)
    else:
        job.left_out("compiled layers: no time")
