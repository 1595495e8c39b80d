"""The threshold at which a global router skips a wanted share, found from its logits in one pass.

A global router decides for all layers at once, so its logits do not depend on what it decides, and the threshold is
their quantile. (Routers of each layer need a search, see `routing.commands.calibrate`.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from routing.tasks.sequences import TextBatch


@torch.no_grad()
def router_logits(model, batches: Sequence[TextBatch]) -> torch.Tensor:
    """[N, R] logits on text, of the real tokens or, for a router of inputs, of the rows."""
    found = []
    for batch in batches:
        drawn = []

        def draw(logits: torch.Tensor, drawn=drawn) -> torch.Tensor:
            drawn.append(logits)
            return torch.zeros_like(logits, dtype=torch.bool)  # What comes behind the router is not asked for.

        seen = {"attention_mask": batch.mask, "prompt_lengths": batch.prompt_lengths}
        model(batch.ids, **seen, use_cache=False, logits_to_keep=1, draw_gates=draw)
        logits = drawn[0]
        found.append(logits[batch.mask.bool()] if logits.ndim == 3 else logits)
    return torch.cat(found).float().cpu()


def threshold_bias(logits: torch.Tensor, skip: float) -> float:
    """The `route_bias` at which a share of these logits is not above 0.

    Sinks, which run all the same, are among them, so that a little less is skipped.
    """
    ordered = logits.flatten().sort().values
    count = round(skip * len(ordered))
    if count == 0:
        return float(1.0 - ordered[0])
    if count == len(ordered):
        return float(-ordered[-1] - 1.0)
    return float(-(ordered[count - 1] + ordered[count]) / 2)
