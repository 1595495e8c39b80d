"""Tokens that each skip layers: gathered against masked and the stock model, in bf16; see token_routing.py."""

from __future__ import annotations

import torch
from token_routing import KEPT, check, measure

from gpu_sections.job import Job
from gpu_sections.models import RandomModels, empty_memory


def run(job: Job) -> None:
    dtype, shape = (torch.float32, "tiny") if job.smoke else (torch.bfloat16, "1B")
    batches, lengths, skips = ((2,), (24,), [0.4]) if job.smoke else ((1, 8, 32), (512, 2048), [0.2, 0.4, 0.6])
    models = RandomModels(shape, dtype, job.device, router="prefix_token", kept_layers=KEPT)
    for batch, tokens in sorted(((b, t) for b in batches for t in lengths), key=lambda size: size[0] * size[1]):
        prompts = models.prompts(batch, tokens)
        for skip in skips:
            check(models, prompts[:4, :64], skip)
        for decode in (False, True):
            if job.seconds_left() < (2 if job.smoke else 6):
                job.left_out(f"batch {batch}, {tokens} tokens, {'decode' if decode else 'prefill'}: no time")
                continue
            for row in measure(models, prompts, skips, 1 if job.smoke else 5, decode):
                job.row(shape=shape, **row)
        empty_memory()
