"""Is an export the routed model along its path? Measured on the finished files, before they get their name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from routing.common.errors import UserError

ROWS, TOKENS, DECODED = 2, 64, 4
# Greatest difference of logits that passes, as a share of the greatest logit: rounding of the dtype, never a layer.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Equality:
    """What was measured.

    Attributes:
        difference: greatest difference between two logits.
        scale: greatest logit of the routed model.
        tokens: of each prompt; decoded: further ones, with the cache.
        dtype: of the computation.
    """

    difference: float
    scale: float
    tokens: int
    decoded: int
    dtype: str
    tolerance: float

    @property
    def holds(self) -> bool:
        return math.isfinite(self.difference) and self.difference <= self.tolerance * self.scale

    def words(self) -> str:
        return (
            f"greatest difference of logits {self.difference:.3g}, of logits up to {self.scale:.3g}, over {ROWS} "
            f"prompts of {self.tokens} tokens and {self.decoded} decoded ones, {self.dtype}"
        )

    def record(self) -> dict:
        return asdict(self) | {"prompts": ROWS}


def prompt_length(config) -> int:
    """Tokens of a prompt that show a wrong mask, where a sliding window is short enough."""
    window = getattr(config, "sliding_window", None) or 0
    longest = getattr(config, "max_position_embeddings", None) or 4096
    return max(min(max(TOKENS, window + 16 if window <= 512 else 0), longest - DECODED), 1)


@torch.no_grad()
def logits_of(model, ids: torch.LongTensor, decoded: int) -> torch.Tensor:
    """Logits [B, T + decoded, V] in float64: the prompt at once, what follows token by token with the cache."""
    prompt = model(ids[:, : ids.shape[1] - decoded], use_cache=True)
    parts, cache = [prompt.logits], prompt.past_key_values
    for at in range(ids.shape[1] - decoded, ids.shape[1]):
        output = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        parts.append(output.logits)
        cache = output.past_key_values
    return torch.cat(parts, dim=1).double()


def measure(reference: Callable, exported: Callable) -> Equality:
    """Compare two ...ForCausalLM on drawn tokens.

    Raises:
        UserError: if the reference's logits are not finite.
    """
    tokens = prompt_length(exported.config)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, exported.config.vocab_size, (ROWS, tokens + DECODED), generator=generator)
    expected, found = (logits_of(model, ids, DECODED) for model in (reference, exported))
    if not bool(expected.isfinite().all()):
        raise UserError(
            f"the logits along the path are not finite in {reference.dtype}: it overflows. Give --dtype bfloat16 or "
            "float32."
        )
    tolerance = TOLERANCES.get(exported.dtype, TOLERANCES[torch.float32])
    difference = float((found - expected).abs().max()) if found.shape == expected.shape else math.inf
    return Equality(
        difference if not math.isnan(difference) else math.inf, float(expected.abs().max()), tokens, DECODED,
        str(exported.dtype).removeprefix("torch."), tolerance,
    )  # fmt: skip
