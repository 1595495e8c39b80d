"""Hybrid language models at the published full size (D 768, 4 blocks, 12 heads, 1,024 tokens, batch 48).

Tokens a second of a training step (forward, backward, AdamW, bf16) of static and dynamic, then time by context up to
32k at batch 1, as in benchmarks/hybrid.py, the check in front of it included. `kernels` says whether Gated DeltaNet
runs fused; then the first configuration of each kernel is taken, since there is no time to try all.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace

from gpu_sections.untuned import FUSED  # isort: skip - before the kernels are imported
import hybrid as by_context
import torch

from gpu_sections.job import Job
from gpu_sections.models import empty_memory
from gpu_sections.plain import plain_rules
from routing.objectives.hybrid import balance_loss, gumbel_noise, mechanism_gates

FULL = {"hidden_size": 768, "num_layers": 4, "num_heads": 12, "intermediate_size": 3072, "vocab_size": 49152}
TINY = {"hidden_size": 32, "num_layers": 4, "num_heads": 2, "intermediate_size": 64, "vocab_size": 128}


def training_step(job: Job, name: str, sizes: dict, batch: int, tokens: int, repeats: int) -> None:
    arguments = Namespace(**sizes, random_share=0.5, dtype="float32")
    model = by_context.make_model(name, arguments, job.device, router="learned").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=job.device.type == "cuda")
    ids = torch.randint(sizes["vocab_size"], (batch, tokens), device=job.device)

    def draw(logits: torch.Tensor) -> torch.Tensor:
        return mechanism_gates(logits, 1.0, gumbel_noise(logits))

    def step() -> float:
        job.synchronize()
        start = time.perf_counter()
        with torch.autocast(job.device.type, torch.bfloat16, enabled=job.device.type == "cuda"):
            output = model(ids, labels=ids, use_cache=False, **({"draw_mechanisms": draw} if name == "dynamic" else {}))
        loss = output.loss
        if name == "dynamic":
            loss = loss + 0.01 * balance_loss(output.router_logits)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        job.synchronize()
        return time.perf_counter() - start

    job.peak_mib()
    step(), step()
    seconds = statistics.median(step() for _ in range(repeats))
    job.row(
        phase="training", config=name, batch=batch, tokens=tokens, ms=seconds * 1000,
        tokens_per_second=batch * tokens / seconds, peak_mib=job.peak_mib(),
    )  # fmt: skip


@torch.inference_mode()
def contexts(job: Job, sizes: dict, lengths, repeats: int) -> None:
    dtype = "float32" if job.smoke else "bfloat16"
    arguments = Namespace(**sizes, random_share=0.5, dtype=dtype)
    models = {name: by_context.make_model(name, arguments, job.device) for name in ("static", "dynamic", "all-softmax")}
    ids = torch.randint(sizes["vocab_size"], (1, max(lengths)), device=job.device)
    for name, model in models.items():
        worst = by_context.check(model, name, arguments, ids[:, : 48 if job.smoke else by_context.CHECKED])
        job.row(check="hybrid exact before it is timed", config=name, difference=worst, passed=True)
    rows: list[dict] = []
    for length in lengths:
        if job.seconds_left() < 3:
            job.left_out(f"context {length}: no time")
            break
        rows += by_context.measure(models, ids[:, :length], repeats)
        for row in rows[-2 * len(models) :]:
            job.row(**row)
    job.facts["crossings"] = by_context.crossings(rows)


def run(job: Job) -> None:
    job.facts["kernels"] = "fla, untuned" if FUSED and job.device.type == "cuda" else "torch"
    sizes = TINY if job.smoke else FULL
    contexts(job, sizes, (32, 64) if job.smoke else (1024, 4096, 16384, 32768), 1 if job.smoke else 3)
    empty_memory()
    size = (2, 40, 1) if job.smoke else (48, 1024, 3)
    for name in ("static", "dynamic"):
        try:
            training_step(job, name, sizes, *size)
        except RuntimeError as error:  # The kernels refuse some versions of Triton in the backward pass.
            if not FUSED or "riton" not in str(error):
                raise
            job.left_out(f"training of {name} with fused kernels: {error}")
            with plain_rules():
                training_step(job, name, sizes, *size)
        empty_memory()
