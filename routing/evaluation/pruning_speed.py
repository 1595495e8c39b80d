"""Measured speed of pruned generation, router included, against the stock model on the same prompts in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from routing.scoring.plain import PLAIN_GREEDY
from routing.scoring.requests import Request
from routing.search.routes import Route


@torch.inference_mode()
def _seconds(model, request: Request, new_tokens: int, route: Route | None) -> float:
    """Time to generate exactly so many tokens for one prompt."""
    ids = torch.tensor([request.prompt_ids], device=model.device)
    forced = {} if route is None else {"routes": torch.tensor([route])}
    began = time.perf_counter()
    model.generate(
        ids, attention_mask=torch.ones_like(ids), min_new_tokens=new_tokens, max_new_tokens=new_tokens,
        pad_token_id=0, **PLAIN_GREEDY, **forced,
    )  # fmt: skip
    if ids.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.inference_mode()
def _decision_seconds(model, request: Request) -> float:
    """Time in which a query router recovers the text and decides."""
    router = model.model.routers
    ids = torch.tensor([request.prompt_ids], device=model.device)
    began = time.perf_counter()
    router.decide(router.texts(ids, torch.ones_like(ids, dtype=torch.bool)), model.config)
    return time.perf_counter() - began


def measure(
    stock, model, requests: Sequence[Request], routes: Sequence[Route] | None, new_tokens: int, repeats: int
) -> dict:
    """Speed at batch 1 as a ratio, with the interval over prompts.

    Each prompt is answered by both models in turn, `repeats` times, and its fastest times count: what else the machine
    does only adds.

    Args:
        stock: the base as transformers has it.
        routes: forced ones; None: the model's router decides, and its time is told too.
    """
    times = []
    for at, request in enumerate(requests):
        route = None if routes is None else routes[at]
        own = []
        for _ in range(repeats):
            pair = [_seconds(stock, request, new_tokens, None), _seconds(model, request, new_tokens, route)]
            own.append(pair + [_decision_seconds(model, request) if routes is None else 0.0])
        times.append([min(column) for column in zip(*own)])
    times = np.array(times)
    total = times.sum(0)
    rng = np.random.default_rng(0)
    drawn = times[rng.integers(0, len(times), (2000, len(times)))].sum(1)
    found = {
        "new_tokens": new_tokens,
        "prompts": len(requests),
        "stock_ms": total[0] / len(times) * 1e3,
        "ms": total[1] / len(times) * 1e3,
        "speedup": total[0] / total[1],
        "ci95": np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975)).tolist(),
    }
    if routes is None:
        found |= {"decision_ms": total[2] / len(times) * 1e3, "decision_share": total[2] / total[1]}
    return found
