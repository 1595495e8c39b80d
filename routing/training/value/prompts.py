"""What a menu router reads of the prompts of a table: one pass through the first layers, kept on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from routing.scoring.requests import Request
from routing.tasks.prompts import left_pad
from routing.training.features import CachedFeatures, RouterExample, RouterExamples, cache_features, fingerprint
from train_models.menu_router import prompt_features

TOGETHER = 4096  # prompts whose features are read at a time


@torch.no_grad()
def prompt_inputs(reads: tuple[int, ...], model, examples: list[RouterExample], pad_id: int) -> dict[str, torch.Tensor]:
    """`prompt_features` of examples, as [B, R * 2 * D] "features", for `cache_features`.

    Args:
        reads: R numbers of first layers behind which states are read.
    """
    rows = left_pad([example.prompt_ids for example in examples], pad_id)
    ids, mask = (torch.tensor(part, device=model.device) for part in rows)
    inner, deepest = model.model, max(reads)
    # Nothing behind the deepest read is computed: no layer, no adapter (the model has none), no logits.
    route = [1] * deepest + [0] * (model.config.num_hidden_layers - deepest)
    states = inner(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        routes=torch.tensor([route] * len(examples)),
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states
    seen = inner.routing_mask(ids, mask, states[0])
    return {"features": prompt_features([states[depth] for depth in reads], seen, torch.device("cpu"))}


def cached_prompt_features(
    folder: Path,
    model,
    requests: Iterable[Request],
    pad_id: int,
    reads: Sequence[int],
    batch_size: int,
    show: bool = True,
    **settings,
) -> np.ndarray:
    """Features [N, F] of prompts, from a folder, or computed into it where it lacks some; a rerun goes on.

    Args:
        model: a Routed...ForCausalLM without adapters.
        settings: what else the features depend on: the model's name, weights, dtype.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples = RouterExamples(folder)
    for request in requests:
        examples.append(RouterExample(request.prompt_ids, ()))
    key = fingerprint(examples, reads=list(reads), **settings)
    inputs, size = partial(prompt_inputs, tuple(reads)), 4 * len(reads) * 2 * model.config.hidden_size
    cache_features(folder, model, examples, pad_id, batch_size, key, show=show, inputs=inputs, size=size)
    stored = CachedFeatures(folder, range(len(examples)))
    found = np.empty((len(examples), size // 4))
    for start in range(0, len(found), TOGETHER):
        part = range(start, min(start + TOGETHER, len(found)))
        found[start : start + TOGETHER] = stored.__getitems__(part)["features"].numpy()
    return found
